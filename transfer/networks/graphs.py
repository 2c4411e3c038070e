"""Analysis of a network's graph: its operations in order, block ends, bottlenecks, classifier, fingerprint.

Nothing here changes a model.
"""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from transfer.common.errors import InputError, one_line, unknown
from transfer.common.keras_private import accepts_training, call_of, own_attributes
from transfer.networks.families import Family, family_of
from transfer.networks.layer_copies import has_graph, is_custom, is_graph


class Node(NamedTuple):
    """One call of an operation, with the symbolic tensor that it makes and the positions of its inputs."""

    op: Any
    tensor: Any
    parents: tuple[int, ...]


@dataclass(frozen=True)
class NetworkInfo:
    """A network's graph, analyzed once: see `analyze`."""

    name: str
    nodes: tuple[Node, ...]  # the input first; each operation comes after its inputs
    family: Family | None
    block_ends: tuple[str, ...]  # last layers of the blocks, from the input on
    last_layer: str  # the layer before the classifier, or the last one if there is no classifier
    has_classifier: bool

    @property
    def names(self) -> list[str]:
        """Names of the operations, the input's first."""
        return [node.op.name for node in self.nodes]

    def position(self, name: str) -> int:
        """Return the position of a layer, of its last call if it is called several times."""
        names = self.names[1:]
        if name not in names:
            raise unknown(f"layer of {self.name!r}", name, names)
        return len(names) - names[::-1].index(name)

    def output(self, name: str) -> keras.KerasTensor:
        """Return the symbolic output of a layer."""
        return self.nodes[self.position(name)].tensor

    def block_start(self, name: str) -> int:
        """Return the position of the layer with that name, or of the first layer of the block with that name."""
        names = self.names[1:]
        if name in names:
            return 1 + names.index(name)
        for place, layer in enumerate(names, start=1):
            if layer.startswith(f"{name}_"):
                return place
        blocks = [n.rpartition("_")[0] for n in names if "_" in n]
        raise unknown(f"layer or block of {self.name!r}", name, list(dict.fromkeys([*names, *blocks])))


def analyze(model: keras.Model) -> NetworkInfo:
    """Analyze the graph of a network: its operations, family, block ends and classifier."""
    nodes, family = graph(model), family_of(model)
    classifier = _classifier(nodes)
    last = nodes[classifier].parents[0] if classifier else len(nodes) - 1
    ends = _block_ends(nodes, family.block) if family and family.block else []
    ends = ends or _generic_block_ends(nodes, last)
    names = tuple(nodes[place].op.name for place in ends)
    last_layer = nodes[last].op.name
    return NetworkInfo(model.name, tuple(nodes), family, names, last_layer, last_layer != nodes[-1].op.name)


def graph(model: keras.Model) -> list[Node]:
    """List the operations between a model's input and output, each after its inputs."""
    return _nodes(_require_graph(model))


def _nodes(model: keras.Model) -> list[Node]:
    """List the operations between the inputs and outputs of a model."""
    inputs = set(map(id, model.inputs))
    position: dict[int, int] = {}
    nodes: list[Node] = []
    stack = [(output, False) for output in reversed(model.outputs)]
    while stack:  # depth first, without Python's limit on recursion
        tensor, ready = stack.pop()
        if id(tensor) in position:
            continue
        call = call_of(tensor)
        sources = [] if id(tensor) in inputs else call.inputs
        if ready:
            position[id(tensor)] = len(nodes)
            nodes.append(Node(call.op, tensor, tuple(position[id(s)] for s in sources)))
        else:
            stack.append((tensor, True))
            stack += [(s, False) for s in reversed(sources)]
    return nodes


def _require_graph(model: keras.Model) -> keras.Model:
    """Return the model if it has a graph with one input and one output; raise otherwise."""
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


