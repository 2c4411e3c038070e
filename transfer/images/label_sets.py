"""Labels of lists: one class per image, or several labels in a cell or in columns of 0 and 1."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from transfer.common.tasks import MULTI

Labels = tuple[str, ...]
"""The labels of an image."""

_SEPARATORS = "|;,"
_WORDS = (" ", "/", "+", "&", " and ")  # these are also in names of classes
_LIST = re.compile(r"""[\[({].*(,|'\s+').*[\])}]$""", re.DOTALL)  # of Python, JSON or NumPy
# Lists of one label or none, among other lists.
_SHORT_LIST = re.compile(r"""\[.*\]|[({]\s*((["']).*\2,?\s*)?[)}]""", re.DOTALL)
_ITEM = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^,\s"'](?:[^,]*[^,\s])?)""", re.DOTALL)
_NONE = frozenset(("", "none", "no label", "no labels"))


def several_labels(labels: Collection[str]) -> list[str]:
    """Return the labels that combine several classes, such as "scab|rust" beside "scab" and "rust"."""
    found = set(filter(_LIST.match, labels)).union(*_combined(labels).values())
    return [label for label in labels if label in found]


def _recombined(labels: Collection[str]) -> bool:
    """Return whether labels combine fewer parts than there are labels, such as "a|b", "a|c", "b|c" and "a|b|c"."""
    for separator in _SEPARATORS:
        combined = [of for label in set(labels) if len(of := _parts(label, separator)) > 1]
        if combined and len(set().union(*combined)) < len(combined):
            return True
    return False


def _combined(labels: Collection[str], known: Collection[str] = ()) -> dict[str, set[str]]:
    """Return, for each separator that combines classes, the labels that it combines; `known` are other classes."""
    present = {*labels, *known}
    found = {}
    for separator in _SEPARATORS:  # hardly any class name has these: parts of other labels are evidence, too
        parts = {label: _parts(label, separator) for label in labels}
        counts = Counter(part for one in parts.values() for part in one)
        counts.update({*known})
        found[separator] = {
            label
            for label, of in parts.items()
            if len(of) > 1 and of & present and all(counts[p] > 1 for p in of)
        }
    for separator in _WORDS:
        found[separator] = {
            label for label in labels if len(of := _parts(label, separator)) > 1 and of <= present
        }
    return {separator: some for separator, some in found.items() if some}


def _parts(label: str, separator: str) -> set[str]:
    return {*_split(label, separator)}


def _split(label: str, separator: str) -> Labels:
    parts = (text.strip() for text in label.split(separator))
    return tuple(dict.fromkeys(part for part in parts if part.lower() not in _NONE))


def label_sets(
    texts: Sequence[Labels], task: str, *, in_columns: bool, known: Collection[str] = ()
) -> tuple[list[Labels], str] | None:
    """Return the labels of each cell or of marked columns, and the separator of cells; None for one class each."""
    # `known` are labels of a model; a cell that is one of them is not separated.
    if task not in ("auto", MULTI):
        return None
    separator, sets = "", [*texts]
    if not in_columns:
        cells = [text[0] for text in texts if text]
        if task == "auto" and not (several_labels(cells) or _recombined(cells)):
            return None
        separator, of_cell = _separated(cells, known)
        sets = [of_cell[text[0]] if text else () for text in texts]
    return None if all(len(labels) == 1 for labels in sets) else (sets, separator)


def _separated(cells: Sequence[str], known: Collection[str]) -> tuple[str, dict[str, Labels]]:
    """Return the separator in cells, "" if there is none, and the labels of each cell."""
    lists = {cell for cell in cells if _LIST.match(cell) or _SHORT_LIST.fullmatch(cell)}
    plain = [cell for cell in cells if cell not in lists and cell not in known]
    combined = _combined(plain, known)
    # The separator of some cells is that of all cells; without evidence, the first one that occurs.
    used = [s for s in _SEPARATORS if s in combined] or [
        s for s in _SEPARATORS if not combined and any(s in cell for cell in plain)
    ]
    separator = used[0] if used else next(iter(combined), "")
    labels: dict[str, Labels] = {}
    for cell in cells:
        if cell in lists:
            labels[cell] = _items(cell)
        elif cell in known:
            labels[cell] = (cell,)
        elif cell.lower() in _NONE:
            labels[cell] = ()
        elif used:
            labels[cell] = _split(cell, separator)
        else:
            own = [word for word, some in combined.items() if cell in some]
            labels[cell] = _split(cell, own[0]) if own else (cell,)
    return separator, labels


def _items(text: str) -> Labels:
    """Return the items of a list as JSON, Python or NumPy write it."""
    try:
        found: Iterable[object] = json.loads(text)
        items = [item if isinstance(item, str) else str(item) for item in found]
    except (ValueError, TypeError):
        groups = (match.groups("") for match in _ITEM.finditer(text.strip()[1:-1]))
        items = [re.sub(r"\\(.)", r"\1", double or single) or plain for double, single, plain in groups]
    return tuple(dict.fromkeys(stripped for item in items if (stripped := item.strip())))
