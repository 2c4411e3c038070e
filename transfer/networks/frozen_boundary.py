"""Splitting a network where its frozen part ends: what comes before can be computed once and kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from transfer.common.errors import InputError
from transfer.common.keras_private import all_layers, call_of, draws_random_numbers, has_own_state
from transfer.networks.graphs import Node, graph


def split_at_frozen_boundary(
    model: keras.Model, *, ignore_noise: bool = False
) -> tuple[keras.Model, keras.Model]:
    """Split a network into the frozen part near its input and the rest, which trains."""
    nodes = graph(model)
    if not model.trainable_weights:
        raise InputError(f"Expected a model of which a part trains. Received: {model.name!r}, all frozen.")
    frozen = {0}
    for place, node in enumerate(nodes):
        if place and frozen.issuperset(node.parents) and not _liveness(node.op, ignore_noise):
            frozen.add(place)
    if frozen == {0}:
        first = next(node.op for node in nodes[1:] if _liveness(node.op, ignore_noise))
        raise InputError(
            f"Expected a model whose first layers are frozen. Received: {model.name!r}, whose layer {first.name!r} "
            f"{_liveness(first, ignore_noise)}. Freeze it, or train the model as a whole."
        )
    crossing = _narrowest(nodes, frozen)
    tensors = [nodes[place].tensor for place in crossing]
    extractor = keras.Model(
        model.inputs[0], tensors if len(tensors) > 1 else tensors[0], name=f"{model.name}_trunk"
    )
    return extractor, _tail(model.name, nodes, crossing)


def frozen_bytes(extractor: keras.Model) -> int:
    """Say how much one image takes where all that crosses the boundary is kept as float16."""
    shapes = [tuple(tensor.shape[1:]) for tensor in extractor.outputs]
    if any(None in shape for shape in shapes):
        raise InputError(
            f"Expected a trunk for images of one size. Received: {extractor.name!r}, which gives {shapes}. Build the "
            "model with image_size=..."
        )
    return sum(np.dtype("float16").itemsize * math.prod(shape) for shape in shapes)


def _liveness(op: Any, ignore_noise: bool) -> str | None:
    """Say what training changes or draws in a layer; None where it computes the same each time."""
    for layer in all_layers(op):
        if any(weight.trainable for weight in layer.weights):
            return "trains"
        if isinstance(layer, keras.layers.BatchNormalization):
            if layer.trainable:  # it may have neither scale nor center
                return "takes its statistics from each batch"
        elif has_own_state(layer) and not isinstance(layer, keras.layers.Normalization):
            return "keeps a state that training may change"
        if draws_random_numbers(layer) and not ignore_noise:
            return "draws random numbers"
    return None


def _is_cheap(op: Any) -> bool:
    """Say whether an operation may be computed again at each step, as it hardly takes longer than reading
    its input: not where it multiplies with matrices, and not where it would draw random numbers."""
    if not isinstance(op, keras.layers.Layer):
        return True
    noisy = any(draws_random_numbers(layer) for layer in all_layers(op))
    return not noisy and all(len(weight.shape) < 2 for weight in op.weights)


def _narrowest(nodes: Sequence[Node], frozen: set[int]) -> list[int]:
    """Choose which frozen tensors cross: the fewest numbers from which the tail can compute what it
    reads."""
    source, sink = 2 * len(nodes), 2 * len(nodes) + 1
    sizes = {place: math.prod(n or 1 for n in nodes[place].tensor.shape[1:]) for place in frozen}
    whole, uncut = 2**20, 2**30  # the solver counts with 32 bits
    edges: dict[tuple[int, int], int] = {}
    for place, size in sizes.items():  # tensor number n is the edge from 2n to 2n + 1
        edges[2 * place, 2 * place + 1] = max(1, size * whole // max(sizes.values()))
        if place and _is_cheap(nodes[place].op):
            edges.update({(2 * parent + 1, 2 * place): uncut for parent in nodes[place].parents})
        else:
            edges[source, 2 * place] = uncut
    for read in _read_by_the_rest(nodes, frozen):
        edges[2 * read + 1, sink] = uncut
    edges[0, 1] = uncut // 2  # images themselves cross only where something behind the boundary reads them
    rows, columns = zip(*edges, strict=True)
    capacity = coo_array(
        (np.array(list(edges.values()), "int32"), (rows, columns)), (sink + 1, sink + 1)
    ).tocsr()
    left = capacity - maximum_flow(capacity, source, sink).flow
    left.eliminate_zeros()
    late = set(breadth_first_order(left.T.tocsr(), sink, return_predecessors=False))
    return [place for place in sorted(frozen) if 2 * place + 1 in late and 2 * place not in late]


def _read_by_the_rest(nodes: Sequence[Node], frozen: set[int]) -> Iterable[int]:
    rest = [node for place, node in enumerate(nodes) if place not in frozen]
    return sorted({parent for node in rest for parent in node.parents if parent in frozen})


def _tail(name: str, nodes: Sequence[Node], crossing: list[int]) -> keras.Model:
    """Call all operations again that lie between the crossing tensors and the output."""
    needed, stack = set(crossing), [len(nodes) - 1]
    while stack:
        place = stack.pop()
        if place not in needed:
            needed.add(place)
            stack += nodes[place].parents
    inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in (nodes[p].tensor for p in crossing)]
    new = {id(nodes[place].tensor): tensor for place, tensor in zip(crossing, inputs, strict=True)}
    for place in sorted(needed):
        tensor = nodes[place].tensor
        if id(tensor) in new:
            continue
        call = call_of(tensor)
        args, kwargs = keras.tree.map_structure(lambda a: new.get(id(a), a), (call.args, call.kwargs))
        for old, made in zip(call.outputs, keras.tree.flatten(call.op(*args, **kwargs)), strict=True):
            new.setdefault(id(old), made)
    return keras.Model(
        inputs if len(inputs) > 1 else inputs[0], new[id(nodes[-1].tensor)], name=f"{name}_tail"
    )
