"""Values, receptive fields and gradients inside a network, for explanations of its predictions.

Everything runs in inference mode. Layers are called on images, never on symbolic tensors, so that the model does not
change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.networks.graphs import Node, activation_of, bottlenecks, call_again, graph
from transfer.networks.tokens import mixes_tokens


def unnested(model: keras.Model) -> list[Node]:
    """List the operations of a model, with the operations of nested models in place of these models."""
    flat: list[Node] = []
    at: dict[int, int] = {}  # position in the model's own graph -> position in the flat one
    for place, node in enumerate(graph(model)):
        parents = tuple(at[parent] for parent in node.parents)
        inner = _nested_nodes(node.op) if len(parents) == 1 else None
        if inner is None:
            at[place] = len(flat)
            flat.append(Node(node.op, node.tensor, parents))
            continue
        shift = len(flat) - 1  # the nested model's first node is its input, which is left out
        for one in inner[1:]:
            flat.append(Node(one.op, one.tensor, tuple(p + shift if p else parents[0] for p in one.parents)))
        at[place] = len(flat) - 1 if len(inner) > 1 else parents[0]
    return flat


def _nested_nodes(op: Any) -> list[Node] | None:
    """Return the operations of a nested model, or None for a layer or a model without a graph."""
    if not isinstance(op, keras.Model):
        return None
    try:
        return unnested(op)
    except InputError:  # a subclass of keras.Model
        return None


def run(
    nodes: Sequence[Node], values: Mapping[int, Any], *, last: int | None = None, keep: Iterable[int] = ()
) -> dict[int, Any]:
    """Run the operations after the given values in inference mode; return the values still in use by position."""
    end = len(nodes) if last is None else last + 1
    return call_again(nodes, values, range(max(values) + 1, end), keep=keep, training=False)


MIN_TOKENS = 4
"""Fewest tokens that count as a feature map."""


class ReceptiveField(NamedTuple):
    """The part of the image that one pixel of a feature map depends on."""

    size: float  # length of the longer side in pixels of the image; infinite after global pooling
    step: float  # distance of the fields of neighboring pixels, in pixels of the image


def receptive_fields(nodes: Sequence[Node]) -> list[ReceptiveField]:
    """Compute the receptive field of each operation from kernels, strides, dilations and pooling."""
    fields: list[tuple[ReceptiveField, ReceptiveField]] = []  # along height and width
    for node in nodes:
        if not node.parents:
            fields.append((ReceptiveField(1, 1), ReceptiveField(1, 1)))
            continue
        pools = not is_map(node) and any(is_map(nodes[p]) for p in node.parents)
        is_global = pools and not (hasattr(node.op, "kernel_size") or hasattr(node.op, "pool_size"))
        is_global = is_global or mixes_tokens(node)
        kernel = _pair(node.op, "kernel_size", _pair(node.op, "pool_size"))
        stride, dilation = _pair(node.op, "strides"), _pair(node.op, "dilation_rate")
        upsamples = isinstance(node.op, keras.layers.Conv2DTranspose)
        factor = stride if upsamples else _pair(node.op, "size")  # of upsampling
        if len(node.tensor.shape) == 3 and len(nodes[node.parents[0]].tensor.shape) == 4:
            kernel = stride = _patch(node, nodes[node.parents[0]])
        both = []
        for axis in (0, 1):
            inputs = [fields[parent][axis] for parent in node.parents]
            # Ignore global inputs, such as the weights of squeeze-and-excite, unless all inputs are global. What
            # attention added to tokens stays in them.
            local = [
                field for field in inputs if field.size < math.inf or len(node.tensor.shape) == 3
            ] or inputs
            step = max(field.step for field in local) / factor[axis]
            step = int(step) if step == int(step) else step
            size = max(field.size for field in local) + (kernel[axis] - 1) * dilation[axis] * step
            both.append(
                ReceptiveField(math.inf if is_global else size, step * (1 if upsamples else stride[axis]))
            )
        fields.append((both[0], both[1]))
    return [ReceptiveField(max(h.size, w.size), max(h.step, w.step)) for h, w in fields]


def _patch(node: Node, image: Node) -> tuple[int, int]:
    """Return the height and width of the patches that become tokens."""
    side = max(1, math.isqrt(node.tensor.shape[1] or 1))
    return (max(1, (image.tensor.shape[1] or 1) // side), max(1, (image.tensor.shape[2] or 1) // side))


def _pair(op: Any, name: str, otherwise: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return a layer's setting for height and width."""
    value = getattr(op, name, None)
    if isinstance(value, int):
        return value, value
    return (value[0], value[1]) if isinstance(value, tuple | list) and len(value) == 2 else otherwise


