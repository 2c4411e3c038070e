"""Labels of all tasks: class numbers, rows of 0 and 1 with one column per label, and numbers of a regression."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, ORDINAL, REGRESSION, SINGLE
from transfer.images.cells import number_in
from transfer.images.splitting import SourceData

VALUE = "value"
"""Name of the numbers of a regression, if the source has none."""

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")

SEPARATOR = "|"
"""Separates the labels of an image in texts and in split files."""


def as_task(data: SourceData, task: str) -> SourceData:
    """Return the contents of a source with the labels of a task; raise if its labels do not suit the task."""
    if task == "auto" or task == data.task or (task == ORDINAL and data.task == SINGLE):
        return data
    if task == MULTI and data.task == SINGLE:
        count = len(data.class_names)
        columns = {s: np.eye(count, dtype="int8")[part.labels] for s, part in data.parts.items()}
        return replace(_with_labels(data, task, columns), copies_have_labels=True)
    if task == REGRESSION and data.task == SINGLE:
        return _with_numbers(data)
    raise InputError(
        f"Expected labels for the task {task}. Received images with several labels each. Use --task multi, or "
        'task="multi" in Python.'
        if data.task == MULTI
        else f"Expected labels for the task {task}. Received numbers that are not whole. Use --task regression, or "
        'task="regression" in Python.'
    )


def _with_numbers(data: SourceData) -> SourceData:
    """Return class names that are numbers as the values of a regression."""
    found = [number_in(name) for name in data.class_names]
    values = np.array([np.nan if number is None else number for number in found], "float64")
    if not np.isfinite(values).all():
        wrong = [
            name
            for name, value in zip(data.class_names, values.tolist(), strict=True)
            if not np.isfinite(value)
        ]
        remedy = "Correct the labels, or choose other ones or another task."
        if all(_DECIMAL_COMMA.fullmatch(name.strip()) for name in wrong):
            remedy = "Write decimal points instead of commas."
        raise InputError(
            f"Expected finite numbers as labels, for the task regression. Received: {', '.join(map(repr, wrong[:5]))}. "
            f"{remedy}"
        )
    labels = {split: values[part.labels] for split, part in data.parts.items()}
    return replace(_with_labels(data, REGRESSION, labels), class_names=[data.target or VALUE])


def _with_labels(data: SourceData, task: str, labels: Mapping[str, np.ndarray]) -> SourceData:
    parts = {split: replace(part, labels=labels[split]) for split, part in data.parts.items()}
    return replace(data, parts=parts, task=task)


def task_of(labels: np.ndarray) -> str:
    """Return the task of labels by their form; ordered classes are single labels."""
    return MULTI if labels.ndim == 2 else REGRESSION if labels.dtype.kind == "f" else SINGLE


def label_texts(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return the label of each image as text; several labels have a bar between them."""
    if labels.ndim == 2:
        return [SEPARATOR.join(class_names[i] for i in np.flatnonzero(row).tolist()) for row in labels]
    if labels.dtype.kind == "f":
        return [number_text(value) for value in labels.tolist()]
    return [class_names[i] for i in labels.tolist()]


def number_text(value: float) -> str:
    """Return the shortest text of a number that means the same number."""
    return repr(float(value)).removesuffix(".0")


def label_counts(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the number of images of each class or with each label; of a regression, the number of images."""
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0, dtype="int64"))
    return np.array([len(labels)]) if labels.dtype.kind == "f" else np.bincount(labels, minlength=count)
