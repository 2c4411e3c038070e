"""Operations on the graph of a network: clone, slice, join, freeze, attach a head.

Nothing here knows a case or a family of networks; what reads a graph without making a model is in `graphs`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError, one_line
from transfer.common.keras_private import all_layers
from transfer.networks.graphs import Node, config_of, find, graph


def clone(
    model: keras.Model,
    *,
    image_size: tuple[int, int] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    weights: str = "copy",
    precision: str | None = None,
    seed: int = 0,
) -> keras.Model:
    """Copy a model: new layers with the same names on a new input."""
    shape = tuple(graph(model)[0].tensor.shape[1:])
    if image_size is not None:
        shape = (*image_size, shape[-1])
    taken = {layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)}
    name = _free_name("image", taken) if preprocess else None
    raw = keras.Input(shape, dtype="float32", name=name)
    ready = preprocess(raw) if preprocess else raw
    copies: dict[int, tuple[Any, Any]] = {}

    def copy(op: Any) -> Any:
        scales = isinstance(op, keras.layers.Rescaling | keras.layers.Normalization)
        other = precision and isinstance(op, keras.layers.Layer) and not scales and not hasattr(op, "layers")
        new = new_like(op, **({"dtype": precision} if other else {}))
        copies[id(op)] = (op, new)
        return new

    def call(op: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(lambda a: ready if a is raw else a, (args, kwargs))
        return op(*args, **kwargs)

    # A plain functional view of the caller's layers: clone_model treats other classes differently.
    view = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    try:
        with _seeded_initializers(seed):
            result = keras.models.clone_model(
                view, input_tensors=raw, clone_function=copy, call_function=call
            )
        for old, new in copies.values():
            _copy_state(old, new, everything=weights == "copy")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{model.name!r} cannot take images of shape {shape}: {str(error).splitlines()[0]}"
        ) from error
    return result


def new_like(op: Any, **changes: Any) -> Any:
    """Make a layer anew from its configuration, without its weights."""
    config = {**config_of(op), **changes}
    # A Lambda's code runs already: there is nothing left to guard.
    how = {"safe_mode": False} if isinstance(op, keras.layers.Lambda) else {}
    try:
        return type(op).from_config(config, **how)
    except Exception as error:  # the layer's own code runs, and may raise anything
        raise InputError(
            f"Layer {op.name!r} cannot be copied, since {type(op).__name__} cannot be made from what its "
            f"get_config() gives: {one_line(error, most=200)}. Let get_config() return all arguments of "
            "__init__, and let that hand **kwargs on to keras.layers.Layer."
        ) from error


@contextlib.contextmanager
def _seeded_initializers(seed: int) -> Iterator[None]:
    """Make initializers without a seed repeatable: Keras draws their seeds from Python's generator."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _copy_state(old: Any, new: Any, *, everything: bool) -> None:
    """Copy all variables of a layer, the states of its random generators too, or only what Normalization
    knows."""
    if not isinstance(old, keras.layers.Layer):
        return
    if everything:
        _assign(old, new)
    for source, target in zip(all_layers(old), all_layers(new), strict=True):
        if isinstance(target, keras.layers.Normalization):
            _assign(source, target)
            target.finalize_state()  # it computes with constants made of its variables


