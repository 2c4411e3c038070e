"""Run notebooks and save them with their outputs and a digest of their code.

    python tests/scripts/run_notebooks.py [NAME ...]

`test_notebooks.py` compares the digest with the code, and so finds outputs that are out of date.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parents[2] / "notebooks"
STAMP = "code_sha256"


def main() -> None:
    """Run the notebooks in the arguments, or all."""
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        start = time.perf_counter()
        notebook = run(path)
        notebook.metadata[STAMP] = stamp_of(notebook)
        nbformat.write(notebook, path)
        sys.stdout.write(
            f"{name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB\n"
        )
        sys.stdout.flush()


def run(path: Path, timeout: int = 600) -> Any:
    """Run a notebook in an empty folder, and leave out standard error and execution times."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    os.environ["TQDM_DISABLE"] = "1"  # no progress bars in the outputs
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


def stamp_of(notebook: Any) -> str:
    """Return the digest of a notebook's code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


if __name__ == "__main__":
    main()
