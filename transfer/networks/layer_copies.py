"""Copies of layers with their attributes and variables, for layers that their configuration does not describe."""

from __future__ import annotations

import copy
import types
from typing import Any

import keras

from transfer.common.errors import InputError, one_line
from transfer.common.keras_private import (
    all_layers,
    blank_layer,
    copy_attributes,
    copy_variable,
    own_variables,
)
from transfer.networks.initial_values import as_array
from transfer.networks.low_rank import merged_values, without_low_rank

# Layers of Keras have attributes from these packages, and their configuration describes them.
_KNOWN = {
    "builtins",
    "collections",
    "functools",
    "inspect",
    "jax",
    "jaxlib",
    "keras",
    "numpy",
    "tensorflow",
    "torch",
}
# Like tensors, these are never changed, or belong to a graph that is not copied.
_SHARED = (type, types.ModuleType, types.BuiltinFunctionType, keras.KerasTensor)


def own_objects(op: Any) -> dict[str, Any]:
    """Return the classes and functions from outside Keras that a layer and the layers inside it use, by name."""
    found: dict[str, Any] = {}
    for layer in all_layers(op):
        wrapped = ("build", "quantize")  # methods that Keras wraps in each layer
        for value in (layer, *(value for name, value in vars(layer).items() if name not in wrapped)):
            kind = value if isinstance(value, types.FunctionType) else type(value)
            if kind.__module__.partition(".")[0] not in _KNOWN:
                found[kind.__name__] = kind
    return found


def is_custom(op: Any) -> bool:
    """Return whether a layer or one inside it runs code from outside Keras."""
    return bool(own_objects(op)) or any(isinstance(layer, keras.layers.Lambda) for layer in all_layers(op))


def has_graph(op: Any) -> bool:
    """Return whether an operation is a functional or sequential model."""
    return any(kind.__name__ in ("Functional", "Sequential") for kind in type(op).__mro__)


def is_graph(op: Any) -> bool:
    """Return whether an operation is a functional or sequential model that only calls its layers."""
    plain = [kind for kind in type(op).__mro__ if kind.__name__ in ("Functional", "Sequential")]
    return bool(plain) and type(op).call is plain[0].call  # type: ignore[attr-defined]


def copy_layer(layer: Any, made: dict[int, Any]) -> Any:
    """Copy a layer, or take its copy from those made: by the id of the original, as for `copy.deepcopy`."""
    if id(layer) in made:
        return made[id(layer)]
    if is_graph(layer):
        made[id(layer)] = keras.models.clone_model(
            layer, clone_function=lambda inner: copy_layer(inner, made) if all_layers(inner) else inner
        )
        return made[id(layer)]
    if has_graph(layer):
        raise InputError(f"{layer.name!r} has a graph of layers and a call() of its own")
    if getattr(layer, "lora_enabled", False):
        return _merged(layer, made)
    new = made[id(layer)] = blank_layer(type(layer))
    new.name = layer.name
    copy_attributes(layer, new, lambda value: _copied(value, made))
    return new


def _merged(layer: Any, made: dict[int, Any]) -> Any:
    """Copy a layer of Keras with low-rank matrices as one without, with their product added to its matrix."""
    config = {name: value for name, value in layer.get_config().items() if not name.startswith("lora_")}
    new = made[id(layer)] = type(layer).from_config(config)
    new.build_from_config(layer.get_build_config())
    merged = merged_values(layer)
    for source, target in zip(without_low_rank(layer), new.variables, strict=True):
        target.assign(as_array(merged.get(id(source), source)))
        made[id(source)] = target
    return new


def _copied(value: Any, made: dict[int, Any]) -> Any:
    """Copy an attribute's value: layers and variables in it are replaced by their copies."""
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, keras.layers.Layer):
        return copy_layer(value, made)
    if isinstance(value, keras.Variable):
        made[id(value)] = copy_variable(value, as_array(value))
        return made[id(value)]
    if isinstance(value, keras.random.SeedGenerator):
        new = made[id(value)] = copy.copy(value)
        new.state = _copied(value.state, made)
        return new
    if isinstance(value, types.FunctionType):
        return _copied_function(value, made)
    if isinstance(value, _SHARED) or keras.ops.is_tensor(value):
        return value
    if isinstance(value, dict):
        return {key: _copied(item, made) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(item, made) for item in value))
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(_copied(item, made) for item in value)
    try:
        return copy.deepcopy(value, made)
    except Exception as error:  # the object's own code may raise anything
        raise InputError(
            f"its {type(value).__name__} cannot be copied: {one_line(error, most=100)}"
        ) from error


def _copied_function(function: types.FunctionType, made: dict[int, Any]) -> types.FunctionType:
    """Return a function whose enclosed layers and variables are copies; without such, the function itself."""
    made[id(function)] = function  # it may enclose itself
    cells = function.__closure__ or ()
    values = [_copied(cell.cell_contents, made) for cell in cells]
    if all(new is cell.cell_contents for new, cell in zip(values, cells, strict=True)):
        return function
    closure = tuple(map(types.CellType, values))
    new = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    vars(new).update(vars(function))
    new.__kwdefaults__ = function.__kwdefaults__
    made[id(function)] = new
    return new


def draw_weights(op: Any) -> None:
    """Draw the weights of a layer and of those inside it again; the statistics of Normalization stay."""
    for layer in all_layers(op):
        for variable in [] if isinstance(layer, keras.layers.Normalization) else own_variables(layer):
            draw = getattr(layer, f"{variable.name}_initializer", None)
            if draw is None:
                raise InputError(
                    f"no attribute {variable.name}_initializer of {type(layer).__name__} says how to draw its weights"
                )
            if isinstance(draw, keras.initializers.Initializer):
                draw = type(draw).from_config(draw.get_config())  # one without a seed takes a new one
            variable.assign(draw(variable.shape, dtype=variable.dtype))
