"""Operations on the graph of a network: clone, slice, freeze, attach a head, split where frozen.

Nothing here knows a case or a family of networks, and nothing changes the caller's model.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from transfer.errors import InputError, unknown


class Node(NamedTuple):
    """One operation of a network's graph.

    Attributes:
        op: the layer, or the Keras operation where a network adds tensors without a layer.
        tensor: its output.
        parents: positions in the list of the nodes that feed it.
    """

    op: Any
    tensor: Any
    parents: tuple[int, ...]


def graph(model: keras.Model) -> list[Node]:
    """List the operations between a model's input and output, each after all that feed it.

    Args:
        model: a functional or sequential model with one input and one output.

    Returns:
        The nodes; the first is the input, the last gives the output.

    Raises:
        InputError: the model has no graph, or several inputs or outputs.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense")])
        >>> [node.op.name for node in graph(model)][1:]
        ['dense']
    """
    one_output = _require_graph(model).outputs[0]
    position: dict[int, int] = {}
    nodes: list[Node] = []
    stack = [(one_output, False)]
    while stack:  # depth first without recursion: networks are deeper than Python's stack
        tensor, ready = stack.pop()
        if id(tensor) in position:
            continue
        op, index, _ = tensor._keras_history
        sources = [] if tensor is model.inputs[0] else op._inbound_nodes[index].input_tensors
        if ready:
            position[id(tensor)] = len(nodes)
            nodes.append(Node(op, tensor, tuple(position[id(s)] for s in sources)))
        else:
            stack.append((tensor, True))
            stack += [(s, False) for s in reversed(sources)]
    return nodes


def _require_graph(model: keras.Model) -> keras.Model:
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:
        inputs = outputs = None
    if not inputs or not outputs:
        raise InputError(
            f"Expected a functional or a built sequential Keras model. Received: {type(model).__name__} "
            f"{getattr(model, 'name', '')!r}, which has no graph of layers to slice."
        )
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"Expected one input and one output. Received: {model.name!r} with {len(inputs)} and {len(outputs)}."
        )
    return model


def clone(
    model: keras.Model,
    *,
    image_size: tuple[int, int] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    weights: str = "copy",
    seed: int = 0,
) -> keras.Model:
    """Copy a model: new layers with the same names on a new input.

    Args:
        model: the model; it is not changed and shares nothing with the copy.
        image_size: height and width of the copy's input; None keeps the model's.
        preprocess: function of a Keras tensor, applied to the input in front of everything else.
        weights: `"copy"`, or `"random"` for fresh ones from each layer's own initializer. What a
            Normalization layer knows of the data is copied in either case.
        seed: of the random weights.

    Returns:
        A flat functional model, not compiled.

    Raises:
        InputError: the model has no graph, or cannot take pictures of `image_size`.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
        >>> clone(model, image_size=(16, 16)).output.shape
        (None, 14, 14, 2)
    """
    _require_graph(model)
    shape = tuple(model.inputs[0].shape[1:])
    if image_size is not None:
        shape = (*image_size, shape[-1])
    raw = keras.Input(shape, dtype="float32", name="image" if preprocess else None)
    ready = preprocess(raw) if preprocess else raw
    copies: dict[int, tuple[Any, Any]] = {}

    def copy(op: Any) -> Any:
        new = op.__class__.from_config(op.get_config())
        copies[id(op)] = (op, new)
        return new

    def call(op: Any, *args: Any, **kwargs: Any) -> Any:
        return op(*keras.tree.map_structure(lambda a: ready if a is raw else a, args), **kwargs)

    # A plain functional view of the caller's layers: clone_model treats other classes differently.
    view = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    try:
        with _seeded_initializers(seed):
            result = keras.models.clone_model(
                view, input_tensors=raw, clone_function=copy, call_function=call
            )
        for old, new in copies.values():
            if weights == "copy" or isinstance(old, keras.layers.Normalization):
                _copy_state(old, new)
    except ValueError as error:
        raise InputError(
            f"{model.name!r} cannot take pictures of shape {shape}: {str(error).splitlines()[0]}"
        ) from error
    return result


@contextlib.contextmanager
def _seeded_initializers(seed: int) -> Iterator[None]:
    """Make initializers without a seed repeatable: Keras draws their seeds from Python's generator."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _copy_state(old: Any, new: Any) -> None:
    """Copy all variables of a layer, the states of its random generators too."""
    if not isinstance(old, keras.layers.Layer):
        return
    for source, target in zip(old.variables, new.variables, strict=True):
        if source.shape != target.shape:
            raise ValueError(
                f"the weights of layer {old.name!r} have shape {source.shape} and would need {target.shape}."
            )
        target.assign(source)
    for layer in _all_layers(new):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with constants made of its variables


