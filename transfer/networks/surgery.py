"""Changes to networks: clone, slice, join, freeze, attach a head. Nothing here depends on a case."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError, one_line
from transfer.common.keras_private import all_layers
from transfer.common.tasks import MULTI, REGRESSION, SINGLE, TASK
from transfer.networks.families import Family, family_of
from transfer.networks.graphs import NetworkInfo, Node, analyze, graph
from transfer.networks.initial_values import as_array, call_with_values_of
from transfer.networks.layer_copies import SCALING, is_graph, new_like
from transfer.networks.low_rank import merged_values, without_low_rank
from transfer.networks.tokens import pooled_tokens


def clone(
    model: keras.Model,
    *,
    image_size: tuple[int, int] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    weights: str = "copy",
    precision: str | None = None,
    seed: int = 0,
    image: keras.KerasTensor | None = None,
    prefix: str = "",
) -> keras.Model:
    """Copy a model: new layers with the same names, after a prefix, on a new input or on a given one."""
    first = graph(model)[0]
    shape = tuple(first.tensor.shape[1:])
    if image_size is not None:
        shape = (*image_size, shape[-1])
    # The new input may take the name of the old one.
    taken = {layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)}
    name = _free_name("image", taken) if preprocess or first.op.name == "image" else None
    raw = keras.Input(shape, dtype="float32", name=name) if image is None else image
    ready = preprocess(raw) if preprocess else raw
    rebuild = "random" if weights == "random" else "resized" if shape != tuple(first.tensor.shape[1:]) else ""
    made: dict[int, Any] = {}  # id of a layer or variable -> its copy
    copies: dict[int, tuple[Any, Any]] = {}  # id of a copy -> the layer and its copy
    equal: set[int] = set()  # ids of the copies that have all values already

    def copy(op: Any) -> Any:
        lowered = precision and isinstance(op, keras.layers.Layer) and not is_graph(op)
        lowered = lowered and not isinstance(op, SCALING)
        new = new_like(op, made, rebuild=rebuild, **({"dtype": precision} if lowered else {}))
        new.name = prefix + new.name
        copies[id(new)] = (op, new)
        return new

    def call(op: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(lambda a: ready if a is raw else a, (args, kwargs))
        if weights != "copy":
            return op(*args, **kwargs)
        output, complete = call_with_values_of(copies[id(op)][0], op, *args, **kwargs)
        if complete:
            equal.add(id(op))
        return output

    # Use a functional model of the same layers: clone_model treats other classes differently.
    view = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    try:
        with _seeded_initializers(seed):
            result = keras.models.clone_model(
                view, input_tensors=raw, clone_function=copy, call_function=call
            )
        for old, new in copies.values():
            if id(new) not in equal:
                _copy_state(old, new, everything=weights == "copy")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{model.name!r} cannot take images of shape {shape}: {str(error).splitlines()[0]}"
        ) from error
    return result


@contextlib.contextmanager
def _seeded_initializers(seed: int) -> Iterator[None]:
    """Seed the initializers that have no seed of their own."""
    # Keras draws the seed of such an initializer from Python's global generator.
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _copy_state(old: Any, new: Any, *, everything: bool) -> None:
    """Copy a layer's variables, random generators included, or only those of Normalization."""
    if not isinstance(old, keras.layers.Layer):
        return
    _check_count(old, "layers", len(all_layers(new)), len(all_layers(old)))
    if everything:
        _assign(old, new)
    for source, target in zip(all_layers(old), all_layers(new), strict=True):
        if isinstance(target, keras.layers.Normalization):
            _assign(source, target)
            target.finalize_state()  # it computes with constants that it derives from its variables


