"""Docstrings say what the signatures say, and their examples run."""

import doctest
import importlib
import inspect
from pathlib import Path

import docstring_parser
import pytest

import transfer

ROOMS = sorted(p.stem for p in Path(transfer.__file__).parent.glob("*.py") if p.stem != "__init__")


def public_functions():
    modules = [importlib.import_module(f"transfer.{room}") for room in ROOMS]
    return [
        pytest.param(thing, id=f"{module.__name__}.{name}")
        for module in modules
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    ]


@pytest.mark.parametrize("function", public_functions())
def test_docstring_matches_the_signature(function):
    parsed = docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    assert parsed.short_description
    signature = inspect.signature(function)
    assert [p.arg_name.lstrip("*") for p in parsed.params] == list(signature.parameters)
    assert all(p.description for p in parsed.params)
    if signature.return_annotation not in ("None", None, inspect.Signature.empty):
        assert parsed.returns is not None and parsed.returns.description
    assert "Example:" in function.__doc__
    if "raise InputError" in inspect.getsource(function):
        assert any(r.type_name == "InputError" for r in parsed.raises)


@pytest.mark.parametrize("function", public_functions())
def test_public_functions_are_keyword_only_after_the_essentials(function):
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    positional = [k for k in kinds if k is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if not function.__name__.startswith("EfficientNet"):  # these follow keras.applications
        assert len(positional) <= 4


@pytest.mark.parametrize("room", ROOMS)
def test_examples_run(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"transfer.{room}")
    failed = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed
    assert failed == 0
