"""Cuts: names, positions and `all`, resolved to names of layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from numbers import Integral

import keras

from transfer.common.errors import InputError
from transfer.networks.graphs import NetworkInfo, Node

Cut = str | int | Sequence[str | int]
"""A layer's name or the position of its block, several of them, or `"all"`."""

ALL_LAYERS = "all"
"""The cut that puts a head on the ends of all blocks."""


def cuts_of(network: NetworkInfo, cut: Cut) -> tuple[str, ...]:
    """Return the names of the layers at which a cut slices, in the order of the network."""
    if isinstance(cut, str):
        cut = _all_ends(network) if cut == ALL_LAYERS else [name.strip() for name in cut.split(",")]
    parts = list(cut) if isinstance(cut, Iterable) else [cut]
    if not parts:
        raise InputError("Expected the name or position of at least one layer to cut at. Received: none.")
    places = sorted({network.position(_layer_name(network, part)) for part in parts})
    return tuple(network.nodes[place].op.name for place in places)


def keeps_whole(network: NetworkInfo, cuts: Sequence[str]) -> bool:
    """Return whether the head sees the last layer, so that the cuts remove only the classifier."""
    return cuts[-1] in _same_as_last(network)


def _all_ends(network: NetworkInfo) -> list[str]:
    """List the block ends and the last layer, without feature maps that the last layer only averages."""
    same = _same_as_last(network)
    return [end for end in network.block_ends if end not in same] + [network.last_layer]


def _same_as_last(network: NetworkInfo) -> set[str]:
    """Return the last layer and the layers before it that it only averages."""
    node = network.nodes[network.position(network.last_layer)]
    same = {node.op.name}
    while node.parents and _keeps_average(node, network.nodes[node.parents[0]]):
        node = network.nodes[node.parents[0]]
        same.add(node.op.name)
    return same


def _keeps_average(node: Node, parent: Node) -> bool:
    """Return whether an operation keeps the average over the image."""
    if isinstance(node.op, keras.layers.Flatten | keras.layers.Reshape):
        shape = parent.tensor.shape
        return math.prod(size or 0 for size in shape[1:]) == shape[-1]  # feature maps of one pixel
    return isinstance(node.op, keras.layers.Dropout | keras.layers.GlobalAveragePooling2D)


def _layer_name(network: NetworkInfo, cut: str | int) -> str:
    if isinstance(cut, str) and re.fullmatch(r"-?\d+", cut) and cut not in network.names:
        cut = int(cut)  # a number on the command line
    if not isinstance(cut, Integral):
        return str(cut)
    ends = network.block_ends
    if not -len(ends) <= cut < len(ends):
        raise InputError(
            f"Expected the position of one of the {len(ends)} block ends of {network.name!r}, {-len(ends)} to "
            f"{len(ends) - 1}. Received: {cut}."
        )
    return ends[int(cut)]
