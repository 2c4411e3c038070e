"""Losses and metrics for integer labels that need one-hot labels, or the reverse."""

from __future__ import annotations

from typing import Any

import keras

from transfer.cases.keras_objects import Loss


@keras.saving.register_keras_serializable("transfer")
class OneHotLoss(keras.losses.Loss):
    """Compute a loss on one-hot labels: it converts integer labels, and applies label smoothing."""

    def __init__(self, loss: Loss, num_classes: int, smoothing: float = 0.0, **options: Any) -> None:
        form = {name: getattr(loss, name) for name in ("name", "reduction", "dtype") if hasattr(loss, name)}
        super().__init__(**{"name": getattr(loss, "__name__", None), **form, **options})
        self.loss: Any = loss
        self.num_classes, self.smoothing = num_classes, smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each image."""
        # Szegedy et al. (2016), arXiv:1512.00567.
        labels = to_one_hot(y_true, self.num_classes, y_pred.dtype)
        labels = labels * (1 - self.smoothing) + self.smoothing / self.num_classes
        return self.loss.call(labels, y_pred) if hasattr(self.loss, "call") else self.loss(labels, y_pred)

    def smoothed(self, smoothing: float) -> OneHotLoss:
        """Return the same loss with label smoothing, from 0 to below 1."""
        return OneHotLoss(self.loss, self.num_classes, smoothing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        own = {"loss": self.loss, "num_classes": self.num_classes, "smoothing": self.smoothing}
        return {**super().get_config(), **own, "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OneHotLoss:
        """Build the loss from its configuration."""
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})


@keras.saving.register_keras_serializable("transfer")
class ConvertedMetric(keras.metrics.Metric):
    """Convert labels of either form to the form that a metric takes: one-hot or integers."""

    def __init__(self, metric: keras.metrics.Metric, num_classes: int, one_hot: bool, **options: Any) -> None:
        super().__init__(**{"name": metric.name, **options})
        self.metric, self.num_classes, self.one_hot = metric, num_classes, one_hot

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch."""
        labels = as_labels(y_true, self.num_classes, self.one_hot)
        self.metric.update_state(labels, y_pred, sample_weight=sample_weight)

    def result(self) -> Any:
        """Return the value of the metric."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Forget all batches."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        own = {"num_classes": self.num_classes, "one_hot": self.one_hot}
        return {**super().get_config(), **own, "metric": keras.saving.serialize_keras_object(self.metric)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ConvertedMetric:
        """Build the metric from its configuration."""
        return cls(**{**config, "metric": keras.saving.deserialize_keras_object(config["metric"])})


def to_one_hot(labels: Any, num_classes: int, dtype: Any) -> Any:
    """Return integer labels, of shape (batch,) or (batch, 1), as one-hot labels; leave soft labels as they are."""
    if len(labels.shape) > 1 and not labels.shape[-1] == 1 != num_classes:
        return keras.ops.cast(labels, dtype)
    numbers = keras.ops.cast(keras.ops.reshape(labels, (-1,)), "int32")
    return keras.ops.one_hot(numbers, num_classes, dtype=dtype)


def as_labels(labels: Any, num_classes: int, one_hot: bool) -> Any:
    """Return labels of either form as one-hot labels or as integers."""
    soft = to_one_hot(labels, num_classes, "float32")
    return soft if one_hot else keras.ops.argmax(soft, axis=-1)


def converted_metric(metric: Any, num_classes: int, one_hot: bool) -> Any:
    """Wrap a metric so that it takes integer and soft labels, and gets one-hot labels or integers."""
    if isinstance(metric, keras.metrics.Metric):
        return ConvertedMetric(metric, num_classes, one_hot)

    def converted(y_true: Any, y_pred: Any) -> Any:
        return metric(as_labels(y_true, num_classes, one_hot), y_pred)

    converted.__name__ = getattr(metric, "__name__", "metric")
    return converted


def new_metric(metric: Any) -> Any:
    """Return a metric of the same configuration, without its state; names and functions have none."""
    if isinstance(metric, ConvertedMetric):
        return ConvertedMetric(new_metric(metric.metric), metric.num_classes, metric.one_hot)
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric
