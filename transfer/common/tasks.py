"""The tasks: what the labels of images are, and how a head predicts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SINGLE, MULTI, ORDINAL, REGRESSION = "single", "multi", "ordinal", "regression"

TASKS = ("auto", SINGLE, MULTI, ORDINAL, REGRESSION)
"""Values of the option `task`. `auto` is `multi` if images have several labels, otherwise `single`."""


LOSSES = ("auto", "huber")
"""Values of the option `loss`. `auto` is the loss of the task; `huber` is for regressions with outliers."""


@dataclass(frozen=True)
class Task:
    """The head of a task, and the metric that summarizes its predictions."""

    # Activation of the Dense layer of the head.
    activation: str
    # Keras' name of the default loss, which the exact solver minimizes.
    loss: str
    # Key of the metric in logs and in `metrics.json`, 1 if all predictions are right.
    metric: str
    # The same metric in words.
    metric_name: str


_CLASSES = Task("softmax", "sparse_categorical_crossentropy", "accuracy", "accuracy")

TASK: dict[str, Task] = {
    SINGLE: _CLASSES,
    ORDINAL: _CLASSES,
    MULTI: Task("sigmoid", "binary_crossentropy", "mean_average_precision", "mean average precision"),
    REGRESSION: Task("linear", "mean_squared_error", "r2", "R2"),
}
"""The properties of each task. The head of ordered classes is that of classes without an order."""


def metric_of_row(row: Mapping[str, Any]) -> Task:
    """Return the task whose metric is in a row of a log; without one, that of single labels."""
    found = (one for one in TASK.values() if {one.metric, f"val_{one.metric}"} & set(row))
    return next(found, TASK[SINGLE])


def score_text(metric: str, value: float) -> str:
    """Return the value of a metric as text: R2 with three digits, others in percent."""
    if value != value:
        return "undefined"
    return f"{value:.3f}" if metric == TASK[REGRESSION].metric else f"{value:.1%}"


PROBABILITIES = "probabilities"
"""Name of the output of a model of classes or labels in files for other runtimes."""


def output_name(task: str) -> str:
    """Return the name of the output of a model in files for other runtimes."""
    return "value" if task == REGRESSION else PROBABILITIES


def outputs_text(task: str, class_names: Sequence[str]) -> str:
    """Return what a model predicts, such as "12 classes", "3 labels" or "the number age"."""
    if task == REGRESSION:
        return f"the number {class_names[0]}"
    return f"{len(class_names):,} {'labels' if task == MULTI else 'classes'}"
