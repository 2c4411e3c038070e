"""Compile models with the caller's optimizer, loss and metrics, for labels that are integers or one-hot."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from numbers import Real
from types import FunctionType
from typing import Any, TypeAlias

import keras
import numpy as np

from transfer.cases.policies import OPTIMIZERS
from transfer.common.errors import InputError, one_line, unknown
from transfer.common.keras_private import compile_arguments

logger = logging.getLogger(__name__)

Loss: TypeAlias = str | keras.losses.Loss | Callable[[Any, Any], Any]
Metric: TypeAlias = str | keras.metrics.Metric | Callable[[Any, Any], Any]
Optimizer: TypeAlias = str | keras.optimizers.Optimizer

DEFAULT_LOSS = "sparse_categorical_crossentropy"
"""The cross-entropy in nats: the loss that the exact solver minimizes."""

_ALIASES = ("crossentropy", "ce", DEFAULT_LOSS, "categorical_crossentropy")  # equal for integer labels

_OPTIMIZERS: dict[str, type[keras.optimizers.Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(keras.optimizers).items()
    if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    if name not in ("Optimizer", "LossScaleOptimizer")
}


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
        labels = _one_hot(y_true, self.num_classes, y_pred.dtype)
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
        labels = _labels(y_true, self.num_classes, self.one_hot)
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


def _one_hot(labels: Any, num_classes: int, dtype: Any) -> Any:
    """Return integer labels, of shape (batch,) or (batch, 1), as one-hot labels; leave soft labels as they are."""
    if len(labels.shape) > 1 and not labels.shape[-1] == 1 != num_classes:
        return keras.ops.cast(labels, dtype)
    numbers = keras.ops.cast(keras.ops.reshape(labels, (-1,)), "int32")
    return keras.ops.one_hot(numbers, num_classes, dtype=dtype)


def check_learning_rate(learning_rate: float | None) -> None:
    """Raise if a learning rate is given that is not a number above 0."""
    if learning_rate is None:
        return
    if not isinstance(learning_rate, Real) or not 0 < learning_rate < math.inf:
        raise InputError(f"Expected a learning rate, a number above 0. Received: {learning_rate!r}.")


def new_optimizer(
    optimizer: Optimizer, learning_rate: float | None, default: float
) -> keras.optimizers.Optimizer:
    """Return a new optimizer of a kind; Adam has the default learning rate, others that of their settings."""
    if isinstance(optimizer, str):
        kind = _OPTIMIZERS[check_optimizer(optimizer)]
        rate: Any = {"learning_rate": default} if issubclass(kind, keras.optimizers.Adam) else {}
        rate |= OPTIMIZERS.get(optimizer.lower(), {})
        return kind(**rate if learning_rate is None else {**rate, "learning_rate": learning_rate})
    config = optimizer.get_config()
    if learning_rate is not None:
        inner = config.get("inner_optimizer")  # of a LossScaleOptimizer
        (inner["config"] if inner else config)["learning_rate"] = learning_rate
    try:
        return type(optimizer).from_config(config)
    except Exception as error:  # the optimizer's own code may raise anything
        raise InputError(
            f"The optimizer {type(optimizer).__name__} cannot be copied from its get_config(): {one_line(error)}. "
            "Return all arguments of __init__ from get_config(), and register classes of your own with "
            "keras.saving.register_keras_serializable."
        ) from error


def check_optimizer(optimizer: Optimizer) -> str:
    """Return the name of an optimizer in lower case, or "" for an optimizer object; raise for anything else."""
    if isinstance(optimizer, str):
        if optimizer.lower() not in _OPTIMIZERS:
            raise unknown("optimizer", optimizer, _OPTIMIZERS)
        return optimizer.lower()
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise InputError(
            "Expected optimizer as a name, such as 'adam', or a keras.optimizers.Optimizer. Received: "
            f"{optimizer!r}."
        )
    return ""


def as_loss(loss: Loss | None, num_classes: int) -> Loss:
    """Return a loss for integer labels: a loss that takes one-hot labels is wrapped."""
    if loss is None or (isinstance(loss, str) and loss.lower() in _ALIASES):
        return DEFAULT_LOSS
    if isinstance(loss, OneHotLoss):
        return loss
    found = _resolve("loss", keras.losses, loss)
    if getattr(found, "from_logits", False):
        raise InputError(
            f"Expected a loss of probabilities: the head ends in a softmax. Received: {_name_of(loss)} with "
            "from_logits=True. Leave from_logits out."
        )
    if _is_cross_entropy(found):
        return DEFAULT_LOSS
    problems = []
    for one_hot in (False, True):
        try:
            if _is_lower_for_right_labels(found, num_classes, one_hot):
                return OneHotLoss(found, num_classes) if one_hot else loss
        except Exception as error:  # the loss may raise anything for labels of the other form
            problems.append(one_line(error, most=200))
    if len(problems) == 2:
        raise InputError(
            f"Expected a loss of labels and probabilities: labels of shape (batch, 1) with integers, or (batch, "
            f"{num_classes}) one-hot. Received: {_name_of(loss)}, which fails for both: {problems[0]}"
        )
    raise InputError(
        f"Expected a loss that is lower for right predictions than for wrong ones. Received: {_name_of(loss)}, which "
        "is not, with integer or with one-hot labels. Define it as loss(labels, probabilities), with probabilities of "
        f"shape (batch, {num_classes})."
    )


def _is_cross_entropy(loss: Any) -> bool:
    """Return whether a loss object or function is the plain cross-entropy."""
    functions = [keras.losses.get(name) for name in (DEFAULT_LOSS, "categorical_crossentropy")]
    kinds = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
    if type(loss) not in kinds:
        return loss in functions
    config, plain = loss.get_config(), type(loss)().get_config()
    return all(config[name] == plain[name] for name in config if name != "name")


def _is_lower_for_right_labels(loss: Any, num_classes: int, one_hot: bool) -> bool:
    """Return whether a loss is lower for right than for wrong labels of a form, in examples of three classes."""
    # A loss for labels of the other form raises an error, or broadcasts them: then it is equal on average.
    chosen = range(min(3, num_classes))
    right: list[float] = []
    wrong: list[float] = []
    for predicted in chosen:
        scores = np.full((1, num_classes), 1e-3 / (num_classes - 1), "float32")
        scores[0, predicted] = 1 - 1e-3
        for label in chosen:
            labels = np.eye(num_classes, dtype="float32")[[label]] if one_hot else np.array([[label]])
            values = loss(keras.ops.convert_to_tensor(labels), keras.ops.convert_to_tensor(scores))
            cost = float(np.mean(keras.ops.convert_to_numpy(values)))
            (right if label == predicted else wrong).append(cost)
    low, high = np.mean(right), np.mean(wrong)
    return bool(low < high - 1e-3 * max(abs(low), abs(high)))


def as_metrics(metrics: Any, num_classes: int) -> list[Metric]:
    """Return new metrics for integer labels, the accuracy first; metrics that take one-hot labels are wrapped."""
    if not isinstance(metrics, list | tuple | None):
        raise InputError(f"Expected metrics as a list, such as metrics=['auc']. Received: {metrics!r}.")
    own = [metric for metric in metrics or () if not _is_accuracy(metric)]
    return ["accuracy", *(_as_metric(metric, num_classes) for metric in own)]


def _is_accuracy(metric: Any) -> bool:
    kinds = (keras.metrics.SparseCategoricalAccuracy, keras.metrics.CategoricalAccuracy)
    return metric in ("accuracy", "acc") or (isinstance(metric, kinds) and metric.name == "accuracy")


def _as_metric(metric: Metric, num_classes: int) -> Metric:
    """Return a new metric for integer labels; raise unless its value is one number."""
    found = _resolve("metric", keras.metrics, metric)
    name = metric if isinstance(metric, str) else getattr(found, "name", getattr(found, "__name__", ""))
    if name in ("accuracy", "val_accuracy", "loss", "val_loss"):
        raise InputError(
            f"Expected a metric with another name than {name!r}, which `fit` uses itself. Rename it."
        )
    if isinstance(found, ConvertedMetric):
        return _new_metric(found)
    if isinstance(metric, str) and not isinstance(found, FunctionType):
        found.name = metric  # Keras numbers the names of equal objects
    problems = []
    for one_hot in (True, False) if _prefers_one_hot(found) else (False, True):
        try:
            size = _size_of(_converted(_new_metric(found), num_classes, one_hot), num_classes)
        except Exception as error:  # the metric may raise anything for labels of the other form
            problems.append(one_line(error, most=200))
            continue
        if size != 1:
            raise InputError(
                f"Expected a metric whose value is one number. Received: {name!r}, with {size} values. Average over "
                "the classes, such as F1Score(average='macro')."
            )
        return _converted(_new_metric(found), num_classes, True) if one_hot else _new_metric(metric)
    raise InputError(
        f"Expected a metric of labels and probabilities of shape (batch, {num_classes}). Received: {name!r}, which "
        f"fails: {problems[0]}"
    )


def _size_of(metric: Any, num_classes: int) -> int:
    """Return how many numbers the value of a metric has, after a batch of integer labels."""
    labels = np.arange(2 * num_classes) % num_classes
    scores = np.random.default_rng(0).dirichlet(np.ones(num_classes), len(labels)).astype("float32")
    batch = keras.ops.convert_to_tensor(labels), keras.ops.convert_to_tensor(scores)
    if isinstance(metric, keras.metrics.Metric):
        metric.update_state(*batch)
        return int(np.size(keras.ops.convert_to_numpy(metric.result())))
    return int(np.size(keras.ops.convert_to_numpy(keras.ops.mean(metric(*batch)))))


def _prefers_one_hot(metric: Any) -> bool:
    """Return whether a metric is one of Keras that takes one-hot labels."""
    kinds = type(metric).__mro__ if isinstance(metric, keras.metrics.Metric) else [metric]
    first = next((kind for kind in kinds if str(kind.__module__).startswith("keras.")), None)
    name = getattr(first, "__name__", "sparse").lower()
    return name not in ("metric", "mean", "sum", "meanmetricwrapper") and "sparse" not in name


def _converted(metric: Any, num_classes: int, one_hot: bool) -> Any:
    """Wrap a metric so that it takes integer and soft labels, and gets one-hot labels or integers."""
    if isinstance(metric, keras.metrics.Metric):
        return ConvertedMetric(metric, num_classes, one_hot)

    def converted(y_true: Any, y_pred: Any) -> Any:
        return metric(_labels(y_true, num_classes, one_hot), y_pred)

    converted.__name__ = getattr(metric, "__name__", "metric")
    return converted


def _labels(labels: Any, num_classes: int, one_hot: bool) -> Any:
    soft = _one_hot(labels, num_classes, "float32")
    return soft if one_hot else keras.ops.argmax(soft, axis=-1)


def _new_metric(metric: Any) -> Any:
    """Return a metric of the same configuration, without its state; names and functions have none."""
    if isinstance(metric, ConvertedMetric):
        return ConvertedMetric(_new_metric(metric.metric), metric.num_classes, metric.one_hot)
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def _resolve(what: str, module: Any, given: Any) -> Any:
    """Return the loss or metric that a name, an object, a class or a function stands for."""
    found = given
    if isinstance(given, str):
        try:
            found = module.get(given)
        except ValueError:
            found = None
        if found is None:
            names = [name for name, value in vars(module).items() if callable(value) and name.islower()]
            names = [name for name in names if name not in ("get", "serialize", "deserialize")]
            raise unknown(what, given, [*["accuracy"] * (what == "metric"), *names])
    if isinstance(found, type):
        found = found()
    if not callable(found):  # objects of Keras are callable too
        raise InputError(
            f"Expected {what} as a name, an object or a function of Keras, or your own. Received: {given!r}."
        )
    return found


def _name_of(loss: Any) -> str:
    return str(getattr(loss, "__name__", loss if isinstance(loss, str) else type(loss).__name__))


def is_default_loss(loss: Any) -> bool:
    """Return whether a compiled model's loss is the cross-entropy that the exact solver minimizes."""
    return (isinstance(loss, str) and loss in _ALIASES) or _is_cross_entropy(loss)


