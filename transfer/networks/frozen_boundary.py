"""Split a network where its frozen part ends, so that the frozen part runs once and its output is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.common.keras_private import all_layers, draws_random_numbers, has_own_state
from transfer.networks.graphs import Node, call_again, graph


def split_at_frozen_boundary(
    model: keras.Model, *, ignore_noise: bool = False
) -> tuple[keras.Model, keras.Model]:
    """Split a network into the frozen feature extractor near its input and the trainable upper layers."""
    nodes = graph(model)
    if not model.trainable_weights:
        raise InputError(
            f"Expected a model with trainable layers. Received: {model.name!r}, whose layers are all frozen."
        )
    frozen = {0}
    for place, node in enumerate(nodes):
        if place and frozen.issuperset(node.parents) and not _change_in(node.op, ignore_noise):
            frozen.add(place)
    if frozen == {0}:
        first = next(node.op for node in nodes[1:] if _change_in(node.op, ignore_noise))
        raise InputError(
            f"Expected a model whose first layers are frozen. Received: {model.name!r}, whose layer {first.name!r} "
            f"{_change_in(first, ignore_noise)}. Freeze it, or train the model as a whole."
        )
    same = {place for place in frozen if _is_same_for_all_images(nodes, place)}
    crossing = _cheapest_boundary(nodes, frozen - same)
    tensors = [nodes[place].tensor for place in crossing]
    extractor = keras.Model(model.inputs[0], _one_or_all(tensors), name=f"{model.name}_features")
    return extractor, _upper_layers(f"{model.name}_upper", nodes, crossing, same)


def frozen_bytes(extractor: keras.Model) -> int:
    """Return the bytes of one image's features as float16."""
    shapes = [tuple(tensor.shape[1:]) for tensor in extractor.outputs]
    if any(None in shape for shape in shapes):
        raise InputError(
            f"Expected a feature extractor for images of one size. Received: {extractor.name!r}, whose features have "
            f"the shapes {shapes}. Build the model with image_size=..."
        )
    return sum(np.dtype("float16").itemsize * math.prod(shape) for shape in shapes)


def _one_or_all(tensors: list[Any]) -> Any:
    return tensors if len(tensors) > 1 else tensors[0]


def _change_in(op: Any, ignore_noise: bool) -> str | None:
    """Return how a layer's output for one image changes during training, or None if it does not change."""
    for layer in all_layers(op):
        if any(weight.trainable for weight in layer.weights):
            return "trains"
        if isinstance(layer, keras.layers.BatchNormalization):
            if layer.trainable:  # it may have neither scale nor center
                return "takes its statistics from each batch"
        elif has_own_state(layer) and not _only_reads_state(layer):
            return "keeps a state that training may change"
        if draws_random_numbers(layer) and not ignore_noise:
            return "draws random numbers"
    return None


def _only_reads_state(layer: keras.layers.Layer) -> bool:
    """Return whether a layer never changes its own variables: layers of KerasHub keep positions in them."""
    if type(layer).__name__ == "SigLIPVisionEmbedding":
        return False  # it states a token too many, so its output cannot be stored
    return isinstance(layer, keras.layers.Normalization) or type(layer).__module__.startswith("keras_hub.")


def _is_cheap(op: Any) -> bool:
    """Return whether an operation may run again in each step: it is fast and draws no random numbers."""
    # Matrix multiplications and convolutions have weights with two axes or more.
    noisy = any(draws_random_numbers(layer) for layer in all_layers(op))
    return not noisy and all(len(weight.shape) < 2 for weight in getattr(op, "weights", ()))


def _is_same_for_all_images(nodes: Sequence[Node], place: int) -> bool:
    """Return whether a tensor has no batch axis, such as the position embeddings of DINOv3."""
    image, shape = nodes[0].tensor.shape, nodes[place].tensor.shape
    return image[0] is None and None not in image[1:] and (not shape or shape[0] is not None)


def _cheapest_boundary(nodes: Sequence[Node], frozen: set[int]) -> list[int]:
    """Return the frozen tensors with the fewest numbers from which the upper layers can be computed."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    # A minimum cut. Tensor n is an edge from 2n to 2n + 1, whose capacity is the tensor's size. Cheap operations may
    # lie after the boundary, where they run in each step. Others may not: the source feeds them without limit.
    source, sink = 2 * len(nodes), 2 * len(nodes) + 1
    # An unknown side counts as 1,024, so that an equal tensor of known size is preferred.
    sizes = {place: math.prod(n or 1024 for n in nodes[place].tensor.shape[1:]) for place in frozen}
    whole, unlimited = 2**20, 2**30  # the solver counts with 32 bits
    edges: dict[tuple[int, int], int] = {}
    for place, size in sizes.items():
        edges[2 * place, 2 * place + 1] = max(1, size * whole // max(sizes.values()))
        if place and _is_cheap(nodes[place].op):
            parents = frozen.intersection(nodes[place].parents)
            edges.update({(2 * parent + 1, 2 * place): unlimited for parent in parents})
        else:
            edges[source, 2 * place] = unlimited
    live = [node for place, node in enumerate(nodes) if place not in frozen]
    for place in frozen.intersection(parent for node in live for parent in node.parents):
        edges[2 * place + 1, sink] = unlimited
    edges[0, 1] = unlimited // 2  # images are an output only if a layer after the boundary reads them
    rows, columns = zip(*edges, strict=True)
    values = np.array(list(edges.values()), "int32")
    capacity = coo_array((values, (rows, columns)), (sink + 1, sink + 1)).tocsr()
    left = capacity - maximum_flow(capacity, source, sink).flow
    left.eliminate_zeros()
    behind = set(breadth_first_order(left.T.tocsr(), sink, return_predecessors=False))
    return [place for place in sorted(frozen) if 2 * place + 1 in behind and 2 * place not in behind]


def _upper_layers(name: str, nodes: Sequence[Node], crossing: list[int], same: set[int]) -> keras.Model:
    """Build the model from the crossing tensors to the output, with the same layers."""
    needed, stack = set(crossing), [len(nodes) - 1]
    while stack:
        place = stack.pop()
        if place not in needed:
            needed.add(place)
            stack += [] if place in same else nodes[place].parents
    tensors = [nodes[place].tensor for place in crossing]
    inputs = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in tensors]
    constants = {place: _constant(nodes, place) for place in sorted(needed & same)}
    values = {**dict(zip(crossing, inputs, strict=True)), **constants}
    found = call_again(nodes, values, sorted(needed.difference(values)))
    return keras.Model(_one_or_all(inputs), found[len(nodes) - 1], name=name)


def _constant(nodes: Sequence[Node], place: int) -> Any:
    """Return the value of a tensor that is the same for all images."""
    image = nodes[0].tensor
    zeros = keras.ops.zeros((1, *image.shape[1:]), image.dtype)
    return keras.Model(image, nodes[place].tensor)(zeros, training=False)
