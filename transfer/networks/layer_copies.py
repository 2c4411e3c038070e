"""Copies of layers: from their configuration, or with their attributes if that does not describe them."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from typing import Any

import keras

from transfer.common.errors import InputError, one_line
from transfer.common.keras_private import (
    all_layers,
    blank_layer,
    copy_attributes,
    copy_variable,
    direct_layers,
    own_attributes,
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

SCALING = keras.layers.Rescaling | keras.layers.Normalization
"""Layers that scale images, in float32 always."""

_OF_ALL_LAYERS = ("name", "trainable", "dtype")


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


def new_like(op: Any, made: dict[int, Any] | None = None, *, rebuild: str = "", **changes: Any) -> Any:
    """Copy a layer, or take its copy from those made, by the id of the original."""
    # Layers of Keras are built from their configuration, with new weights. Built layers with code from outside Keras
    # are copied with all attributes. With rebuild="resized" or "random", and for layers of KerasHub, the
    # configuration is tried first.
    made = {} if made is None else made
    if id(op) in made:
        return made[id(op)]
    if is_graph(op):
        inner = functools.partial(new_like, made=made, rebuild=rebuild)
        new = keras.models.clone_model(op, clone_function=inner)  # finds layer classes without a registry
    elif is_custom(op):
        new = _new_custom_layer(op, made, rebuild, changes)
    else:
        try:
            new = _from_config(op, changes)
        except Exception as error:  # the layer's own code may raise anything
            raise _cannot_be_copied(op, error) from error
    made[id(op)] = new
    return new


def _new_custom_layer(op: Any, made: dict[int, Any], rebuild: str, changes: dict[str, Any]) -> Any:
    """Copy a layer by its attributes or by its configuration; the second way is tried where the first one fails."""
    ways = [
        lambda: _from_attributes(op, made, changes, draw=rebuild == "random"),
        lambda: _from_config(op, changes),
    ]
    by_attributes = op.built and not rebuild and not _from_hub(op)
    if not by_attributes and not isinstance(op, keras.layers.Lambda):
        ways.reverse()
    errors = []
    for way in ways:
        try:
            return way()
        except Exception as error:  # the layer's own code may raise anything
            errors.append(error)
    raise _cannot_be_copied(op, *errors) from errors[0]


def _cannot_be_copied(op: Any, *errors: Exception) -> InputError:
    reasons = "; ".join(one_line(error, most=200).rstrip(".") for error in errors)
    return InputError(
        f"Layer {op.name!r} cannot be copied: {type(op).__name__} cannot be built from its get_config(), nor copied "
        f"with its attributes: {reasons}. Return all arguments of __init__ from get_config(), and pass **kwargs on to "
        "keras.layers.Layer."
    )


def _from_attributes(op: Any, made: dict[int, Any], changes: dict[str, Any], *, draw: bool) -> Any:
    """Copy a layer with its attributes, and with its weights unless they are drawn again."""
    tried = dict(made)
    new = _copy_layer(op, tried)
    if draw:
        _draw_weights(new)
    made.update(tried)
    for layer in all_layers(new):
        if "dtype" in changes and not isinstance(layer, SCALING):
            layer.dtype_policy = changes["dtype"]
    return new


def _from_config(op: Any, changes: dict[str, Any]) -> Any:
    """Build a layer from its configuration, or from the one that its attributes complete."""
    config = {name: value for name, value in op.get_config().items() if not name.startswith("lora_")}
    own = own_objects(op)
    whole = _whole_config(op, config) if own else config
    used = whole if _from_hub(op) else config
    with keras.saving.custom_object_scope(own):
        try:
            new = type(op).from_config({**used, **changes})
            _check_arguments(op, new)
        except Exception:  # the layer's own code may raise anything
            if used == whole:
                raise
            used = whole
            new = type(op).from_config({**used, **changes})
            _check_arguments(op, new)
    new.name = op.name
    if used is whole and new.get_config().keys() != whole.keys():
        present = [name for name in ("name", "trainable") if name in whole]
        # A saved model can be loaded only with the whole configuration.
        vars(new)["get_config"] = lambda: whole | {name: getattr(new, name) for name in present}
    return new


def _check_arguments(op: Any, new: Any) -> None:
    """Raise if a configuration omits an argument: the numbers and names that __init__ sets would be its defaults."""
    for name, value in own_attributes(new).items() if own_objects(op) and not _from_hub(op) else ():
        kept = vars(op).get(name)
        if isinstance(value, bool | int | float | str) and value != kept and not name.startswith("lora_"):
            raise ValueError(f"get_config() leads to {name}={value!r} instead of {kept!r}")


def _from_hub(op: Any) -> bool:
    """Return whether a layer is one of KerasHub: a model can be loaded only if it saves their whole configuration."""
    return type(op).__module__.startswith("keras_hub.")


def _whole_config(op: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without what __init__ refuses, and with what it omits and the layer keeps."""
    known = inspect.signature(type(op).__init__).parameters
    shared = _OF_ALL_LAYERS if any(p.kind is p.VAR_KEYWORD for p in known.values()) else ()
    config = {name: value for name, value in config.items() if name in known or name in shared}
    found = {name: _argument(op, name) for name in known if name not in config}
    return config | {name: value for name, value in found.items() if value is not ...}


def _argument(op: Any, name: str) -> Any:
    """Return an argument of a layer's __init__ as it or a layer in it keeps it, or ... if it is not found."""
    places = [(op, name), (getattr(op, name, ...), "drop_prob"), *((one, name) for one in direct_layers(op))]
    for owner, attribute in places:
        value = getattr(owner, attribute, ...)
        if all(isinstance(part, int | float | str | None) for part in keras.tree.flatten(value)):
            return value
    return ...


def _copy_layer(layer: Any, made: dict[int, Any]) -> Any:
    """Copy a layer, or take its copy from those made: by the id of the original, as for `copy.deepcopy`."""
    if id(layer) in made:
        return made[id(layer)]
    if is_graph(layer):
        made[id(layer)] = keras.models.clone_model(
            layer, clone_function=lambda inner: _copy_layer(inner, made) if all_layers(inner) else inner
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
        return _copy_layer(value, made)
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


def _draw_weights(op: Any) -> None:
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