def renumber(model: keras.Model) -> keras.Model:
    """Number the names that Keras made up (`conv2d_17`) from zero again, in their own order.

    Keras counts unnamed layers through a whole process, so that a network that is built second has other
    names than one that is built first.

    Args:
        model: a model that is ours; it is changed.

    Returns:
        The same model.

    Example:
        >>> layers = [keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(3)]
        >>> [layer.name for layer in renumber(keras.Sequential(layers)).layers]
        ['dense', 'dense_1']
    """
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
        for i, (_, op) in enumerate(sorted(numbered, key=lambda pair: pair[0])):
            name = f"{stem}_{i}" if i else stem
            if name not in taken:
                op.name = name
    return model


def _snake_case(name: str) -> str:
    """Spell a class as Keras does when it names a layer after it."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A layer and every layer inside it."""
    return list(layer._flatten_layers()) if hasattr(layer, "_flatten_layers") else [layer]


def find(model: keras.Model, name: str) -> Node:
    """Find the operation of that name.

    Args:
        model: a model with a graph.
        name: of a layer.

    Returns:
        Its node (the last, where a layer is used more than once).

    Raises:
        InputError: no layer is called that; the nearest names are listed.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="wide")])
        >>> find(model, "wide").tensor.shape
        (None, 3)
    """
    nodes = graph(model)[1:]
    for node in reversed(nodes):
        if node.op.name == name:
            return node
    raise unknown(f"layer of {model.name!r}", name, [node.op.name for node in nodes])


def slice_at(model: keras.Model, name: str) -> keras.Model:
    """Keep a model up to and with one layer.

    Args:
        model: a model with a graph.
        name: of the last layer to keep.

    Returns:
        A model that shares its layers with `model`: clone it before changing anything.

    Raises:
        InputError: no layer is called that; the nearest names are listed.

    Example:
        >>> layers = [keras.layers.Dense(3, name="a"), keras.layers.Dense(4, name="b")]
        >>> slice_at(keras.Sequential([keras.Input((2,)), *layers]), "a").output.shape
        (None, 3)
    """
    return keras.Model(model.inputs[0], find(model, name).tensor, name=model.name)


def layer_before_classifier(model: keras.Model) -> str:
    """Name the last layer before a network's classifier, or its last layer where it has none.

    A classifier is a last Dense layer without a hidden activation, or, as in the MobileNets, a last 1x1
    convolution whose output is flattened into class scores.

    Args:
        model: a model with a graph.

    Returns:
        The layer's name.

    Example:
        >>> layers = [keras.layers.Dense(3, name="features"), keras.layers.Dense(2, "softmax", name="classes")]
        >>> layer_before_classifier(keras.Sequential([keras.Input((2,)), *layers]))
        'features'
    """
    nodes = graph(model)
    place = max((i for i, n in enumerate(nodes) if getattr(n.op, "weights", None)), default=0)
    last, after = nodes[place].op, [node.op for node in nodes[place + 1 :]]
    scores = (keras.activations.softmax, keras.activations.sigmoid, keras.activations.linear)
    dense = isinstance(last, keras.layers.Dense) and len(nodes[-1].tensor.shape) == 2
    dense = dense and last.activation in scores
    flattened = isinstance(last, keras.layers.Conv2D) and any(
        isinstance(op, (keras.layers.Flatten, keras.layers.Reshape)) for op in after
    )
    if (dense or flattened) and place > 1:
        return nodes[nodes[place].parents[0]].op.name
    return nodes[-1].op.name


