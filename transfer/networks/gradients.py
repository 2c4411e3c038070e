"""Networks looked into: what they give inside, what it depends on, and gradients with respect to it.

Nowhere else are gradients of a Keras model taken. Everything runs in inference mode: BatchNorm keeps its statistics,
and nothing is dropped out. A model's layers are called on images, never on symbolic tensors, so that a model bears
no trace of having been looked into.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.keras_private import accepts_training, call_of
from transfer.networks.graphs import Node, bottlenecks, graph


def unnested(model: keras.Model) -> list[Node]:
    """List the operations of a model, and in place of each model inside it, that one's operations."""
    flat: list[Node] = []
    at: dict[int, int] = {}  # place in the model's own graph -> place in the flat one
    for place, node in enumerate(graph(model)):
        parents = tuple(at[parent] for parent in node.parents)
        inner = _inside(node.op) if len(parents) == 1 else None
        if inner is None:
            at[place] = len(flat)
            flat.append(Node(node.op, node.tensor, parents))
            continue
        shift = len(flat) - 1  # of its nodes, the first of which is what feeds it
        for one in inner[1:]:
            flat.append(Node(one.op, one.tensor, tuple(p + shift if p else parents[0] for p in one.parents)))
        at[place] = len(flat) - 1 if len(inner) > 1 else parents[0]
    return flat


def _inside(op: Any) -> list[Node] | None:
    if not isinstance(op, keras.Model):
        return None
    try:
        return unnested(op)
    except InputError:  # a class of the user's own
        return None


def run(
    nodes: Sequence[Node], values: Mapping[int, Any], *, last: int | None = None, keep: Iterable[int] = ()
) -> dict[int, Any]:
    """Run the operations of a network one after the other."""
    last_use = {parent: place for place, node in enumerate(nodes) for parent in node.parents}
    found, keep = dict(values), set(keep)
    for place in range(max(found) + 1, (len(nodes) - 1 if last is None else last) + 1):
        node = nodes[place]
        found[place] = _call(node, [found[parent] for parent in node.parents])
        for parent in node.parents:
            if last_use[parent] == place and parent not in keep:
                found.pop(parent, None)
    return found


def _call(node: Node, given: Sequence[Any]) -> Any:
    """Call an operation as its network does, with values in place of symbolic tensors, in inference
    mode."""
    call, rest = call_of(node.tensor), iter(given)
    args, kwargs = keras.tree.map_structure(
        lambda a: next(rest) if isinstance(a, keras.KerasTensor) else a, (call.args, call.kwargs)
    )
    if accepts_training(call.op):
        kwargs = {**kwargs, "training": False}
    return keras.tree.flatten(call.op(*args, **kwargs))[call.output]


class Field(NamedTuple):
    """What one place of an output depends on."""

    # Pixels of the input, the longer side.
    side: float
    # Pixels from what one place depends on to what the next one does.
    step: float


def receptive_fields(nodes: Sequence[Node]) -> list[Field]:
    """Compute receptive fields from kernels, strides, dilations and pooling, from the input on."""
    found: list[tuple[Field, Field]] = []  # along height and width
    for node in nodes:
        if not node.parents:
            found.append((Field(1, 1), Field(1, 1)))
            continue
        pools = _one_place(node.tensor) and not all(_one_place(nodes[p].tensor) for p in node.parents)
        whole = pools and not (hasattr(node.op, "kernel_size") or hasattr(node.op, "pool_size"))
        kernel = _pair(node.op, "kernel_size", _pair(node.op, "pool_size"))
        stride, dilation = _pair(node.op, "strides"), _pair(node.op, "dilation_rate")
        finer = stride if isinstance(node.op, keras.layers.Conv2DTranspose) else _pair(node.op, "size")
        both = []
        for axis in (0, 1):
            given = [found[parent][axis] for parent in node.parents]
            local = [field for field in given if field.side < math.inf] or given
            step = max(field.step for field in local) / finer[axis]
            step = int(step) if step == int(step) else step
            side = max(field.side for field in local) + (kernel[axis] - 1) * dilation[axis] * step
            both.append(Field(math.inf if whole else side, step * (1 if finer is stride else stride[axis])))
        found.append((both[0], both[1]))
    return [Field(max(h.side, w.side), max(h.step, w.step)) for h, w in found]


def _one_place(tensor: Any) -> bool:
    return len(tensor.shape) != 4 or tuple(tensor.shape[1:3]) == (1, 1)


