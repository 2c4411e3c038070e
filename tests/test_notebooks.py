"""The notebooks run, use public names only, contain no logic, and have up-to-date outputs."""

import ast
import base64
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from scripts import run_notebooks

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.stem[0] in "1234567"]


def by_name(path):
    return path.stem


def code_of(path):
    notebook = nbformat.read(path, as_version=4)
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_the_course_is_complete():
    assert [path.stem[0] for path in NOTEBOOKS] == list("01234567")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebooks_contain_no_logic_and_no_private_names(path):
    tree = ast.parse(code_of(path))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While | ast.Try)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebooks_link_to_colab_and_install_the_package(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (
        f"notebooks/{path.name})" in notebook.cells[0].source
        and "colab-badge.svg" in notebook.cells[0].source
    )
    assert "%pip install" in notebook.cells[1].source


@pytest.mark.parametrize("path", LESSONS, ids=by_name)
def test_exercises_have_hidden_answers(path):
    text = nbformat.read(path, as_version=4).cells[-1].source
    assert "## Exercises" in text and text.count("<details>") == text.count("</details>") >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_outputs_belong_to_the_code(path):
    """If this fails, run `python tests/scripts/run_notebooks.py NAME` and check the new outputs."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.get(run_notebooks.HASH_KEY) == run_notebooks.code_hash(notebook)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not any(out.output_type == "error" or out.get("name") == "stderr" for out in outputs)
    assert path.stat().st_size < 1_000_000  # outputs are committed, so they must be small


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebooks_run(path, tmp_path):
    notebook = run_notebooks.run(path, timeout=300)
    figures = [
        out.data["image/png"]
        for cell in notebook.cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    assert figures
    for number, figure in enumerate(figures):
        file = tmp_path / f"{number}.png"
        file.write_bytes(base64.b64decode(figure))
        assert np.asarray(Image.open(file).convert("L")).std() > 3  # not blank
