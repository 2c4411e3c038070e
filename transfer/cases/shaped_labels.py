"""Losses and metrics for labels in the shape of the outputs: several labels per image, and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transfer.cases.keras_objects import Loss, Metric, name_of, resolve, size_of
from transfer.cases.one_hot import new_metric
from transfer.common.errors import InputError, one_line
from transfer.common.tasks import MULTI, REGRESSION, TASK

SHAPED = (MULTI, REGRESSION)
"""Tasks whose labels have the shape of the outputs: (batch, labels) or (batch, 1)."""

_ALIASES = {
    MULTI: ("bce", "binary_crossentropy"),
    REGRESSION: ("mse", "mean_squared_error"),
}
_PLAIN = {MULTI: keras.losses.BinaryCrossentropy, REGRESSION: keras.losses.MeanSquaredError}


@dataclass(frozen=True)
class ValueScale:
    """Mean and standard deviation of the training values. `fit` scales the values to mean 0 and deviation 1."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, values: np.ndarray) -> ValueScale:
        """Return the scale of some values; the deviation of constant values is 1."""
        return cls(float(values.mean()), float(values.std()) or 1.0)

    def standardized(self, values: np.ndarray) -> np.ndarray:
        """Return values in standard deviations from the mean."""
        return (values - self.mean) / self.deviation

    def in_units(self, values: Any) -> Any:
        """Return standardized values in their units."""
        return values * self.deviation + self.mean


@keras.saving.register_keras_serializable("transfer")
class BalancedLoss(keras.losses.Loss):
    """Binary cross-entropy in which images with and without each label have the given weights."""

    def __init__(
        self, weights: Sequence[float], opposite: Sequence[float], smoothing: float = 0.0, **options: Any
    ) -> None:
        super().__init__(**{"name": "balanced_binary_crossentropy", **options})
        self.weights, self.opposite, self.smoothing = list(weights), list(opposite), smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each image."""
        ops, labels = keras.ops, keras.ops.cast(y_true, y_pred.dtype)
        weight = labels * ops.convert_to_tensor(self.weights, y_pred.dtype)
        weight += (1 - labels) * ops.convert_to_tensor(self.opposite, y_pred.dtype)
        smooth = labels * (1 - self.smoothing) + self.smoothing / 2
        return ops.mean(weight * ops.binary_crossentropy(smooth, y_pred), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        own = {"weights": self.weights, "opposite": self.opposite, "smoothing": self.smoothing}
        return {**super().get_config(), **own}


class MetricInUnits(keras.metrics.Metric):
    """A metric of standardized values and predictions, measured in the units of the values."""

    def __init__(self, metric: keras.metrics.Metric, scale: ValueScale) -> None:
        super().__init__(name=metric.name)
        self.metric, self.scale = metric, scale

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch."""
        values = self.scale.in_units(y_true), self.scale.in_units(y_pred)
        self.metric.update_state(*values, sample_weight=sample_weight)

    def result(self) -> Any:
        """Return the value of the metric."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Forget all batches."""
        self.metric.reset_state()


def own_metric(task: str) -> keras.metrics.Metric:
    """Return the metric that `fit` always measures, a Keras class: models load without this package."""
    name = TASK[task].metric
    if task == REGRESSION:
        return keras.metrics.R2Score(name=name)
    return keras.metrics.AUC(curve="PR", multi_label=True, name=name)


def is_plain_loss(loss: Any, task: str) -> bool:
    """Return whether a loss is the default of its task."""
    if isinstance(loss, str):
        return loss.lower() in _ALIASES[task]
    if type(loss) is not _PLAIN[task]:
        return loss is keras.losses.get(TASK[task].loss)
    config, plain = loss.get_config(), _PLAIN[task]().get_config()
    return all(config[name] == plain[name] for name in config if name != "name")


def shaped_loss(loss: Loss | None, count: int, task: str) -> Loss:
    """Return a loss for labels in the shape of the outputs, with `count` outputs; raise unless it suits the task."""
    if loss is None or is_plain_loss(loss, task):
        return TASK[task].loss
    found = resolve("loss", keras.losses, loss)
    if getattr(found, "from_logits", False):
        raise InputError(
            f"Expected a loss of probabilities: the head ends in a sigmoid. Received: {name_of(loss)} with "
            "from_logits=True. Leave from_logits out."
        )
    try:
        suits = _is_lower_for_right(found, count, task)
        moves = task == REGRESSION and not _ignores_shift(found)
    except Exception as error:  # the loss may raise anything for labels of another form
        raise InputError(
            f"Expected a loss of labels and predictions of shape (batch, {count}). Received: {name_of(loss)}, which "
            f"fails: {one_line(error, most=200)}"
        ) from error
    if not suits:
        raise InputError(
            f"Expected a loss that is lower for right predictions than for wrong ones. Received: {name_of(loss)}, "
            f"which is not. Define it as loss(labels, predictions), both of shape (batch, {count})."
        )
    if moves:
        raise InputError(
            "Expected a loss of the differences between values and predictions, since fit trains on standardized "
            f"values. Received: {name_of(loss)}, which changes with the values. Use 'mse', 'mae' or 'huber'."
        )
    return loss


