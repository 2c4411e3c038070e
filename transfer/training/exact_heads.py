"""Solve the head of each task exactly, and put its results into a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from transfer.cases.compiling import compile_like
from transfer.cases.shaped_labels import ValueScale
from transfer.common.keras_private import compile_arguments
from transfer.common.label_metrics import label_thresholds
from transfer.common.tasks import MULTI, REGRESSION
from transfer.frozen import heads
from transfer.frozen.extraction import Features
from transfer.frozen.label_heads import solve_labels
from transfer.frozen.ridge import solve_ridge
from transfer.training.measures import measure
from transfer.training.phases import TrainingLog, TrainingSettings

Arrays = dict[str, np.ndarray]


def solve_head(
    settings: TrainingSettings, features: dict[str, Features], labels: Arrays
) -> tuple[list[np.ndarray], TrainingLog]:
    """Solve the head exactly, and choose its regularization; return its weights and a log with one row."""
    x = {name: part.load() for name, part in features.items()}
    train = settings.data.train
    views = len(labels["train"]) // len(train)
    # Views of one image stay in one fold of the cross-validation.
    groups = train.groups or (range(len(train)) if views > 1 else ())
    solve = {MULTI: _solve_labels, REGRESSION: _solve_values}.get(settings.data.task, _solve_classes)
    return solve(settings, x, labels, [*groups] * views)


def _solve_classes(
    settings: TrainingSettings, x: Arrays, labels: Arrays, groups: Sequence[Any]
) -> tuple[list[np.ndarray], TrainingLog]:
    head = heads.solve(
        x["train"],
        labels["train"],
        settings.data.num_classes,
        val=(x["val"], labels["val"]) if "val" in x else None,
        class_weights=settings.class_weights,
        groups=groups,
        seed=settings.seed,
    )
    row: dict[str, Any] = {"phase": "head", "epoch": 1}
    for name, prefix in (("train", ""), ("val", "val_")):
        if name in x:
            values = head.measure(x[name], labels[name])
            values |= _own_metrics(settings, head.probabilities(x[name]), labels[name])
            row |= {f"{prefix}{key}": value for key, value in values.items()}
    tried_on = head.chosen_by if head.tried else ""
    log = TrainingLog(
        [row],
        regularization=head.regularization,
        head_method=head.method,
        tried=head.tried,
        tried_on=tried_on,
    )
    return [head.kernel, head.bias], log


def _own_metrics(
    settings: TrainingSettings, probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Return the metrics of the caller, for probabilities of all images."""
    if set(compile_arguments(settings.model)["metrics"] or ()) <= {"accuracy"}:
        return {}
    given = keras.Input(probabilities.shape[1:])
    same = keras.Model(given, keras.layers.Identity()(given))
    compile_like(same, settings.model, keras.optimizers.SGD())
    values = same.evaluate(probabilities.astype("float32"), labels, verbose=0, return_dict=True)
    return {name: value for name, value in values.items() if name not in ("loss", "accuracy")}


def _solve_labels(
    settings: TrainingSettings, x: Arrays, labels: Arrays, groups: Sequence[Any]
) -> tuple[list[np.ndarray], TrainingLog]:
    """Solve a logistic regression per label; its out-of-fold probabilities set the thresholds."""
    balanced = settings.label_weights is not None
    head = solve_labels(x["train"], labels["train"], balanced=balanced, groups=groups, seed=settings.seed)
    row = _measured(settings, {name: head.probabilities(part) for name, part in x.items()}, labels)
    log = TrainingLog(
        [row],
        regularization=float(np.median(head.regularization)),
        thresholds=label_thresholds(head.out_of_fold, labels["train"]).tolist(),
    )
    return [head.kernel, head.bias], log


def _solve_values(
    settings: TrainingSettings, x: Arrays, labels: Arrays, groups: Sequence[Any]
) -> tuple[list[np.ndarray], TrainingLog]:
    """Solve a ridge regression in the units of the values; `labels` are standardized."""
    scale, values = settings.value_scale or ValueScale(), settings.data.train.labels
    values = np.tile(values, len(x["train"]) // len(values))
    head = solve_ridge(x["train"], values, groups=groups, seed=settings.seed)
    predicted = {name: scale.standardized(head.predict(part))[:, None] for name, part in x.items()}
    log = TrainingLog(
        [_measured(settings, predicted, labels)],
        regularization=head.regularization,
        head_method="ridge",
        tried=head.tried,
        tried_on="cross-validation",
    )
    return [head.kernel, head.bias], log


def _measured(settings: TrainingSettings, predicted: Arrays, labels: Arrays) -> dict[str, Any]:
    """Return the row of a head by its predictions of the training and validation images."""
    row: dict[str, Any] = {"phase": "head", "epoch": 1}
    for name, prefix in (("train", ""), ("val", "val_")):
        if name in predicted:
            values = measure(settings, predicted[name], labels[name])
            row |= {f"{prefix}{key}": value for key, value in values.items()}
    return row