def _block_ends(nodes: Sequence[Node], pattern: str) -> list[int]:
    """Return the positions of the block ends in a network whose layers are named after their blocks."""
    users: dict[int, list[int]] = {}
    ends: dict[str, int] = {}
    for place, node in enumerate(nodes):
        for parent in node.parents:
            users.setdefault(parent, []).append(place)
        if match := re.match(pattern, node.op.name):
            ends[match[1]] = place
    places = []
    for place in ends.values():
        # The sum of a skip connection may have a name that Keras made up: the block ends there.
        after = users.get(place, [])
        in_sum = len(after) == 1 and len(nodes[after[0]].parents) > 1 and after[0] not in ends.values()
        places.append(after[0] if in_sum else place)
    return sorted(places)


def _generic_block_ends(nodes: Sequence[Node], last: int) -> list[int]:
    """Return the bottlenecks where branches meet or maps are pooled, up to `last`; with fewer than 2, all maps."""
    pools = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
    maps = [p for p in bottlenecks(nodes) if 0 < p <= last and len(nodes[p].tensor.shape) in (3, 4)]
    ends = [p for p in maps if len(nodes[p].parents) > 1 or isinstance(nodes[p].op, pools)]
    return ends if len(ends) > 1 else maps


def _classifier(nodes: Sequence[Node]) -> int:
    """Return the position of the classifier, or 0 if there is none."""
    scoring = (keras.layers.Dense, keras.layers.Conv2D)
    place = max((i for i, node in enumerate(nodes) if isinstance(node.op, scoring)), default=0)
    if not place or nodes[place].parents[0] == 0 or len(nodes[-1].tensor.shape) != 2:
        return 0
    if activation_of(nodes[-1].op) in ("softmax", "sigmoid"):
        return place
    width = getattr(nodes[place].op, "units", None) or getattr(nodes[place].op, "filters", None)
    logits = nodes[-1].tensor.shape[-1] == width and activation_of(nodes[place].op) == "linear"
    reshaping = ("Dropout", "Flatten", "Reshape", "Squeeze")
    behind = nodes[place + 1 :]
    logits = logits and all(
        type(n.op).__name__ in reshaping or activation_of(n.op) == "linear" for n in behind
    )
    return place if logits else 0


def activation_of(op: Any) -> str:
    """Return the name of a layer's activation, or its class in lower case if it has none."""
    activation = getattr(op, "activation", None)
    return getattr(activation, "__name__", "") if activation else type(op).__name__.lower()


def bottlenecks(nodes: Sequence[Node]) -> list[int]:
    """Return the positions of the operations that every path from the input to the output runs through."""
    last_use = _last_use(nodes)
    found, reach = [], 0
    for place in range(len(nodes)):
        if reach <= place:  # nothing before this position is used after it
            found.append(place)
        reach = max(reach, last_use.get(place, 0))
    return found


def _last_use(nodes: Sequence[Node]) -> dict[int, int]:
    return {parent: place for place, node in enumerate(nodes) for parent in node.parents}


def call_again(
    nodes: Sequence[Node],
    values: Mapping[int, Any],
    places: Iterable[int],
    *,
    keep: Iterable[int] = (),
    training: bool | None = None,
) -> dict[int, Any]:
    """Call the operations at these positions, in order, on other values; return the values still in use."""
    last_use, keep = _last_use(nodes), set(keep)
    values = dict(values)
    for place in places:
        node = nodes[place]
        if place not in values:
            outputs = _call(node, [values[parent] for parent in node.parents], training)
            by_tensor = dict(zip(map(id, call_of(node.tensor).outputs), outputs, strict=True))
            # An operation with several outputs is called once: the positions of all its outputs are filled.
            for p in range(place, len(nodes)) if len(outputs) > 1 else [place]:
                if nodes[p].parents == node.parents and id(nodes[p].tensor) in by_tensor:
                    values[p] = by_tensor[id(nodes[p].tensor)]
        for parent in node.parents:
            if last_use[parent] == place and parent not in keep:
                values.pop(parent, None)
    return values


def _call(node: Node, inputs: Sequence[Any], training: bool | None) -> list[Any]:
    """Call an operation with the arguments that its network uses, on other inputs; return all its outputs."""
    call, rest = call_of(node.tensor), iter(inputs)
    args, kwargs = keras.tree.map_structure(
        lambda a: next(rest) if isinstance(a, keras.KerasTensor) else a, (call.args, call.kwargs)
    )
    if training is not None and accepts_training(call.op):
        kwargs = {**kwargs, "training": training}
    return list(keras.tree.flatten(call.op(*args, **kwargs)))