def is_map(node: Node) -> bool:
    """Return whether an operation's output is a feature map with more than one pixel, or tokens of patches."""
    shape = node.tensor.shape
    tokens = len(shape) == 3 and (shape[1] or 0) >= MIN_TOKENS
    return tokens or (len(shape) == 4 and tuple(shape[1:3]) != (1, 1))


def find_feature_map(nodes: Sequence[Node], name: str | None = None) -> int:
    """Return the position of the layer with that name, or of the last feature map."""
    maps = [place for place in range(1, len(nodes)) if is_map(nodes[place])]
    if not maps:
        raise InputError(
            "Expected a model with feature maps, shape (batch, height, width, channels), or tokens, shape (batch, "
            "tokens, features), between its input and its output. "
            f"Received: a model with the layers {', '.join(node.op.name for node in nodes[1:7])}."
        )
    mixing = [place for place, node in enumerate(nodes) if mixes_tokens(node)]
    if name is None and mixing and not any(len(nodes[p].tensor.shape) == 4 for p in maps if p > mixing[-1]):
        # After the last attention, the class token no longer depends on the patches.
        return nodes[mixing[-1]].parents[0]
    if name is None:
        depth = [0]
        for node in nodes[1:]:
            depth.append(1 + max((depth[parent] for parent in node.parents), default=0))
        return max(maps, key=lambda place: (depth[place], place))
    named = [place for place in range(1, len(nodes)) if nodes[place].op.name == name]
    if not named:
        raise unknown("layer with feature maps", name, [nodes[place].op.name for place in maps])
    if not is_map(nodes[named[-1]]) and len(nodes[named[-1]].tensor.shape) != 4:
        raise InputError(
            f"Expected a layer with an output of shape (batch, height, width, channels) or (batch, tokens, features). "
            f"Received: {name!r} with "
            f"{tuple(nodes[named[-1]].tensor.shape)}."
        )
    return named[-1]


def shown_layers(model: keras.Model, *, most: int = 4) -> list[str]:
    """Return layers to show: the last ones of some resolutions, spread over the depth of the network."""
    nodes = unnested(model)
    last = find_feature_map(nodes)
    blocks = [place for place in bottlenecks(nodes) if place < last and mixes_tokens(nodes[place])]
    places = [*(blocks or _last_of_each_resolution(nodes, last)), last]
    chosen = np.linspace(len(places) - 1, 0, min(most, len(places))).round().astype(int)[::-1]
    return [nodes[places[i]].op.name for i in chosen]


def _last_of_each_resolution(nodes: Sequence[Node], last: int) -> list[int]:
    """Return the position of the last feature map of each resolution before that of `last`."""
    before = {last}
    for place in range(last, 0, -1):
        before |= set(nodes[place].parents) if place in before else set()
    kept = sorted(before)
    new = {old: place for place, old in enumerate(kept)}
    part = [Node(nodes[p].op, nodes[p].tensor, tuple(new[q] for q in nodes[p].parents)) for p in kept]
    ends: dict[float, int] = {}
    fields = receptive_fields(
        nodes
    )  # their steps stand for the resolution, because sizes may be unknown (None)
    for place in (kept[i] for i in bottlenecks(part)):
        computes = type(nodes[place].op).__name__ not in ("ZeroPadding2D", "Dropout", "SpatialDropout2D")
        if is_map(nodes[place]) and fields[place].size > 1 and computes:
            ends[fields[place].step] = place
    return [place for step, place in ends.items() if step != fields[last].step]


