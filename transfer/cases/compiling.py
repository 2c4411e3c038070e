"""Compile models with the caller's optimizer, loss and metrics, for labels that are integers or one-hot."""

from __future__ import annotations

import logging
import math
from numbers import Real
from types import FunctionType
from typing import Any, TypeAlias

import keras
import numpy as np

from transfer.cases.decisions import find_decision, task_of_model
from transfer.cases.keras_objects import Loss, Metric, name_of, resolve, size_of
from transfer.cases.one_hot import ConvertedMetric, OneHotLoss, converted_metric, new_metric
from transfer.cases.policies import OPTIMIZERS, POLICIES, Case
from transfer.cases.shaped_labels import (
    SHAPED,
    ValueScale,
    is_plain_loss,
    measure,
    metric_in_units,
    shaped_loss,
    shaped_metrics,
    training_loss,
)
from transfer.common.errors import InputError, one_line, unknown
from transfer.common.keras_private import compile_arguments
from transfer.common.tasks import SINGLE, TASK

logger = logging.getLogger(__name__)

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


def head_optimizer(model: keras.Model, *, head_only: bool) -> keras.optimizers.Optimizer:
    """Return a new optimizer for the head: of the model's kind, at the learning rate of a head."""
    if head_only:  # the model's learning rate is for its head
        return new_optimizer(getattr(model.optimizer, "inner_optimizer", model.optimizer), None, 0.0)
    return optimizer_like_before(model, None, POLICIES[Case.SMALL_SIMILAR].learning_rate)


def optimizer_like_before(
    model: keras.Model, learning_rate: float | None, default: float
) -> keras.optimizers.Optimizer:
    """Return a new optimizer of the kind that a model was built or compiled with, or Adam if it was neither."""
    decision = find_decision(model)
    own = getattr(model, "optimizer", None)
    kind: Optimizer = decision.optimizer if decision else ("adam" if own is None else "")
    return new_optimizer(kind or getattr(own, "inner_optimizer", own), learning_rate, default)


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