def compile_like(
    model: keras.Model,
    other: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    smoothing: float = 0.0,
    soft_labels: bool = False,
    **options: Any,
) -> None:
    """Compile a model with the loss and new copies of the metrics of another one, possibly for soft labels."""
    given = {**compile_arguments(other), "optimizer": optimizer}
    classes = other.output_shape[-1]
    if smoothing or soft_labels:
        given["loss"] = soft_loss(given["loss"], classes).smoothed(smoothing)
    for name in ("metrics", "weighted_metrics"):
        given[name] = [_new_metric(metric) for metric in given[name] or ()]
        if soft_labels:
            given[name] = [_for_soft_labels(metric, classes) for metric in given[name]]
    model.compile(**{**given, **options})


def soft_loss(loss: Any, num_classes: int) -> OneHotLoss:
    """Return a loss for soft labels; raise if it takes integer labels only."""
    if isinstance(loss, OneHotLoss):
        return loss
    if is_default_loss(loss):
        return OneHotLoss(keras.losses.CategoricalCrossentropy(), num_classes)
    raise InputError(
        "Expected a loss that takes one-hot labels, for label smoothing, MixUp and CutMix. Received: "
        f"{_name_of(loss)}, which takes integer labels. Use such a loss, or leave out label_smoothing and mix."
    )


