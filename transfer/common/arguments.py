"""Errors for wrong argument names, which say which function was called and what to write."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Set
from typing import ParamSpec, TypeVar

from transfer.common.errors import InputError, nearest

POSITIONAL = "*"
"""The key of the hint for a call with too many positional arguments."""

P = ParamSpec("P")
T = TypeVar("T")


class ArgumentError(InputError):
    """A call with wrong arguments."""

    def __init__(self, function: str, problem: str, names: set[str]) -> None:
        super().__init__(f"{function}: {problem}")
        self.problem, self.names = problem, names


def explain_arguments(
    hints: Mapping[str, str] | None = None, aliases: Mapping[str, str] | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator for exported functions; `hints` has advice for names of other libraries."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature, name = inspect.signature(function), function.__name__

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for alias, argument in (aliases or {}).items():
                if alias in kwargs:
                    kwargs.setdefault(argument, kwargs.pop(alias))
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise _explain(name, signature, kwargs.keys(), hints or {}, error) from None
            try:
                return function(*args, **kwargs)
            except ArgumentError as error:
                if error.names & kwargs.keys():  # this function passed them on
                    raise ArgumentError(name, error.problem, error.names) from None
                raise

        return call

    return decorate


def _explain(
    function: str, signature: inspect.Signature, given: Set[str], hints: Mapping[str, str], error: TypeError
) -> ArgumentError:
    """Return the error for a call that does not fit a signature."""
    known = [one.name for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    has_more = len(known) < len(signature.parameters)
    for name in sorted(given - {*known}):
        if has_more:
            break
        near = nearest(name, known, most=3)
        advice = hints.get(name) or (
            f"Did you mean {', '.join(near)}?" if near else f"Expected one of: {', '.join(known)}."
        )
        return ArgumentError(function, f"unknown argument {name!r}. {advice}", {name})
    required = [
        one.name for one in signature.parameters.values() if one.default is one.empty and one.name in known
    ]
    positional = [one.name for one in signature.parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    order = f"The arguments {', '.join(positional)} come in this order; pass all others by name."
    advice = f"Write {function}({', '.join(required)}). {order}"
    if "too many positional" in str(error):
        advice = hints.get(POSITIONAL, advice)
    return ArgumentError(function, f"{error}. {advice}", set())