def _cost(loss: Any, labels: np.ndarray, predicted: np.ndarray) -> float:
    tensors = (keras.ops.convert_to_tensor(part.astype("float32")) for part in (labels, predicted))
    return float(np.mean(keras.ops.convert_to_numpy(loss(*tensors))))


def _is_lower_for_right(loss: Any, count: int, task: str) -> bool:
    """Return whether a loss is lower for right than for wrong predictions of a few examples."""
    if task == REGRESSION:
        labels = np.array([[1.0], [2.0], [4.0]])
        low, high = _cost(loss, labels, labels), _cost(loss, labels, labels[::-1] + 1)
    else:
        labels = (np.arange(4)[:, None] + np.arange(count)) % 2
        right = np.where(labels, 0.999, 0.001)
        low, high = _cost(loss, labels, right), _cost(loss, labels, 1 - right)
    return low < high - 1e-3 * max(abs(low), abs(high))


def _ignores_shift(loss: Any) -> bool:
    """Return whether a loss is the same if a number is added to values and predictions."""
    labels, predicted = np.array([[1.0], [2.0], [4.0]]), np.array([[1.5], [2.25], [2.0]])
    near, far = _cost(loss, labels, predicted), _cost(loss, labels + 8, predicted + 8)
    return bool(np.isclose(near, far, rtol=1e-3))


def shaped_metrics(metrics: Sequence[Metric], count: int, task: str) -> list[Metric]:
    """Return new metrics for labels in the shape of the outputs, that of the task first."""
    own = [one for one in metrics if getattr(one, "name", one) != TASK[task].metric]
    return [own_metric(task), *(_checked_metric(one, count, task) for one in own)]


def _checked_metric(metric: Metric, count: int, task: str) -> Metric:
    """Return a new metric; raise unless its value is one number."""
    found = resolve("metric", keras.metrics, metric)
    name = metric if isinstance(metric, str) else getattr(found, "name", getattr(found, "__name__", ""))
    if name in ("accuracy", "acc", "val_accuracy", "loss", "val_loss", f"val_{TASK[task].metric}"):
        advice = "Use 'binary_accuracy'." if task == MULTI else "Use 'mae'."
        raise InputError(
            f"Expected a metric of the task {task} with a name of its own. Received: {name!r}. {advice}"
        )
    if isinstance(found, keras.metrics.Metric) and isinstance(metric, str):
        found.name = metric  # Keras numbers the names of equal objects
    labels = (np.arange(8)[:, None] + np.arange(count)) % 2
    random = np.random.default_rng(0).random(labels.shape)
    batch = [keras.ops.convert_to_tensor(part, "float32") for part in (labels, random)]
    try:
        size = size_of(new_metric(found), batch)
    except Exception as error:  # the metric may raise anything
        raise InputError(
            f"Expected a metric of labels and predictions of shape (batch, {count}). Received: {name!r}, which fails: "
            f"{one_line(error, most=200)}"
        ) from error
    if size != 1:
        raise InputError(
            f"Expected a metric whose value is one number. Received: {name!r}, with {size} values. Average over the "
            "labels, such as F1Score(average='macro')."
        )
    return new_metric(found)


def training_loss(
    loss: Loss, task: str, *, smoothing: float = 0.0, weights: np.ndarray | None = None
) -> Loss:
    """Return a loss with label smoothing, and with weights of images with and without each label, shape (2, labels)."""
    if not smoothing and weights is None:
        return loss
    if task == REGRESSION or not is_plain_loss(loss, task):
        what = "label_smoothing" if smoothing else "class_weights"
        raise InputError(
            f"Expected no {what} with a loss of your own or a regression. Received: loss {name_of(loss)}, task {task}. "
            f"Leave {what} out."
        )
    if weights is None:
        return keras.losses.BinaryCrossentropy(label_smoothing=smoothing)
    return BalancedLoss(weights[0].tolist(), weights[1].tolist(), smoothing)


def metric_in_units(metric: Metric, scale: ValueScale) -> Metric:
    """Return a metric of standardized values that is measured in their units."""
    found = resolve("metric", keras.metrics, metric)
    if isinstance(found, keras.metrics.Metric):
        found.name = metric if isinstance(metric, str) else found.name
        return MetricInUnits(found, scale)

    def in_units(y_true: Any, y_pred: Any) -> Any:
        return found(scale.in_units(y_true), scale.in_units(y_pred))

    in_units.__name__ = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return in_units


def measure(
    loss: Loss, metrics: Sequence[Metric], predicted: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Return the loss and the new metrics of the predictions of all images, by their names in logs."""
    batch = [keras.ops.convert_to_tensor(part.astype("float32")) for part in (labels, predicted)]
    functions = {"loss": resolve("loss", keras.losses, loss)}
    for one in metrics:
        name = one if isinstance(one, str) else getattr(one, "name", getattr(one, "__name__", "metric"))
        functions[name] = resolve("metric", keras.metrics, one)
    values = {name: function(*batch) for name, function in functions.items()}
    return {name: float(keras.ops.convert_to_numpy(keras.ops.mean(one))) for name, one in values.items()}
