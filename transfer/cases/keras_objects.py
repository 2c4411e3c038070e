"""Losses and metrics of Keras by name, object or function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from transfer.common.errors import InputError, unknown

Loss: TypeAlias = str | keras.losses.Loss | Callable[[Any, Any], Any]
Metric: TypeAlias = str | keras.metrics.Metric | Callable[[Any, Any], Any]


def resolve(what: str, module: Any, given: Any) -> Any:
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


def name_of(loss: Any) -> str:
    """Return the name of a loss for messages."""
    return str(getattr(loss, "__name__", loss if isinstance(loss, str) else type(loss).__name__))


def size_of(metric: Any, batch: Sequence[Any]) -> int:
    """Return how many numbers the value of a metric has, after a batch of labels and predictions."""
    if isinstance(metric, keras.metrics.Metric):
        metric.update_state(*batch)
        return int(np.size(keras.ops.convert_to_numpy(metric.result())))
    return int(np.size(keras.ops.convert_to_numpy(keras.ops.mean(metric(*batch)))))
