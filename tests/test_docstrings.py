"""Exported names have full docstrings that match their signatures; everything else has one plain line."""

import ast
import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path

import docstring_parser
import pytest

import transfer

PACKAGE = Path(transfer.__file__).parent
STUB = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
EXPORTED = {
    name: f"transfer.{module}"
    for module, name in re.findall(r"^from \.([\w.]+) import (\w+) as", STUB, re.MULTILINE)
}
FUNCTIONS = [name for name in EXPORTED if inspect.isfunction(getattr(transfer, name))]
CLASSES = [name for name in EXPORTED if inspect.isclass(getattr(transfer, name))]


OF_BUILD = "The other arguments are those of `build`."


def other_docstrings():
    """Yield (place, docstring) of everything that is not exported; methods of exported classes count as exported."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("transfer", *path.relative_to(PACKAGE).with_suffix("").parts))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        stack = [(node, False) for node in tree.body]
        while stack:
            node, exported = stack.pop()
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            exported = (exported or EXPORTED.get(node.name) == module) and not node.name.startswith("_")
            inner = exported and isinstance(node, ast.ClassDef)
            stack += [(child, inner) for child in node.body]
            text = ast.get_docstring(node, clean=False)
            if text is not None and not exported:
                yield f"{module}:{node.lineno} {node.name}", text


def test_everything_that_is_not_exported_has_one_line():
    assert not [place for place, text in other_docstrings() if len(text.splitlines()) > 1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_matches_the_signature(name):
    function = getattr(transfer, name)
    parsed = docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    assert parsed.short_description
    signature = inspect.signature(function)
    described = [p.arg_name.lstrip("*") for p in parsed.params]
    if OF_BUILD in function.__doc__:
        of_build = inspect.signature(transfer.build).parameters
        others = {name: p for name, p in signature.parameters.items() if name not in described}
        assert others and all(of_build[name] == p for name, p in others.items())
        assert [name for name in signature.parameters if name in described] == described
    else:
        assert described == list(signature.parameters)
    assert all(p.description for p in parsed.params)
    if signature.return_annotation not in ("None", None, inspect.Signature.empty):
        assert parsed.returns is not None and parsed.returns.description
    assert "Example:" in function.__doc__
    if "raise InputError" in inspect.getsource(function):
        assert any(r.type_name == "InputError" for r in parsed.raises)


@pytest.mark.parametrize("name", CLASSES)
def test_exported_classes_describe_their_attributes(name):
    cls = getattr(transfer, name)
    assert cls.__doc__ and not cls.__doc__.startswith(f"{name}(")
    if "__dataclass_fields__" in vars(cls) and name != "TrainConfig":  # its fields are described by --help
        parsed = docstring_parser.parse(cls.__doc__, docstring_parser.DocstringStyle.GOOGLE)
        described = {p.arg_name for p in parsed.params}
        assert described >= {field for field in cls.__dataclass_fields__ if not field.startswith("_")}
    for attribute, value in vars(cls).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert inspect.getdoc(value), attribute


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exported_functions_are_keyword_only_after_the_essentials(name):
    kinds = [p.kind for p in inspect.signature(getattr(transfer, name)).parameters.values()]
    positional = [k for k in kinds if k is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if not name.startswith("EfficientNet"):  # these follow keras.applications
        assert len(positional) <= 4


@pytest.mark.parametrize("module", sorted(set(EXPORTED.values())))
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    importlib.import_module(module)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(sys.modules[module], optionflags=options).failed == 0
