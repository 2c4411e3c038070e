"""The list of the public API: the names of `__init__.pyi`, in its groups, each with the first line of its docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

_EXPORT = re.compile(r"from \.([\w.]+) import (\w+) as")


@cache
def listing() -> str:
    """Return the list as text; it reads the source, and imports nothing."""
    lines = []
    for heading, names in groups():
        lines += ["", heading, ""]
        lines += [f"    {name}: {_summaries(module).get(name, '')}" for module, name in names]
    return "\n".join(lines[1:])


def groups() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each group of `__init__.pyi`: its comment, and its pairs of a module and a name."""
    text = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
    for paragraph in text.split("\n\n"):
        names = _EXPORT.findall(paragraph)
        comments = [line[2:] for line in paragraph.splitlines() if line.startswith("# ")]
        if names:
            yield " ".join(comments), names


@cache
def _summaries(module: str) -> dict[str, str]:
    """Return the first line of the docstring of each function, class and constant of a module."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found: dict[str, str] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        text = None
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text, names = ast.get_docstring(node), [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(following, ast.Expr):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [one.id for one in targets if isinstance(one, ast.Name)]
            if isinstance(following.value, ast.Constant):
                text = str(following.value.value)
        if text:
            found |= dict.fromkeys(names, text.splitlines()[0])
    return found