def set_trainable(
    model: keras.Model, trainable: Callable[[str], bool] | bool, *, pin_batchnorm: bool = True
) -> keras.Model:
    """Set the flags of a model's layers, one by one, inner layers too.

    One by one, since setting the flag of a model whose own flag has that value already does nothing, and
    because only a BatchNormalization that is itself not trainable keeps its moving statistics.

    Args:
        model: a model that is ours; its flags are changed. Compile it afterwards.
        trainable: for all layers, or a function of an outer layer's name.
        pin_batchnorm: keep every BatchNormalization as it is, its statistics and its weights.

    Returns:
        The same model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> len(set_trainable(model, False).trainable_weights)
        0
    """
    model.trainable = True  # the model's own flag must let its layers' through
    for outer in model.layers:
        inner = _all_layers(outer)
        flag = trainable(outer.name) if callable(trainable) else trainable
        for layer in inner:
            layer.trainable = flag
        for layer in inner:
            if pin_batchnorm and isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    return model


def attach_head(trunk: keras.Model, num_classes: int, *, seed: int | None = None) -> keras.Model:
    """Put a new Dense softmax on a network, behind global average pooling where it ends in a map.

    Args:
        trunk: a model whose output has shape (batch, features) or (batch, height, width, channels).
        num_classes: 2 or more.
        seed: of the head's random weights.

    Returns:
        A model that shares the trunk's layers. The head computes in float32 under any policy, since a
        float16 softmax loses accuracy.

    Raises:
        InputError: fewer than two classes, or an output of another rank.

    Example:
        >>> trunk = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3)])
        >>> attach_head(trunk, 4).output.shape
        (None, 4)
    """
    if num_classes < 2:
        raise InputError(f"Expected at least 2 classes. Received: num_classes={num_classes}.")
    features = trunk.outputs[0]
    taken = {layer.name for layer in trunk.layers}
    if len(features.shape) == 4:
        pool = keras.layers.GlobalAveragePooling2D(name=_free_name("head_pool", taken))
        features = pool(features)
    if len(features.shape) != 2:
        raise InputError(
            f"Expected a layer with an output of shape (batch, features) or (batch, height, width, channels) "
            f"to put a head on. Received: {trunk.layers[-1].name!r} with {tuple(features.shape)}."
        )
    head = keras.layers.Dense(
        num_classes,
        activation="softmax",
        dtype="float32",
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        name=_free_name("head", taken),
    )
    return keras.Model(trunk.inputs[0], head(features), name=trunk.name)


def _free_name(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free_name(f"new_{name}", taken)


def trunk_of(model: keras.Model) -> keras.Model:
    """Give a model without its last layer, the head.

    Args:
        model: a model with a graph.

    Returns:
        A model that shares its layers with `model`.

    Example:
        >>> layers = [keras.layers.Dense(3), keras.layers.Dense(2)]
        >>> trunk_of(keras.Sequential([keras.Input((4,)), *layers])).output.shape
        (None, 3)
    """
    nodes = graph(model)
    return keras.Model(model.inputs[0], nodes[nodes[-1].parents[0]].tensor, name=f"{model.name}_trunk")


def bottlenecks(nodes: Sequence[Node]) -> list[int]:
    """Find the operations that every path from the input to the output runs through.

    Args:
        nodes: of `graph`.

    Returns:
        Their positions, in order; the input and the output are among them.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(3)])
        >>> bottlenecks(graph(model))
        [0, 1, 2]
    """
    last_use = [0] * len(nodes)
    for place, node in enumerate(nodes):
        for parent in node.parents:
            last_use[parent] = place
    found, reach = [], 0
    for place in range(len(nodes)):
        if reach <= place:  # nothing from before is still waited for
            found.append(place)
        reach = max(reach, last_use[place])
    return found
