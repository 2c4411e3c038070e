"""Predictions in files: one row for each image, quoted so that spreadsheets take names for text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from transfer.common.errors import InputError, one_line
from transfer.common.files import from_cell, replacing, to_cell
from transfer.evaluation.evaluate import Evaluation

FIRST = ("path", "label", "predicted", "group")
"""The columns before those of the classes."""


def write_predictions(path: Path, found: Evaluation) -> None:
    """Write what a model makes of each image, as CSV; `read_predictions` gives it back."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_rows(found))


def _rows(found: Evaluation) -> Iterator[Sequence[str]]:
    names = [to_cell(name) for name in found.class_names]
    yield (*FIRST, *names)
    groups = found.groups if len(found.groups) else [""] * len(found.labels)
    rows = zip(found.names, found.labels, found.predictions, groups, found.probabilities, strict=True)
    for name, label, guess, group, shares in rows:
        yield (
            to_cell(name),
            names[label],
            names[guess],
            to_cell(group),
            *(f"{share:.6f}" for share in shares),
        )


def read_predictions(path: Path) -> Evaluation:
    """Read what `write_predictions` wrote."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        names = tuple(map(from_cell, header[len(FIRST) :]))
        number = {name: place for place, name in enumerate(names)}
        if tuple(header[: len(FIRST)]) != FIRST or len(number) < 2 or not rows:
            raise ValueError(f"expected the columns {', '.join(FIRST)} and the classes, and rows")
        labels = np.array([number[from_cell(row[1])] for row in rows], "int64")
        shares = np.array([row[len(FIRST) :] for row in rows], "float64")
        if shares.shape != (len(rows), len(names)) or not np.isfinite(shares).all():
            raise ValueError("expected a number for each class in each row")
    except (OSError, ValueError, KeyError, IndexError, csv.Error) as error:
        raise InputError(f"Cannot read the predictions in {path}: {one_line(error)}.") from None
    groups = [from_cell(row[3]) for row in rows]
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    return Evaluation(
        names, labels, shares, tuple(from_cell(row[0]) for row in rows), tuple(groups) if any(groups) else ()
    )


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """Write rows of text as CSV, such that spreadsheets take all of it for text."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([*map(to_cell, row)] for row in rows)
    return stream.getvalue()