def _for_soft_labels(metric: Metric, num_classes: int) -> Metric:
    """Wrap a metric that takes integer labels; the accuracy takes either."""
    done = (isinstance(metric, str) and _is_accuracy(metric)) or isinstance(metric, ConvertedMetric)
    return metric if done else _converted(_resolve("metric", keras.metrics, metric), num_classes, False)


def normalize_compilation(model: keras.Model) -> None:
    """Compile a compiled model again if its loss or metrics do not fit integer labels, or the accuracy is missing."""
    given, classes = compile_arguments(model), model.output_shape[-1]
    loss = given["loss"][0] if isinstance(given["loss"], list) and given["loss"] else given["loss"]
    old = given["metrics"] or []
    old = old if isinstance(old, list | tuple) else [old]
    fitting, metrics = as_loss(loss, classes), as_metrics(old, classes)
    sparse = fitting == DEFAULT_LOSS and not _name_of(loss).lower().startswith("categorical")
    fits = (sparse or fitting is loss) and len(old) == len(metrics)
    if fits and all(map(_are_alike, old, metrics)):
        return
    logger.info(
        "Compiling the model again for integer labels, with its optimizer, and with the accuracy as a metric."
    )
    changes = {"loss": fitting, "metrics": metrics, "optimizer": model.optimizer, "auto_scale_loss": False}
    model.compile(**{**given, **changes})


def _are_alike(first: Any, second: Any) -> bool:
    return type(first) is type(second) if isinstance(first, keras.metrics.Metric) else first == second


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> float:
    """Return the present learning rate of an optimizer, also of one whose variables are on several devices."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
