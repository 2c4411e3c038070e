"""Run notebooks, and save them with their outputs and a hash of their code.

    python tests/scripts/run_notebooks.py [NAME ...]

`test_notebooks.py` compares the hash with the code to find outdated outputs.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat

FOLDER = Path(__file__).parents[2] / "notebooks"
HASH_KEY = "code_sha256"


def main() -> None:
    """Run the notebooks that are given as arguments, or all."""
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        start = time.perf_counter()
        notebook = run(path)
        notebook.metadata[HASH_KEY] = code_hash(notebook)
        nbformat.write(notebook, path)
        seconds, size = time.perf_counter() - start, path.stat().st_size
        print(f"{name}: {seconds:.0f} s, {size / 1000:.0f} kB", flush=True)


def run(path: Path, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook in an empty folder; remove standard error and execution times from the outputs."""
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


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Return the SHA-256 hash of the code in a notebook."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


if __name__ == "__main__":
    main()
