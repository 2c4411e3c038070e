"""Interpret the cells of a list: splits, flags, groups and labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from transfer.images.split_words import split_of

FLAGS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0", "x"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0", "", "nan"), False),
}
"""Cells in lower case that mean yes or no."""

_MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "-", "?", "unknown", "missing"))
_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def known(text: str) -> str:
    """Return a cell without spaces around it; "" for words such as "nan" that stand for a missing value."""
    text = text.strip()
    return "" if text.lower() in _MISSING else text


def is_nan(text: str) -> bool:
    """Return whether a cell is a mark of a missing value that is unlikely to be the name of a class."""
    return text.strip() in ("nan", "NaN", "<NA>", "#N/A")


def flag_in(text: str) -> bool | None:
    """Return whether a cell means yes or no; None for other text."""
    return FLAGS.get(text.strip().lower())


@lru_cache(maxsize=10_000)
def split_in(text: str) -> str | None:
    """Return the split that a cell means, "" for an empty cell, None for other text."""
    return split_of(text) if known(text) else ""


def split_by_flags(marked: Mapping[str, bool]) -> str | None:
    """Return the split of a row from a flag for each split; None if the flags contradict each other."""
    chosen = [split for split, is_marked in marked.items() if is_marked]
    if len(chosen) == 1:
        return chosen[0]
    if chosen or ("train" in marked and len(marked) > 1):
        return None
    return "test" if "train" in marked else "train"


def merged_numbers(labels: Collection[str]) -> dict[str, str]:
    """Return the class of each label: "0.0" is the class "0" if both are there."""
    present = set(labels)
    merged = {label: match[1] for label in labels if (match := _WHOLE.fullmatch(label))}
    return {label: merged[label] if merged.get(label) in present else label for label in labels}


def number_in(text: str) -> float | None:
    """Return the number that a cell holds, or None."""
    try:
        return float(text)
    except ValueError:
        return None
