"""Write and read predictions as CSV, one row per image, and keep spreadsheets from running names as formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from transfer.adviser.cross_validation import CrossValidation
from transfer.common.decision_rules import expected_ranks
from transfer.common.errors import InputError, one_line
from transfer.common.files import from_cell, replacing, to_cell
from transfer.evaluation.evaluation import Evaluation

FIRST = ("path", "label", "predicted", "group")
"""Columns before those of the class probabilities."""


OF_FOLDS = (*FIRST, "fold")
"""The same in a file of out-of-fold predictions; folds count from 1."""

RANK = "expected_rank"
"""Column after these in a file of ordered classes: the expected value of the rank, 1 for the lowest class."""


def write_predictions(path: Path, evaluation: Evaluation, folds: np.ndarray | None = None) -> None:
    """Write the predictions of an evaluation; `read_predictions` reads them, or with folds `read_out_of_fold`."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_rows(evaluation, folds))


def _rows(evaluation: Evaluation, folds: np.ndarray | None) -> Iterator[Sequence[str]]:
    classes = [to_cell(name) for name in evaluation.class_names]
    numbers = (
        [()] * len(evaluation.labels) if folds is None else [(str(fold + 1),) for fold in folds.tolist()]
    )
    ordered = evaluation.rule is not None
    ranks = [f"{rank:.4f}" for rank in expected_ranks(evaluation.probabilities)]
    yield (*(FIRST if folds is None else OF_FOLDS), *[RANK] * ordered, *classes)
    groups = evaluation.groups if len(evaluation.groups) else [""] * len(evaluation.labels)
    columns = (evaluation.names, evaluation.labels, evaluation.predictions, groups, evaluation.probabilities)
    for name, label, predicted, group, probabilities, number, rank in zip(
        *columns, numbers, ranks, strict=True
    ):
        first = to_cell(name), classes[label], classes[predicted], to_cell(group), *number, *[rank] * ordered
        yield (*first, *(f"{probability:.6f}" for probability in probabilities))


def read_predictions(path: Path, rule: str | None = None) -> Evaluation:
    """Read the file of `write_predictions`; the rule is that of ordered classes."""
    return _read(path, FIRST, rule)[0]


def read_out_of_fold(path: Path, rule: str | None = None) -> CrossValidation:
    """Read the file of `write_predictions` with folds."""
    evaluation, rows = _read(path, OF_FOLDS, rule)
    try:
        folds = np.array([int(row[len(FIRST)]) for row in rows]) - 1
    except ValueError as error:
        raise InputError(f"Cannot read the folds in {path}: {one_line(error)}.") from None
    return CrossValidation(evaluation, folds)


def _read(path: Path, columns: Sequence[str], rule: str | None) -> tuple[Evaluation, list[list[str]]]:
    """Read a file of predictions whose first columns have these names; also return its rows."""
    columns = columns if rule is None else (*columns, RANK)
    first = len(columns)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        names = tuple(map(from_cell, header[first:]))
        number = {name: place for place, name in enumerate(names)}
        if header[:first] != [*columns] or len(number) < 2 or not rows:
            raise ValueError(f"expected the columns {', '.join(columns)}, two classes or more, and rows")
        labels = np.array([number[from_cell(row[1])] for row in rows], "int64")
        probabilities = np.array([row[first:] for row in rows], "float64")
        if probabilities.shape != (len(rows), len(names)) or not np.isfinite(probabilities).all():
            raise ValueError("expected a finite number for each class in each row")
    except (OSError, ValueError, KeyError, IndexError, csv.Error) as error:
        raise InputError(f"Cannot read the predictions in {path}: {one_line(error)}.") from None
    groups = tuple(from_cell(row[3]) for row in rows)
    probabilities /= np.maximum(probabilities.sum(axis=1, keepdims=True), 1e-12)
    images = tuple(from_cell(row[0]) for row in rows)
    return Evaluation(names, labels, probabilities, images, groups if any(groups) else (), rule=rule), rows


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """Format rows of text as CSV without cells that a spreadsheet takes for formulas."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([*map(to_cell, row)] for row in rows)
    return stream.getvalue()