class ClassifierHead(NamedTuple):
    """Describes how to compute a classifier's logits."""

    position: int  # position of the operation whose output `logits` takes
    dense: Any  # the last layer, applied without its softmax, or None
    probabilities: bool  # whether the output holds probabilities, whose logarithms are the logits
    classes: int
    multi_label: bool

    def logits(self, values: Any) -> Any:
        """Compute float32 logits of shape (batch, classes) from the output of the operation at `position`."""
        if self.dense is not None:
            values = keras.ops.matmul(keras.ops.cast(values, self.dense.kernel.dtype), self.dense.kernel)
            values = values if self.dense.bias is None else values + self.dense.bias
        values = keras.ops.cast(values, "float32")
        if self.probabilities:
            values = keras.ops.log(keras.ops.maximum(values, 1e-30))
        if (
            values.shape[-1] == 1
        ):  # one number for two classes: the softmax of these two logits is its sigmoid
            values = keras.ops.concatenate([-values / 2, values / 2], axis=-1)
        return values


def head_of(nodes: Sequence[Node]) -> ClassifierHead:
    """Find out how to compute a classifier's logits, whether it ends in a softmax, a sigmoid or neither."""
    last, op, end = nodes[-1], nodes[-1].op, len(nodes) - 1
    if len(last.tensor.shape) != 2:
        raise InputError(
            f"Expected a classifier with an output of shape (batch, classes). Received: {op.name!r} with "
            f"{tuple(last.tensor.shape)}."
        )
    width = last.tensor.shape[-1]
    classes, squashed = max(2, width), _is_squashed(op)
    multi_label = activation_of(op) == "sigmoid" and width > 1
    if squashed and isinstance(op, keras.layers.Dense):
        return ClassifierHead(last.parents[0], op, False, classes, multi_label)
    if squashed and (isinstance(op, keras.layers.Activation) or not hasattr(op, "activation")):
        return ClassifierHead(last.parents[0], None, False, classes, multi_label)
    for node in nodes[
        :0:-1
    ]:  # from the end; a softmax may be followed by an operation such as a change of type
        if _is_squashed(node.op):
            return ClassifierHead(end, None, True, classes, False)
        if isinstance(node.op, keras.layers.Dense | keras.layers.Conv2D):
            break
    return ClassifierHead(end, None, False, classes, False)


def averaged_models(model: keras.Model) -> list[keras.Model]:
    """Return the models whose average a model returns, or the model itself."""
    nodes = graph(model)
    if not isinstance(nodes[-1].op, keras.layers.Average):
        return [model]
    return [keras.Model(model.inputs[0], nodes[parent].tensor) for parent in nodes[-1].parents]


def softmax_layer(model: keras.Model) -> keras.layers.Dense:
    """Return the Dense layer whose softmax a model returns, also inside a nested model."""
    nodes = unnested(model)
    last, found = nodes[-1].op, nodes[-1].op
    if not isinstance(found, keras.layers.Dense):  # a softmax of its own, after a layer without an activation
        found = nodes[nodes[-1].parents[0]].op
        found = found if activation_of(found) == "linear" else None
    if not isinstance(found, keras.layers.Dense) or activation_of(last) != "softmax":
        raise InputError(
            f"Expected a model that ends in a Dense layer and a softmax. Received: one that ends in {last.name!r}."
        )
    return found


def _is_squashed(op: Any) -> bool:
    return activation_of(op) in ("softmax", "sigmoid")


def gradient_at(function: Callable[[Any], tuple[Any, Any]], point: Any) -> tuple[Any, Any]:
    """Return the gradient of a function at a point, and the second result of the function."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(point)
            result, other = function(point)
        return tape.gradient(result, point, unconnected_gradients="zero"), other
    if backend == "jax":
        import jax

        (_, other), gradient = jax.value_and_grad(function, has_aux=True)(point)
        return gradient, other
    raise InputError(
        f"Expected Keras on TensorFlow or JAX, to compute gradients. Received: {backend!r}. Set KERAS_BACKEND before "
        "you import Keras."
    )
