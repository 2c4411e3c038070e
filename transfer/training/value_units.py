"""Train regressions on standardized values, so that the result does not depend on the units of the values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from transfer.cases.shaped_labels import ValueScale
from transfer.networks import surgery


def to_units(weights: list[np.ndarray], scale: ValueScale) -> list[np.ndarray]:
    """Convert the last kernel and bias of a head from standardized values to the units of the values."""
    *others, kernel, bias = weights
    return [*others, kernel * scale.deviation, scale.in_units(bias.astype("float64")).astype("float32")]


def to_standardized(weights: list[np.ndarray], scale: ValueScale) -> list[np.ndarray]:
    """Convert the last kernel and bias of a head from the units of the values to standardized values."""
    *others, kernel, bias = weights
    return [*others, kernel / scale.deviation, scale.standardized(bias.astype("float64")).astype("float32")]


@contextlib.contextmanager
def standardized_head(model: keras.Model, scale: ValueScale | None, *, fresh: bool) -> Iterator[None]:
    """Convert a head to standardized values for a `with` block, and back; a fresh head needs only the way back."""
    layer = None if scale is None else surgery.output_layer(model.layers[-1])
    if layer is None or scale is None:
        yield
        return
    if not fresh:
        layer.set_weights(to_standardized(layer.get_weights(), scale))
    try:
        yield
    finally:
        layer.set_weights(to_units(layer.get_weights(), scale))
