"""The order of classes such as grades and age bands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.images.splitting import Split

_NUMBER = r"(?:(?<!\w)-)?\d+(?:\.\d+)?"  # the minus of "-5" is a sign, that of "10-19" is not
_RANGE = re.compile(rf"[<>≤≥]?\s*{_NUMBER}\s*(?:(?:-|to)\s*\d+(?:\.\d+)?|\+)?")


def checked_order(order: str | Sequence[str] | None, task: str) -> list[str] | None:
    """Return a class order, such as "low,medium,high", as a list; raise if the task has no order."""
    if order is not None and task != "ordinal":
        raise InputError(
            f"Expected a class order only with the task ordinal. Received the task {task}. Add --task ordinal, or "
            'task="ordinal" in Python.'
        )
    if order is None:
        return None
    return [name.strip() for name in order.split(",")] if isinstance(order, str) else list(order)


def ordered_classes(names: Sequence[str], order: Sequence[str] | None) -> list[str]:
    """Return the class names in a given order, or in the order of the numbers in them."""
    if order is None:
        return _by_numbers(names)
    for name in order:
        if name not in names:
            raise unknown("class", name, names, hint="It is in the class order.")
    if sorted(order) != sorted(names):
        missing = [name for name in names if name not in order]
        received = f"none of: {', '.join(missing)}" if missing else "a class more than once"
        raise InputError(f"Expected each class once in the class order. Received {received}.")
    return list(order)


def _by_numbers(names: Sequence[str]) -> list[str]:
    """Return class names in the order of their numbers; raise if these do not order them."""
    numbers = {name: tuple(map(float, re.findall(_NUMBER, name))) for name in names}
    unordered = [name for name in names if not numbers[name]]
    if unordered or len(set(numbers.values())) < len(names):
        same = [name for name in names if [*numbers.values()].count(numbers[name]) > 1]
        why = "without a number" if unordered else "with the same numbers"
        raise InputError(
            f"Expected a number in each class name that sets its rank. Received names {why}: "
            f"{', '.join((unordered or same)[:10])}. State the order, from the lowest to the highest class: "
            f"--class-order {','.join(names[:3])}, or class_order=[...] in Python."
        )
    return sorted(names, key=lambda name: numbers[name])


def in_order(parts: Mapping[str, Split], names: Sequence[str], ranked: Sequence[str]) -> dict[str, Split]:
    """Return splits whose labels are the positions of their classes in `ranked`."""
    ranks = np.array([ranked.index(name) for name in names], "int64")
    return {split: replace(part, labels=ranks[part.labels]) for split, part in parts.items()}


def looks_ordered(names: Sequence[str]) -> bool:
    """Return whether all class names are numbers or ranges of numbers, such as "10-19" and "100+"."""
    return all(_RANGE.fullmatch(name) for name in names)
