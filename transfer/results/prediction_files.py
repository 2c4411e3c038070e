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
from transfer.common.tasks import MULTI, REGRESSION, SINGLE
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.images.cells import number_in
from transfer.images.label_forms import SEPARATOR, VALUE, label_texts

FIRST = ("path", "label", "predicted", "group")
"""Columns before those of the class probabilities."""


OF_FOLDS = (*FIRST, "fold")
"""The same in a file of out-of-fold predictions; folds count from 1."""

RANK = "expected_rank"
"""Column after these in a file of ordered classes: the expected value of the rank, 1 for the lowest class."""


def write_predictions(path: Path, evaluation: AnyEvaluation, folds: np.ndarray | None = None) -> None:
    """Write the predictions of an evaluation; `read_predictions` reads them, or with folds `read_out_of_fold`."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_rows(evaluation, folds))


def _rows(evaluation: AnyEvaluation, folds: np.ndarray | None) -> Iterator[Sequence[str]]:
    count = len(evaluation.labels)
    numbers = [()] * count if folds is None else [(str(fold + 1),) for fold in folds.tolist()]
    last, cells = _last_columns(evaluation)
    yield (*(FIRST if folds is None else OF_FOLDS), *last)
    groups = evaluation.groups if len(evaluation.groups) else [""] * count
    texts = [label_texts(x, evaluation.class_names) for x in (evaluation.labels, evaluation.predictions)]
    if isinstance(evaluation, ValueEvaluation):  # models compute in float32
        texts[1] = [f"{value:.7g}" for value in evaluation.predictions.tolist()]
    else:  # a negative number is no formula
        texts = [[*map(to_cell, column)] for column in texts]
    for name, label, predicted, group, number, more in zip(
        evaluation.names, *texts, groups, numbers, cells, strict=True
    ):
        yield (to_cell(name), label, predicted, to_cell(group), *number, *more)


def _last_columns(evaluation: AnyEvaluation) -> tuple[list[str], list[list[str]]]:
    """Return the names and the cells of the columns after the group and the fold."""
    if isinstance(evaluation, ValueEvaluation):  # the number is the column of the predictions
        return [], [[]] * len(evaluation.labels)
    columns = [to_cell(name) for name in evaluation.class_names]
    cells = [[f"{value:.6f}" for value in row] for row in evaluation.probabilities.tolist()]
    if isinstance(evaluation, LabelEvaluation) or evaluation.rule is None:
        return columns, cells
    ranks = expected_ranks(evaluation.probabilities).tolist()
    return [RANK, *columns], [[f"{rank:.4f}", *row] for rank, row in zip(ranks, cells, strict=True)]


def read_predictions(
    path: Path,
    rule: str | None = None,
    *,
    task: str = SINGLE,
    thresholds: Sequence[float] = (),
) -> AnyEvaluation:
    """Read the file of `write_predictions`; the other arguments are what this file does not have."""
    if task == MULTI:
        rows, names, probabilities = _read(path, FIRST, least=1)
        return LabelEvaluation(
            names, _several(path, rows, names), probabilities, *_named(rows), thresholds=thresholds
        )
    if task == REGRESSION:
        rows, _, _ = _read(path, FIRST, least=0)
        columns = [[number_in(row[k]) for row in rows] for k in (1, 2)]
        labels, predicted = (np.array(column, "float64") for column in columns)  # None becomes NaN
        if not np.isfinite([labels, predicted]).all():
            raise InputError(
                f"Expected finite numbers as labels and predictions in {path}. Restore the file."
            )
        return ValueEvaluation((VALUE,), labels, predicted, *_named(rows))
    return _read_classes(path, FIRST, rule)[0]


def read_out_of_fold(path: Path, rule: str | None = None) -> CrossValidation:
    """Read the file of `write_predictions` with folds."""
    evaluation, rows = _read_classes(path, OF_FOLDS, rule)
    try:
        folds = np.array([int(row[len(FIRST)]) for row in rows]) - 1
    except ValueError as error:
        raise InputError(f"Cannot read the folds in {path}: {one_line(error)}.") from None
    return CrossValidation(evaluation, folds)


def _read_classes(path: Path, columns: Sequence[str], rule: str | None) -> tuple[Evaluation, list[list[str]]]:
    """Read a file of single labels whose first columns have these names; also return its rows."""
    rows, names, probabilities = _read(path, columns if rule is None else (*columns, RANK), least=2)
    number = {name: place for place, name in enumerate(names)}
    try:
        labels = np.array([number[from_cell(row[1])] for row in rows], "int64")
    except KeyError as error:
        raise InputError(f"Cannot read the predictions in {path}: unknown class {error}.") from None
    probabilities /= np.maximum(probabilities.sum(axis=1, keepdims=True), 1e-12)
    return Evaluation(names, labels, probabilities, *_named(rows), rule=rule), rows


def _several(path: Path, rows: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """Return the labels of images with several labels, shape (N, labels)."""
    number = {name: place for place, name in enumerate(names)}
    labels = np.zeros((len(rows), len(names)), "int8")
    for place, row in enumerate(rows):
        for name in filter(None, from_cell(row[1]).split(SEPARATOR)):
            if name not in number:
                raise InputError(f"Cannot read the predictions in {path}: unknown label {name!r}.")
            labels[place, number[name]] = 1
    return labels


def _read(
    path: Path, columns: Sequence[str], *, least: int
) -> tuple[list[list[str]], tuple[str, ...], np.ndarray]:
    """Read a file whose first columns have these names; return its rows, its other columns, and their numbers."""
    first = len(columns)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        names = tuple(map(from_cell, header[first:]))
        if header[:first] != [*columns] or len({*names}) < max(least, len(names)) or not rows:
            raise ValueError(f"expected the columns {', '.join(columns)}, {least} classes or more, and rows")
        values = np.array([row[first:] for row in rows], "float64").reshape(len(rows), -1)
        if values.shape != (len(rows), len(names)) or not np.isfinite(values).all():
            raise ValueError("expected a finite number for each class in each row")
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"Cannot read the predictions in {path}: {one_line(error)}.") from None
    return rows, names, values


def _named(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names and the groups of the images."""
    names, groups = (tuple(from_cell(row[k]) for row in rows) for k in (0, 3))
    return names, groups if any(groups) else ()


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """Format rows of text as CSV without cells that a spreadsheet takes for formulas; negative numbers are none."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(
        [cell if number_in(cell) is not None else to_cell(cell) for cell in row] for row in rows
    )
    return stream.getvalue()
