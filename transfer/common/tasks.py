"""The tasks: what the labels of images are, and how a head predicts them."""

from __future__ import annotations

from dataclasses import dataclass

SINGLE, MULTI, ORDINAL, REGRESSION = "single", "multi", "ordinal", "regression"

TASKS = ("auto", SINGLE, MULTI, ORDINAL, REGRESSION)
"""Values of the option `task`. `auto` decides by the labels, for `single` or `multi`."""


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