def _pair(op: Any, name: str, otherwise: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Read a layer's setting for height and width."""
    value = getattr(op, name, None)
    if isinstance(value, int):
        return value, value
    return (value[0], value[1]) if isinstance(value, tuple | list) and len(value) == 2 else otherwise


def is_map(node: Node) -> bool:
    """Say whether an operation gives maps of several places; one place, as behind pooling, shows
    nowhere."""
    shape = node.tensor.shape
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def find_maps(nodes: Sequence[Node], name: str | None = None) -> int:
    """Find the operation of that name that gives maps, or the last that does."""
    maps = [place for place in range(1, len(nodes)) if is_map(nodes[place])]
    if not maps:
        raise InputError(
            "Expected a model with a layer that gives maps, shape (batch, height, width, channels), between its input "
            f"and its output. Received: one with {', '.join(node.op.name for node in nodes[1:7])}."
        )
    if name is None:
        depth = [0]
        for node in nodes[1:]:
            depth.append(1 + max((depth[parent] for parent in node.parents), default=0))
        return max(maps, key=lambda place: (depth[place], place))
    named = [place for place in range(1, len(nodes)) if nodes[place].op.name == name]
    if not named:
        raise unknown("layer with maps", name, [nodes[place].op.name for place in maps])
    if len(nodes[named[-1]].tensor.shape) != 4:
        raise InputError(
            f"Expected a layer with an output of shape (batch, height, width, channels). Received: {name!r} with "
            f"{tuple(nodes[named[-1]].tensor.shape)}."
        )
    return named[-1]


def shown_layers(model: keras.Model, *, most: int = 4) -> list[str]:
    """Choose layers that are worth a look: the last of each resolution, spread over the network's depth."""
    nodes = unnested(model)
    last = find_maps(nodes)
    places = [*_last_of_each_resolution(nodes, last), last]
    chosen = np.linspace(len(places) - 1, 0, min(most, len(places))).round().astype(int)[::-1]
    return [nodes[places[i]].op.name for i in chosen]


def _last_of_each_resolution(nodes: Sequence[Node], last: int) -> list[int]:
    """Find places before the last maps; by step and not by size, which a network need not know."""
    before = {last}
    for place in range(last, 0, -1):
        before |= set(nodes[place].parents) if place in before else set()
    kept = sorted(before)
    new = {old: place for place, old in enumerate(kept)}
    part = [Node(nodes[p].op, nodes[p].tensor, tuple(new[q] for q in nodes[p].parents)) for p in kept]
    ends: dict[float, int] = {}
    fields = receptive_fields(nodes)
    for place in (kept[i] for i in bottlenecks(part)):
        moves = type(nodes[place].op).__name__ in ("ZeroPadding2D", "Dropout", "SpatialDropout2D")
        if is_map(nodes[place]) and fields[place].side > 1 and not moves:
            ends[fields[place].step] = place
    return [place for step, place in ends.items() if step != fields[last].step]


class ClassifierHead(NamedTuple):
    """How a network's output becomes logits."""

    place: int
    # The last layer, whose softmax is left out.
    dense: Any
    probable: bool
    classes: int
    several: bool

    def logits(self, given: Any) -> Any:
        """Make float32 logits of shape (batch, classes) of what the operation at `place` gives."""
        if self.dense is not None:
            given = keras.ops.matmul(keras.ops.cast(given, self.dense.kernel.dtype), self.dense.kernel)
            given = given if self.dense.bias is None else given + self.dense.bias
        given = keras.ops.cast(given, "float32")
        if self.probable:
            given = keras.ops.log(keras.ops.maximum(given, 1e-30))
        if given.shape[-1] == 1:  # one number for two classes: softmax of these two is its sigmoid
            given = keras.ops.concatenate([-given / 2, given / 2], axis=-1)
        return given


def head_of(nodes: Sequence[Node]) -> ClassifierHead:
    """Find out how a classifier's logits are got at, which its softmax hides."""
    last, op = nodes[-1], nodes[-1].op
    if len(last.tensor.shape) != 2:
        raise InputError(
            f"Expected a model that gives each image a number for each class, shape (batch, classes). Received: "
            f"{last.op.name!r} gives {tuple(last.tensor.shape)}."
        )
    width = last.tensor.shape[-1]
    known, several = _squashes(op), _squashes(op) == "sigmoid" and width > 1
    if known and isinstance(op, keras.layers.Dense):
        return ClassifierHead(last.parents[0], op, False, max(2, width), several)
    if known and (isinstance(op, keras.layers.Activation) or not hasattr(op, "activation")):
        return ClassifierHead(last.parents[0], None, False, max(2, width), several)
    behind = range(len(nodes))[-1:0:-1]
    for place in behind:  # a softmax that something follows, such as a change of type
        if _squashes(nodes[place].op):
            return ClassifierHead(len(nodes) - 1, None, True, max(2, width), False)
        if isinstance(nodes[place].op, keras.layers.Dense | keras.layers.Conv2D):
            break
    return ClassifierHead(len(nodes) - 1, None, False, max(2, width), False)


def _squashes(op: Any) -> str:
    """Name the softmax or sigmoid that an operation ends in; nothing where it ends in neither."""
    activation = getattr(op, "activation", None)
    name = getattr(activation, "__name__", "") if activation else type(op).__name__.lower()
    return name if name in ("softmax", "sigmoid") else ""


def gradient_at(function: Callable[[Any], tuple[Any, Any]], point: Any) -> tuple[Any, Any]:
    """Take the gradient of a function of a tensor, by the automatic differentiation of Keras' backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(point)
            result, found = function(point)
        return tape.gradient(result, point, unconnected_gradients="zero"), found
    if backend == "jax":
        import jax

        (_, found), gradient = jax.value_and_grad(function, has_aux=True)(point)
        return gradient, found
    raise InputError(
        f"Gradients are taken with Keras on TensorFlow or JAX. Received: {backend!r}. Set KERAS_BACKEND to one of them "
        "before Keras is imported."
    )
