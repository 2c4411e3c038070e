"""Notebooks run, use public names, and hold no logic."""

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_of(path):
    notebook = nbformat.read(path, as_version=4)
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_logic_and_no_private_names(path):
    tree = ast.parse(code_of(path))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While | ast.Try)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in out.get("data", {})
    ]
    assert "image/png" in shown
