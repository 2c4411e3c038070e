"""Create the variables of new layers with given values: random values that are replaced later cost time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

FindValue = Callable[[str, tuple[int, ...]], np.ndarray | None]
"""Returns the value of a layer's variable by its name and its shape, or None for the value of its initializer."""

# These layers do not change their variables after they create them.
_PLAIN = (
    keras.layers.BatchNormalization,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.LayerNormalization,
)


@contextlib.contextmanager
def initial_values(layer: keras.layers.Layer, find: FindValue) -> Iterator[list[str]]:
    """Set the values of the variables that a layer creates in a `with` block; yield the names of those found."""
    create = layer.add_weight
    found: list[str] = []

    def add_weight(*args: Any, **options: Any) -> Any:
        name, shape = options.get("name"), options.get("shape")
        value = None if name is None or shape is None else find(name, tuple(shape))
        if value is not None:
            found.append(str(name))
            options["initializer"] = lambda shape, dtype=None: keras.ops.convert_to_tensor(value, dtype)
        return create(*args, **options)

    attributes = vars(layer)  # `setattr` would make Keras track the attribute
    attributes["add_weight"] = add_weight
    try:
        yield found
    finally:
        del attributes["add_weight"]


def call_with_values_of(old: Any, new: Any, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
    """Call a new layer with an old layer's values if possible; return its output and whether it has all of them."""
    if type(old) not in _PLAIN or not old.built or new.built:
        return new(*args, **kwargs), False
    values = {variable.name: variable for variable in old.variables}

    def find(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        variable = values.get(name)
        # Copy through numpy: JAX would share the array between the models and delete it when one of them trains.
        return as_array(variable) if variable is not None and tuple(variable.shape) == shape else None

    with initial_values(new, find) as found:
        output = new(*args, **kwargs)
    return output, sorted(found) == sorted(variable.name for variable in new.variables)


def as_array(variable: keras.Variable) -> np.ndarray:
    """Return a copy of a variable's value."""
    return np.array(keras.ops.convert_to_numpy(variable))