def _assign(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    merged = merged_values(old)
    sources = without_low_rank(old)
    _check_count(old, "variables", len(new.variables), len(sources))
    for source, target in zip(sources, new.variables, strict=True):
        if source.shape != target.shape:
            raise ValueError(
                f"layer {old.name!r} has weights of shape {source.shape} and would need {target.shape}."
            )
        target.assign(as_array(merged.get(id(source), source)))


def _check_count(old: keras.layers.Layer, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(
            f"Layer {old.name!r} cannot be copied: built from its get_config(), it has {found} {what} instead of "
            f"{expected}. Build all inner layers in __init__, from arguments that get_config() returns."
        )


def renumber(model: keras.Model) -> keras.Model:
    """Number the names that Keras made up (`conv2d_17`) from zero again, in the same order."""
    renumber_names(dict.fromkeys(node.op for node in graph(model)))
    return model


def renumber_names(ops: Iterable[Any]) -> None:
    """Number the names that Keras made up for these layers and operations from zero again."""
    made_up: dict[str, list[tuple[int, Any]]] = {}
    taken = set()
    for op in ops:
        stem = _snake_case(type(op).__name__)
        if match := re.fullmatch(rf"{stem}(?:_(\d+))?", op.name):
            made_up.setdefault(stem, []).append((int(match[1] or 0), op))
        else:
            taken.add(op.name)
    for stem, numbered in made_up.items():
        names = (f"{stem}_{i}" if i else stem for i in itertools.count())
        free = (name for name in names if name not in taken)
        for _, op in sorted(numbered, key=lambda pair: pair[0]):
            op.name = next(free)


def _snake_case(name: str) -> str:
    """Return the name that Keras gives a layer of this class."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def slice_at(model: keras.Model, name: str) -> keras.Model:
    """Cut a model after the layer with a given name."""
    return keras.Model(model.inputs[0], analyze(model).output(name), name=model.name)


def join_at(network: NetworkInfo, names: Sequence[str]) -> keras.Model:
    """Build the model whose output is that of one layer, or of several layers as one vector per image."""
    image, taken = network.nodes[0].tensor, set(network.names)
    places = sorted({network.position(name) for name in names})
    if not places:
        raise InputError("Expected the name of at least one layer. Received none.")
    if len(places) == 1:
        return keras.Model(image, network.nodes[places[0]].tensor, name=network.name)
    vectors = []
    for number, place in enumerate(places):
        pool = _free_name(f"joined_{number}_pool", taken)
        vector = _vector(network.nodes, place, network.family, pool, dtype="float32")
        name = _free_name(f"joined_{number}_unit", taken)
        vectors.append(keras.layers.UnitNormalization(dtype="float32", name=name)(vector))
    join = keras.layers.Concatenate(dtype="float32", name=_free_name("joined", taken))
    return keras.Model(image, join(vectors), name=network.name)


def _vector(
    nodes: Sequence[Node], place: int, family: Family | None, name: str, *, dtype: str | None = None
) -> Any:
    """Return an output as a vector per image; layers of that name pool feature maps or tokens."""
    vector = nodes[place].tensor
    if len(vector.shape) == 4:
        vector = keras.layers.GlobalAveragePooling2D(name=name, dtype=dtype)(vector)
    if len(vector.shape) == 3:
        vector = pooled_tokens(nodes, place, family, name, dtype=dtype)
    if len(vector.shape) != 2:
        raise InputError(
            "Expected a layer with an output of shape (batch, features), (batch, tokens, features) or (batch, height, "
            f"width, channels) to put a head on. Received: {nodes[place].op.name!r} with {tuple(vector.shape)}."
        )
    return vector


def set_trainable(
    model: keras.Model,
    trainable: Callable[[str], bool] | bool,
    *,
    pin_batchnorm: bool = True,
    synchronized: bool = False,
    head: str | None = None,
) -> keras.Model:
    """Set `trainable` of each layer of a model, inner layers included; those of the head keep their flags."""
    own = {layer: layer.trainable for layer in all_layers(model.get_layer(head))} if head else {}
    model.trainable = True  # the model's own flag overrides those of its layers
    for layer, flag in own.items():
        layer.trainable = flag
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized and flag
    for outer in model.layers:
        if outer.name == head:
            continue
        inner = all_layers(outer)
        flag = trainable(outer.name) if callable(trainable) else trainable
        for layer in inner:  # set all of them first, since each flag is passed on to the layers inside
            layer.trainable = flag
        for layer in inner:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = flag and not pin_batchnorm
                layer.synchronized = synchronized and layer.trainable
    return model


def attach_head(
    extractor: keras.Model,
    num_classes: int,
    *,
    seed: int | None = None,
    head: keras.layers.Layer | None = None,
    task: str = SINGLE,
) -> keras.Model:
    """Attach the Dense layer of a task, or a copy of a head, after global average pooling of feature maps."""
    _check_count_of_outputs(num_classes, task)
    taken = {layer.name for layer in extractor.layers}
    nodes = graph(extractor)
    family, pool = family_of(extractor), _free_name("head_pool", taken)
    features = _vector(nodes, len(nodes) - 1, family, pool)
    name = _free_name("head", taken)
    if head is None:
        new: Any = keras.layers.Dense(
            int(num_classes),
            activation=TASK[task].activation,
            dtype="float32",
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            name=name,
        )
    else:
        with _seeded_initializers(seed or 0):
            new = copy_head(head, features.shape[-1], name=name)
        _check_head(head, new, features.shape[-1], int(num_classes), task)
    return keras.Model(extractor.inputs[0], new(features), name=extractor.name)


def _check_count_of_outputs(num_classes: int, task: str) -> None:
    """Raise unless a head of a task may have that number of outputs."""
    whole = isinstance(num_classes, Integral)
    if task == REGRESSION and not (whole and num_classes == 1):
        raise InputError(
            f"Expected num_classes=1 for the task regression, whose head predicts one number. Received: "
            f"num_classes={num_classes!r}."
        )
    if task != REGRESSION and not (whole and num_classes >= 2):
        what = "labels" if task == MULTI else "classes"
        raise InputError(
            f"Expected a whole number of at least 2 {what}. Received: num_classes={num_classes!r}."
        )


def copy_head(head: keras.layers.Layer, num_features: int, *, name: str) -> keras.layers.Layer:
    """Copy a head for feature vectors: a layer or a model, with the weights that it has."""
    if not isinstance(head, keras.layers.Layer) or isinstance(head, type):
        raise InputError(
            "Expected head as a Keras layer or model, such as keras.Sequential([keras.layers.Dense(64, 'relu'), "
            f"keras.layers.Dense(num_classes, 'softmax')]). Received: {head!r}."
        )
    new = new_like(head)
    new.name = name
    try:
        new(keras.Input((num_features,)))  # builds its weights
        pairs = zip(head.layers, new.layers, strict=True) if hasattr(head, "layers") else [(head, new)]
        for old, copy in pairs:
            if old.built:
                _assign(old, copy)
    except Exception as error:  # the head's own code may raise anything
        raise InputError(
            f"Expected a head for {num_features} features. Received: {head.name!r}, which cannot take them: "
            f"{one_line(error, most=200)}. Leave its input shape open, or give it {num_features} inputs."
        ) from error
    return new


def _check_head(head: keras.layers.Layer, new: Any, num_features: int, num_classes: int, task: str) -> None:
    """Raise unless a head trains and returns predictions of its task, tried on random features."""
    features = np.abs(np.random.default_rng(0).normal(size=(4, num_features))).astype("float32")
    values = np.asarray(keras.ops.convert_to_numpy(new(features, training=False)), "float64")
    activation = TASK[task].activation
    if values.shape != (4, num_classes):
        shape = ", ".join(map(str, values.shape[1:]))
        what = {MULTI: "one probability per label", REGRESSION: "one number"}
        raise InputError(
            f"Expected a head whose output has the shape (batch, {num_classes}), "
            f"{what.get(task, 'one probability per class')}. Received: {head.name!r}, with (batch, {shape}). End the "
            f"head with keras.layers.Dense({num_classes}, {activation!r})."
        )
    sums = np.abs(values.sum(axis=1) - 1).max() < 1e-3 or task == MULTI
    if task != REGRESSION and not (values.min() >= 0 and values.max() <= 1 + 1e-3 and sums):
        form = "from 0 to 1" if task == MULTI else "0 or more, with a sum of 1"
        raise InputError(
            f"Expected a head that returns probabilities: {form}. Received: {head.name!r}, with values from "
            f"{values.min():.3g} to {values.max():.3g} and a sum of {values[0].sum():.3g}. End the head with a "
            f"{activation}."
        )
    if task == REGRESSION and output_layer(new) is None:
        raise InputError(
            "Expected a head that ends in a linear layer with a bias, since fit converts the units of the values in "
            f"it. Received: {head.name!r}. End the head with keras.layers.Dense(1)."
        )
    if not new.trainable_weights:
        raise InputError(
            f"Expected a head with weights to train. Received: {head.name!r}, which has none. Set its trainable flag "
            "to True, or add a Dense layer."
        )


def output_layer(head: Any) -> keras.layers.Dense | None:
    """Return the last layer of a head if it is a linear Dense layer with a bias, otherwise None."""
    while getattr(head, "layers", None):
        head = head.layers[-1]
    linear = isinstance(head, keras.layers.Dense) and head.use_bias
    return head if linear and head.activation is keras.activations.linear else None


def is_plain_head(layer: Any, task: str = SINGLE) -> bool:
    """Return whether a layer is the default head of a task, a Dense layer without constraints: a convex problem."""
    regularizers = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
    extras = (*regularizers, "kernel_constraint", "bias_constraint")
    return (
        type(layer) is keras.layers.Dense
        and layer.use_bias
        and layer.activation is getattr(keras.activations, TASK[task].activation)
        and not any(getattr(layer, name) for name in extras)
    )


def _free_name(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free_name(f"new_{name}", taken)


def feature_extractor_of(model: keras.Model) -> keras.Model:
    """Return a model without its last layer, the head."""
    nodes = graph(model)
    return keras.Model(model.inputs[0], nodes[nodes[-1].parents[0]].tensor, name=f"{model.name}_features")
