"""Labels of arrays: class numbers, class names, several labels per image, or numbers of a regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any
from unicodedata import normalize

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.tasks import MULTI, REGRESSION, SINGLE
from transfer.images.label_forms import VALUE, task_of


def task_of_labels(labels: Mapping[str, np.ndarray]) -> str:
    """Return the task of labels; raise if it differs between splits."""
    found = {split: task_of(part) for split, part in labels.items()}
    if len({*found.values()}) > 1:
        received = ", ".join(f"{task} in {split}" for split, task in found.items())
        raise InputError(
            f"Expected the same kind of labels in every split. Received: {received}. State the task, such as "
            'task="multi".'
        )
    return next(iter(found.values()))


def named_labels(
    labels: Mapping[str, np.ndarray], class_names: Sequence[str] | None, task: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the class names, and labels as positions in them, as columns of 0 and 1, or as numbers."""
    return _number(labels, class_names) if task == SINGLE else _named(labels, class_names, task)


def _named(
    labels: Mapping[str, np.ndarray], class_names: Sequence[str] | None, task: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of several labels, or of the number of a regression, and the labels as they are."""
    counts = {split: part.shape[1] if task == MULTI else 1 for split, part in labels.items()}
    count = next(iter(counts.values()))
    names = (
        [VALUE] if class_names is None and task == REGRESSION else [*map(str, class_names or range(count))]
    )
    if {*counts.values()} != {len(names)} or len({*names}) < len(names):
        received = ", ".join(f"{number} in {split}" for split, number in counts.items())
        raise InputError(
            f"Expected a different name for each of the labels. Received: {len(names)} names, and labels: {received}. "
            "Pass one name per column of the labels."
        )
    return names, dict(labels)


def _number(
    labels: Mapping[str, np.ndarray], class_names: Sequence[str] | None
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the class names and the labels as positions in them. Without names, the labels are the names."""
    if len({part.dtype.kind for part in labels.values()}) > 1:
        raise InputError(
            "Expected the same kind of labels in every split. Received numbers and names. Use one kind."
        )
    values = np.unique(np.concatenate([*labels.values()]))
    texts = [str(value) for value in values.tolist()]
    if class_names is None:
        return texts, {split: np.searchsorted(values, part) for split, part in labels.items()}
    if isinstance(class_names, (Mapping, Set)):  # a set has no order
        advice = "Pass its values." if isinstance(class_names, Mapping) else "Pass a list."
        raise InputError(
            "Expected class_names as a list, in the order of the labels. Received: a "
            f"{type(class_names).__name__}. {advice}"
        )
    names = [str(name) for name in class_names]
    if len(set(names)) < len(names):
        raise InputError(f"Expected a different name for each class. Received: {', '.join(names)}.")
    if values.dtype.kind == "U":
        if unknown_names := [text for text in texts if text not in names]:
            raise unknown(
                "class", unknown_names[0], names, hint="It is in the labels but not in class_names."
            )
        positions = np.array([names.index(text) for text in texts], "int64")
        return names, {split: positions[np.searchsorted(values, part)] for split, part in labels.items()}
    if values[-1] >= len(names):
        raise InputError(
            f"Expected labels from 0 to {len(names) - 1}, one per class name. Received a label {values[-1]}. "
            "Number the classes from 0 on, without gaps."
        )
    return names, dict(labels)


def labels_as_names(labels: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Return the class name that each label of arrays means: the label itself, or the name at its position."""
    are_positions = all(text.isdecimal() and int(text) < len(class_names) for text in labels)
    at_position = [class_names[int(text)] for text in labels] if are_positions else [*labels]
    if are_positions and set(labels) <= {*class_names} and at_position != [*labels]:
        raise InputError(
            f"Expected labels with one meaning. Received: {', '.join(labels)}, which may be class names or positions "
            f"in {', '.join(class_names)}. Use a folder or a list, which hold names."
        )
    return at_position


def as_labels(y: np.ndarray, count: int, task: str = "auto") -> np.ndarray:
    """Return class numbers as int64 or text, several labels as int8 of shape (N, K), or numbers as float64."""
    if y.ndim == 2 and y.shape[1] == 1 and task != MULTI:  # as keras.datasets.cifar10 returns them
        y = y[:, 0]
    if task == REGRESSION and y.ndim > 1:
        raise InputError(
            f"Expected one number per image, shape ({count},). Received: labels of shape {y.shape}. Choose one column."
        )
    if y.ndim == 2 and len(y) == count and y.dtype.kind in "buif":
        one_hot = np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()
        if task == MULTI or (task == "auto" and not one_hot):
            return _as_columns(y)
        if not one_hot:
            raise InputError(
                "Expected one label per image, or one-hot labels with a single 1 in each row. Received: labels of "
                f"shape {y.shape} with other values. Choose one class per image, such as by argmax(axis=-1). For "
                'several labels per image, use task="multi".'
            )
        y = y.argmax(axis=1)
    if y.shape != (count,):
        raise InputError(
            f"Expected one label per image. Received: {count} images with labels of shape {y.shape}."
        )
    if task == REGRESSION and y.dtype.kind in "buif":
        return _as_numbers(y)
    if y.dtype.kind in "OSU":
        return _as_names(y.tolist())
    if y.dtype.kind not in "buif" or not (y >= 0).all() or (y != np.floor(y)).any():
        lowest = f" with a minimum of {y.min()}" if y.dtype.kind in "if" else ""
        raise InputError(
            f"Expected labels as whole numbers from 0, or as class names. Received: {y.dtype}{lowest}. Number the "
            'classes from 0 on. For numbers such as ages or weights, use task="regression".'
        )
    return y.astype("int64")


def _as_columns(y: np.ndarray) -> np.ndarray:
    """Return several labels per image, 0 or 1, as int8 of shape (N, K)."""
    if not np.isin(y, (0, 1)).all():
        raise InputError(
            "Expected 0 or 1 in each column of labels. Received other values, from "
            f"{np.nanmin(y):g} to {np.nanmax(y):g}. Write 1 for each label that an image has."
        )
    return y.astype("int8")


def _as_numbers(y: np.ndarray) -> np.ndarray:
    """Return the numbers of a regression as float64."""
    if not np.isfinite(y).all():
        raise InputError(
            f"Expected a finite number as the label of each image. Received NaN or infinity in "
            f"{np.count_nonzero(~np.isfinite(y))} of {len(y)} labels. Leave these images out."
        )
    return y.astype("float64")


def _as_names(labels: list[Any]) -> np.ndarray:
    """Return labels as text, or as int64 if all are numbers; raise for missing ones, and for both kinds at once."""
    texts = [label.decode("utf-8", "replace") if isinstance(label, bytes) else label for label in labels]
    if all(type(text) is int for text in texts):
        return as_labels(np.array(texts, "int64"), len(texts))
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"Expected a class name as the label of each image. Received: {text!r} among the labels. Correct it."
            )
    return np.array([normalize("NFC", text.strip()) for text in texts])


def as_sets(labels: Any) -> list[frozenset[Any]] | None:
    """Return labels as a set per image, from sets, lists or tuples of names, or of numbers; None for other labels."""
    items = labels.tolist() if getattr(getattr(labels, "dtype", None), "kind", "") == "O" else labels
    if not isinstance(items, list | tuple) or not items:
        return None
    rows = [item.tolist() if isinstance(item, np.ndarray) else item for item in items]
    if not all(isinstance(row, list | tuple | Set) for row in rows):
        return None
    # Rows of numbers with equal lengths are columns of 0 and 1.
    are_sets = any(isinstance(row, Set) for row in rows) or len({*map(len, rows)}) > 1
    if not (are_sets or any(isinstance(one, str) for row in rows for one in row)):
        return None
    sets = [frozenset(_label(one) for one in row) for row in rows]
    if len({type(one) for own in sets for one in own}) > 1:
        raise InputError("Expected the same kind of labels. Received names and numbers. Use one kind.")
    return sets


def _label(value: Any) -> str | int:
    """Return one of several labels as a name or a whole number."""
    if isinstance(value, str) and value.strip():
        return normalize("NFC", value.strip())
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0:
        return int(value)
    raise InputError(
        f"Expected class names, or whole numbers from 0, as the labels of an image. Received: {value!r}. Correct it."
    )


def sets_as_columns(
    given: Mapping[str, Any], class_names: Sequence[str] | None, task: str
) -> tuple[dict[str, Any], Sequence[str] | None]:
    """Return splits whose sets of labels are columns of 0 and 1, and the names of the columns."""
    sets = {
        split: part[1]
        for split, part in given.items()
        if isinstance(part, tuple) and isinstance(part[1], list)
    }
    if not sets:
        return dict(given), class_names
    if task not in ("auto", MULTI):
        raise InputError(
            f"Expected one label per image, for the task {task}. Received a list of labels for each image. Use "
            'task="multi".'
        )
    found = sorted({label for part in sets.values() for own in part for label in own})
    if len({type(label) for label in found}) > 1 or len(sets) < len(given):
        raise InputError(
            "Expected the same kind of labels in every split. Received lists of labels beside others. Use one kind."
        )
    numbers = bool(found) and isinstance(found[0], int)
    names = [*map(str, class_names or (range(max(found, default=-1) + 1) if numbers else found))]
    position = {name: i for i, name in enumerate(names)}
    columns = {}
    for split, part in sets.items():
        columns[split] = np.zeros((len(part), len(names)), "int8")
        for row, own in enumerate(part):
            for label in own:
                if not (label < len(names) if isinstance(label, int) else label in position):
                    raise unknown(
                        "class", str(label), names, hint="It is in the labels but not in class_names."
                    )
                columns[split][row, label if isinstance(label, int) else position[label]] = 1
    return {split: (part[0], columns[split]) for split, part in given.items()}, names