def fingerprint(model: keras.Model) -> str:
    """Hash what a network computes: its operations, how they are connected, and its weights."""
    result = hashlib.sha256()
    seen: dict[int, int] = {}
    for place, node in enumerate(graph(model)):
        config = {} if place == 0 else _described(node.op)
        constants = [] if place == 0 else _constants(node.tensor)
        description = (_kind(node.op), config, constants, node.parents, node.tensor.shape)
        result.update(re.sub(r"'name': '[^']*'", "", repr(description)).encode())
        if (
            seen.setdefault(id(node.op), place) == place
        ):  # a layer that is called twice has one set of weights
            for weight in getattr(node.op, "weights", ()):
                value = keras.ops.convert_to_numpy(weight)
                result.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            result.update(f"as {seen[id(node.op)]}".encode())
    return result.hexdigest()


def _described(op: Any, seen: tuple[Any, ...] = ()) -> Any:
    """Describe what an operation computes: by its configuration, and code from outside Keras by its attributes."""
    if has_graph(op):
        nodes = _nodes(op)
        rows = [(_kind(node.op), node.parents, node.tensor.shape, _constants(node.tensor)) for node in nodes]
        numbers = {} if is_graph(op) else _numbers(own_attributes(op))
        return numbers, [
            (*row, _described(node.op, (*seen, op))) for row, node in zip(rows, nodes, strict=True)
        ]
    if not is_custom(op):
        try:
            return _with_whole_arrays(config_of(op))
        except InputError:  # such as Identity with a data type
            if not seen:
                raise
    return {name: _described_value(value, (*seen, op)) for name, value in own_attributes(op).items()}


def _numbers(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if isinstance(value, bool | int | float | str)}


def _kind(op: Any) -> str:
    """Return the name of a class; models that only call their layers have one name, since copies change the class."""
    return "graph" if is_graph(op) else type(op).__name__


def _described_value(value: Any, seen: tuple[Any, ...]) -> Any:
    """Describe the value of an attribute; the values of variables are hashed with the weights."""
    describe = functools.partial(_described_value, seen=seen)
    if any(value is one for one in seen) or isinstance(value, keras.Variable | keras.KerasTensor):
        return None
    if isinstance(value, keras.layers.Layer):
        return _kind(value), _described(value, seen)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, types.FunctionType | types.CodeType):
        code = value.__code__ if isinstance(value, types.FunctionType) else value
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        defaults = getattr(value, "__defaults__", None)
        return code.co_code, code.co_names, describe(code.co_consts), describe(cells), describe(defaults)
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [describe(item) for item in value]
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    if hasattr(value, "get_config"):
        return type(value).__name__, _with_whole_arrays(value.get_config())
    try:
        return _text(np.asarray(value)) if hasattr(value, "shape") else type(value).__name__
    except Exception:  # a tensor of a graph has no value
        return None


def config_of(op: Any) -> dict[str, Any]:
    """Return a layer's configuration; raise an error that names the layer if that fails."""
    try:
        return dict(op.get_config())
    except Exception as error:  # the layer's own code may raise anything
        raise InputError(
            f"Layer {op.name!r} cannot be copied or compared: get_config() of {type(op).__name__} fails: "
            f"{one_line(error, most=200)}. Return all arguments of __init__ from get_config(), and pass **kwargs on to "
            "keras.layers.Layer."
        ) from error


def _constants(tensor: Any) -> list[str]:
    """List the arguments of the call that made a tensor, such as the 3 of `x + 3`."""
    call = call_of(tensor)
    arguments = keras.tree.flatten([call.args, call.kwargs])
    return ["tensor" if isinstance(value, keras.KerasTensor) else _text(value) for value in arguments]


def _with_whole_arrays(config: dict[str, Any]) -> Any:
    # `repr` of a long array leaves out most of its numbers.
    return keras.tree.map_structure(lambda value: _text(value) if hasattr(value, "shape") else value, config)


def _text(value: Any) -> str:
    """Return a text that changes with every number of a constant."""
    if hasattr(value, "shape"):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    return repr(value)