def _assign(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    for source, target in zip(old.variables, new.variables, strict=True):
        if source.shape != target.shape:
            raise ValueError(
                f"the weights of layer {old.name!r} have shape {source.shape} and would need {target.shape}."
            )
        # By way of numpy, and not as they are: JAX would share the array, and delete it when one of the two trains.
        target.assign(np.array(keras.ops.convert_to_numpy(source)))


def renumber(model: keras.Model) -> keras.Model:
    """Number the names that Keras made up (`conv2d_17`) from zero again, in their own order."""
    made_up: dict[str, list[tuple[int, Any]]] = {}
    taken = set()
    for op in dict.fromkeys(node.op for node in graph(model)):
        stem = _snake_case(type(op).__name__)
        match = re.fullmatch(rf"{stem}(?:_(\d+))?", op.name)
        if match:
            made_up.setdefault(stem, []).append((int(match.group(1) or 0), op))
        else:
            taken.add(op.name)
    for stem, numbered in made_up.items():
        names = (f"{stem}_{i}" if i else stem for i in itertools.count())
        free = (name for name in names if name not in taken)
        for _, op in sorted(numbered, key=lambda pair: pair[0]):
            op.name = next(free)
    return model


def _snake_case(name: str) -> str:
    """Spell a class as Keras does when it names a layer after it."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def slice_at(model: keras.Model, name: str) -> keras.Model:
    """Keep a model up to and with one layer."""
    return keras.Model(model.inputs[0], find(model, name).tensor, name=model.name)


def join_at(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Give what several layers see as one vector per image."""
    wanted = {id(find(model, name).tensor) for name in names}
    chosen = [node for node in graph(model) if id(node.tensor) in wanted]
    if not chosen:
        raise InputError("Expected the name of at least one layer. Received none.")
    if len(chosen) == 1:
        return slice_at(model, chosen[0].op.name)
    taken = {layer.name for layer in model.layers}
    vectors = []
    for number, node in enumerate(chosen):
        vector = _vector(node, _free_name(f"joined_{number}_pool", taken), dtype="float32")
        unit = keras.layers.UnitNormalization(
            dtype="float32", name=_free_name(f"joined_{number}_unit", taken)
        )
        vectors.append(unit(vector))
    join = keras.layers.Concatenate(dtype="float32", name=_free_name("joined", taken))
    return keras.Model(model.inputs[0], join(vectors), name=model.name)


def _vector(node: Node, name: str, *, dtype: str | None = None) -> Any:
    """Average an output over the image where it is a map, with a layer of that name."""
    vector = node.tensor
    if len(vector.shape) == 4:
        vector = keras.layers.GlobalAveragePooling2D(name=name, dtype=dtype)(vector)
    if len(vector.shape) != 2:
        raise InputError(
            f"Expected a layer with an output of shape (batch, features) or (batch, height, width, channels) "
            f"to put a head on. Received: {node.op.name!r} with {tuple(vector.shape)}."
        )
    return vector


def set_trainable(
    model: keras.Model,
    trainable: Callable[[str], bool] | bool,
    *,
    pin_batchnorm: bool = True,
    synchronized: bool = False,
) -> keras.Model:
    """Set the flags of a model's layers, one by one, inner layers too."""
    model.trainable = True  # the model's own flag must let its layers' through
    for outer in model.layers:
        inner = all_layers(outer)
        flag = trainable(outer.name) if callable(trainable) else trainable
        for layer in inner:
            layer.trainable = flag
        for layer in inner:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = flag and not pin_batchnorm
                layer.synchronized = synchronized and layer.trainable
    return model


def attach_head(extractor: keras.Model, num_classes: int, *, seed: int | None = None) -> keras.Model:
    """Put a new Dense softmax on a network, behind global average pooling where it ends in a map."""
    if not isinstance(num_classes, Integral) or num_classes < 2:
        raise InputError(
            f"Expected a whole number of at least 2 classes. Received: num_classes={num_classes!r}."
        )
    taken = {layer.name for layer in extractor.layers}
    features = _vector(graph(extractor)[-1], _free_name("head_pool", taken))
    head = keras.layers.Dense(
        int(num_classes),
        activation="softmax",
        dtype="float32",
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        name=_free_name("head", taken),
    )
    return keras.Model(extractor.inputs[0], head(features), name=extractor.name)


def _free_name(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free_name(f"new_{name}", taken)


def feature_extractor_of(model: keras.Model) -> keras.Model:
    """Give a model without its last layer, the head."""
    nodes = graph(model)
    return keras.Model(model.inputs[0], nodes[nodes[-1].parents[0]].tensor, name=f"{model.name}_trunk")
