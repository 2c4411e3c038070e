"""Reading the graph of a network: its operations in order, by name, its bottlenecks, its classifier.

Nothing here changes a model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from transfer.common.errors import InputError, one_line, unknown
from transfer.common.keras_private import call_of


class Node(NamedTuple):
    """One operation of a network's graph."""

    op: Any
    tensor: Any
    parents: tuple[int, ...]


def graph(model: keras.Model) -> list[Node]:
    """List the operations between a model's input and output, each after all that feed it."""
    one_output = _require_graph(model).outputs[0]
    position: dict[int, int] = {}
    nodes: list[Node] = []
    stack = [(one_output, False)]
    while stack:  # depth first, without Python's bound on recursion
        tensor, ready = stack.pop()
        if id(tensor) in position:
            continue
        call = call_of(tensor)
        sources = [] if tensor is model.inputs[0] else call.inputs
        if ready:
            position[id(tensor)] = len(nodes)
            nodes.append(Node(call.op, tensor, tuple(position[id(s)] for s in sources)))
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


def find(model: keras.Model, name: str) -> Node:
    """Find the operation of that name."""
    nodes = graph(model)[1:]
    for node in reversed(nodes):
        if node.op.name == name:
            return node
    raise unknown(f"layer of {model.name!r}", name, [node.op.name for node in nodes])


def find_first(model: keras.Model, name: str) -> Node:
    """Find the first operation of a block, or the one of that name."""
    nodes = graph(model)[1:]
    for matches in (lambda node: node.op.name == name, lambda node: node.op.name.startswith(f"{name}_")):
        found = next(filter(matches, nodes), None)
        if found is not None:
            return found
    names = [node.op.name for node in nodes]
    blocks = [n.rpartition("_")[0] for n in names if "_" in n]
    raise unknown(f"layer or block of {model.name!r}", name, list(dict.fromkeys([*names, *blocks])))


def fingerprint(model: keras.Model) -> str:
    """Tell a network by what it computes: its operations, how they are joined, and its weights."""
    found = hashlib.sha256()
    seen: dict[int, int] = {}
    for place, node in enumerate(graph(model)):
        config = {} if place == 0 else _without_arrays(config_of(node.op))
        constants = [] if place == 0 else _constants(node.tensor)
        described = (type(node.op).__name__, config, constants, node.parents, node.tensor.shape)
        found.update(re.sub(r"'name': '[^']*'", "", repr(described)).encode())
        if seen.setdefault(id(node.op), place) == place:  # a layer that is used twice has one set of weights
            for weight in getattr(node.op, "weights", ()):
                value = keras.ops.convert_to_numpy(weight)
                found.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            found.update(f"as {seen[id(node.op)]}".encode())
    return found.hexdigest()


def config_of(op: Any) -> dict[str, Any]:
    """Ask a layer for its configuration."""
    try:
        return dict(op.get_config())
    except Exception as error:  # the layer's own code runs, and may raise anything
        raise InputError(
            f"Layer {op.name!r} cannot say what it is made of, so that it cannot be copied or told from another: "
            f"get_config() of {type(op).__name__} fails: {one_line(error, most=200)}. Let it return all arguments of "
            "__init__, and let that hand **kwargs on to keras.layers.Layer."
        ) from error


def _constants(tensor: Any) -> list[str]:
    """What an operation was called with besides tensors, such as the 3 of `x + 3`."""
    call = call_of(tensor)
    given = keras.tree.flatten([call.args, call.kwargs])
    return ["tensor" if isinstance(value, keras.KerasTensor) else _text(value) for value in given]


def _without_arrays(config: dict[str, Any]) -> Any:
    """A configuration with its arrays spelt out: their own text leaves most numbers of long ones out."""
    return keras.tree.map_structure(lambda value: _text(value) if hasattr(value, "shape") else value, config)


def _text(value: Any) -> str:
    """Spell a constant out, all its numbers where it is an array."""
    if hasattr(value, "shape"):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    return repr(value)


def layer_before_classifier(model: keras.Model) -> str:
    """Name the last layer before a network's classifier, or its last layer where it has none."""
    nodes = graph(model)
    place = _classifier(nodes)
    return nodes[nodes[place].parents[0] if place else -1].op.name


def _classifier(nodes: Sequence[Node]) -> int:
    """Find the position of the classifier; 0 where there is none."""
    scoring = (keras.layers.Dense, keras.layers.Conv2D)
    place = max((i for i, node in enumerate(nodes) if isinstance(node.op, scoring)), default=0)
    if not place or nodes[place].parents[0] == 0 or len(nodes[-1].tensor.shape) != 2:
        return 0
    if _activation(nodes[-1].op) in ("softmax", "sigmoid"):
        return place
    width = getattr(nodes[place].op, "units", None) or getattr(nodes[place].op, "filters", None)
    logits = nodes[-1].tensor.shape[-1] == width and _activation(nodes[place].op) == "linear"
    reshaping = ("Dropout", "Flatten", "Reshape", "Squeeze")
    for node in nodes[place + 1 :]:
        logits = logits and (type(node.op).__name__ in reshaping or _activation(node.op) == "linear")
    return place if logits else 0


def _activation(op: Any) -> str | None:
    """Name what a layer does to each number of its output last; None where it is no such layer."""
    activation = getattr(op, "activation", None)
    return getattr(activation, "__name__", None) if activation else type(op).__name__.lower()


def bottlenecks(nodes: Sequence[Node]) -> list[int]:
    """Find the operations that every path from the input to the output runs through."""
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