def as_loss(loss: Loss | None, num_classes: int, task: str = SINGLE) -> Loss:
    """Return a loss for the labels of a task; for integer labels, wrap a loss that takes one-hot labels."""
    if task in SHAPED:
        return shaped_loss(loss, num_classes, task)
    if loss is None or (isinstance(loss, str) and loss.lower() in _ALIASES):
        return DEFAULT_LOSS
    if isinstance(loss, OneHotLoss):
        return loss
    found = resolve("loss", keras.losses, loss)
    if getattr(found, "from_logits", False):
        raise InputError(
            f"Expected a loss of probabilities: the head ends in a softmax. Received: {name_of(loss)} with "
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
            f"{num_classes}) one-hot. Received: {name_of(loss)}, which fails for both: {problems[0]}"
        )
    raise InputError(
        f"Expected a loss that is lower for right predictions than for wrong ones. Received: {name_of(loss)}, which "
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


def as_metrics(metrics: Any, num_classes: int, task: str = SINGLE) -> list[Metric]:
    """Return new metrics for the labels of a task, its own first; wrap those that take one-hot labels."""
    if not isinstance(metrics, list | tuple | None):
        raise InputError(f"Expected metrics as a list, such as metrics=['auc']. Received: {metrics!r}.")
    if task in SHAPED:
        return shaped_metrics(metrics or (), num_classes, task)
    own = [metric for metric in metrics or () if not _is_accuracy(metric)]
    return ["accuracy", *(_as_metric(metric, num_classes) for metric in own)]


def _is_accuracy(metric: Any) -> bool:
    kinds = (keras.metrics.SparseCategoricalAccuracy, keras.metrics.CategoricalAccuracy)
    return metric in ("accuracy", "acc") or (isinstance(metric, kinds) and metric.name == "accuracy")


def _as_metric(metric: Metric, num_classes: int) -> Metric:
    """Return a new metric for integer labels; raise unless its value is one number."""
    found = resolve("metric", keras.metrics, metric)
    name = metric if isinstance(metric, str) else getattr(found, "name", getattr(found, "__name__", ""))
    if name in ("accuracy", "val_accuracy", "loss", "val_loss"):
        raise InputError(
            f"Expected a metric with another name than {name!r}, which `fit` uses itself. Rename it."
        )
    if isinstance(found, ConvertedMetric):
        return new_metric(found)
    if isinstance(metric, str) and not isinstance(found, FunctionType):
        found.name = metric  # Keras numbers the names of equal objects
    problems = []
    for one_hot in (True, False) if _prefers_one_hot(found) else (False, True):
        try:
            converted = converted_metric(new_metric(found), num_classes, one_hot)
            size = size_of(converted, _example(num_classes))
        except Exception as error:  # the metric may raise anything for labels of the other form
            problems.append(one_line(error, most=200))
            continue
        if size != 1:
            raise InputError(
                f"Expected a metric whose value is one number. Received: {name!r}, with {size} values. Average over "
                "the classes, such as F1Score(average='macro')."
            )
        return converted_metric(new_metric(found), num_classes, True) if one_hot else new_metric(metric)
    raise InputError(
        f"Expected a metric of labels and probabilities of shape (batch, {num_classes}). Received: {name!r}, which "
        f"fails: {problems[0]}"
    )


def _example(num_classes: int) -> tuple[Any, Any]:
    """Return a batch of integer labels and random probabilities."""
    labels = np.arange(2 * num_classes) % num_classes
    scores = np.random.default_rng(0).dirichlet(np.ones(num_classes), len(labels)).astype("float32")
    return keras.ops.convert_to_tensor(labels), keras.ops.convert_to_tensor(scores)


def _prefers_one_hot(metric: Any) -> bool:
    """Return whether a metric is one of Keras that takes one-hot labels."""
    kinds = type(metric).__mro__ if isinstance(metric, keras.metrics.Metric) else [metric]
    first = next((kind for kind in kinds if str(kind.__module__).startswith("keras.")), None)
    name = getattr(first, "__name__", "sparse").lower()
    return name not in ("metric", "mean", "sum", "meanmetricwrapper") and "sparse" not in name


def is_default_loss(loss: Any, task: str = SINGLE) -> bool:
    """Return whether a compiled model's loss is the one of its task that the exact solver minimizes."""
    if task in SHAPED:
        return is_plain_loss(loss, task)
    return (isinstance(loss, str) and loss in _ALIASES) or _is_cross_entropy(loss)


def compile_like(
    model: keras.Model,
    other: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    smoothing: float = 0.0,
    soft_labels: bool = False,
    weights: np.ndarray | None = None,
    scale: ValueScale | None = None,
    **options: Any,
) -> None:
    """Compile a model with the loss and new copies of the metrics of another one, possibly for soft labels."""
    # `weights` are those of several labels, see `training_loss`; `scale` is that of standardized values.
    given = {**compile_arguments(other), "optimizer": optimizer}
    classes, task = other.output_shape[-1], task_of_model(other)
    if task in SHAPED:
        given["loss"] = training_loss(given["loss"], task, smoothing=smoothing, weights=weights)
        soft_labels = False  # mixed labels have the form of other labels
    elif smoothing or soft_labels:
        given["loss"] = soft_loss(given["loss"], classes).smoothed(smoothing)
    for name in ("metrics", "weighted_metrics"):
        given[name] = [new_metric(metric) for metric in given[name] or ()]
        if soft_labels:
            given[name] = [_for_soft_labels(metric, classes) for metric in given[name]]
        if scale is not None:
            given[name] = [metric_in_units(metric, scale) for metric in given[name]]
    model.compile(**{**given, **options})


def measure_like(
    model: keras.Model,
    predicted: np.ndarray,
    labels: np.ndarray,
    *,
    smoothing: float = 0.0,
    scale: ValueScale | None = None,
) -> dict[str, float]:
    """Return the loss and the caller's metrics of a compiled model for labels in the shape of the outputs."""
    given, task = compile_arguments(model), task_of_model(model)
    own = [
        new_metric(one) for one in given["metrics"] or () if getattr(one, "name", one) != TASK[task].metric
    ]
    if scale is not None:
        own = [metric_in_units(metric, scale) for metric in own]
    return measure(training_loss(given["loss"], task, smoothing=smoothing), own, predicted, labels)


def soft_loss(loss: Any, num_classes: int) -> OneHotLoss:
    """Return a loss for soft labels; raise if it takes integer labels only."""
    if isinstance(loss, OneHotLoss):
        return loss
    if is_default_loss(loss):
        return OneHotLoss(keras.losses.CategoricalCrossentropy(), num_classes)
    raise InputError(
        "Expected a loss that takes one-hot labels, for label smoothing, MixUp and CutMix. Received: "
        f"{name_of(loss)}, which takes integer labels. Use such a loss, or leave out label_smoothing and mix."
    )


def _for_soft_labels(metric: Metric, num_classes: int) -> Metric:
    """Wrap a metric that takes integer labels; the accuracy takes either."""
    done = (isinstance(metric, str) and _is_accuracy(metric)) or isinstance(metric, ConvertedMetric)
    return metric if done else converted_metric(resolve("metric", keras.metrics, metric), num_classes, False)


def normalize_compilation(model: keras.Model) -> None:
    """Compile a compiled model again if its loss or metrics do not suit its task, or its own metric is missing."""
    given, classes, task = compile_arguments(model), model.output_shape[-1], task_of_model(model)
    loss = given["loss"][0] if isinstance(given["loss"], list) and given["loss"] else given["loss"]
    old = given["metrics"] or []
    old = old if isinstance(old, list | tuple) else [old]
    fitting, metrics = as_loss(loss, classes, task), as_metrics(old, classes, task)
    default = fitting == as_loss(None, classes, task)
    fits = default and not name_of(loss).lower().startswith("categorical")
    if (fits or fitting is loss) and len(old) == len(metrics) and all(map(_are_alike, old, metrics)):
        return
    labels = "labels of this form" if task in SHAPED else "integer labels"
    logger.info(
        "Compiling the model again for %s, with its optimizer, and with the %s as a metric.",
        labels,
        TASK[task].metric_name,
    )
    changes = {"loss": fitting, "metrics": metrics, "optimizer": model.optimizer, "auto_scale_loss": False}
    model.compile(**{**given, **changes})


def _are_alike(first: Any, second: Any) -> bool:
    return type(first) is type(second) if isinstance(first, keras.metrics.Metric) else first == second


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> float:
    """Return the present learning rate of an optimizer, also of one whose variables are on several devices."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
