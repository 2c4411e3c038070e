"""Combine the columns of groups in a list, such as patients and their lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transfer.common.errors import InputError
from transfer.images.column_names import quoted
from transfer.images.duplicates import component_ids

_MIN_COARSE = 10
"""Number of values from which a column is combined with a finer one, such as households with persons."""


class GroupColumn(NamedTuple):
    """The name of a column, its rank (see `columns.rank`), and its cell in each row, "" for none."""

    name: str
    rank: int
    cells: Sequence[str]


def combine(columns: Sequence[GroupColumn], *, chosen: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the group of each row, and the name and reason of each column left out; `chosen` combines all."""
    used = [columns[0]]
    ids = _numbers(columns[0].cells)
    left_out = []
    for column in columns[1:]:
        other = _numbers(column.cells)
        both = np.unique(np.stack([ids, other], axis=1)[(ids >= 0) & (other >= 0)], axis=0)
        finer = len(np.unique(both[:, 1])) == len(both)  # each of its values is in one group
        coarser = len(np.unique(both[:, 0])) == len(both)
        if not (chosen or finer) and column.rank > used[0].rank:
            what = "has several values of it" if coarser else "shares its values"
            left_out.append((column.name, f"{quoted(used[0].name)} is used, which {what}"))
            continue
        if not (chosen or finer or (coarser and len(np.unique(other)) >= _MIN_COARSE)):
            raise InputError(
                f"expected one column of groups. Received {quoted(used[0].name)} and {quoted(column.name)}, which "
                f"group the images in different ways. Use --group-column {column.name}, or another column; "
                f"{used[0].name},{column.name} combines them."
            )
        used.append(column)
        ids = _connected([_numbers(one.cells) for one in used])
    if len(used) == 1:
        return [*columns[0].cells], left_out
    return _named(used, ids), left_out


def _numbers(cells: Sequence[str]) -> np.ndarray:
    """Return a number for each cell, -1 for empty ones."""
    ids = {"": -1}
    return np.array([ids.setdefault(cell, len(ids)) for cell in cells], "int64")


def _connected(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return the group of each row if the rows with a common value in any column are one group; -1 for none."""
    count = len(columns[0])
    rows = np.arange(count)
    size = count + 1
    links = [np.stack([rows, size * (i + 1) + ids], axis=1)[ids >= 0] for i, ids in enumerate(columns)]
    groups = component_ids(size * (len(columns) + 1), np.concatenate(links))[:count]
    return np.where(np.max(columns, axis=0) < 0, -1, groups)


def _named(columns: Sequence[GroupColumn], ids: np.ndarray) -> list[str]:
    """Return a name for the group of each row: a cell of its first row, and the column unless it is the first."""
    names = {-1: ""}
    for row, group in enumerate(ids.tolist()):
        if group not in names:
            column = next(one for one in columns if one.cells[row])
            names[group] = (
                f"{column.name}={column.cells[row]}" if column is not columns[0] else column.cells[row]
            )
    return [names[group] for group in ids.tolist()]
