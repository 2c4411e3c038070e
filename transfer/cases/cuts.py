"""Where to cut a network: names, positions and `all`, as names of layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral

import keras

from transfer.common.errors import InputError
from transfer.networks import graphs
from transfer.networks.backbones import block_ends

Cut = str | int | Sequence[str | int]


ALL_LAYERS = "all"
"""The cut of a head on every block's end."""


def cuts_of(base: keras.Model, cut: Cut) -> tuple[str, ...]:
    """Name the layers that a cut stands for."""
    ends = block_ends(base)
    if isinstance(cut, str):
        cut = _everywhere(base, ends) if cut == ALL_LAYERS else [name.strip() for name in cut.split(",")]
    parts = list(cut) if isinstance(cut, Iterable) else [cut]
    if not parts:
        raise InputError("Expected the name or position of at least one layer to cut at. Received: none.")
    names = {graphs.find(base, _named(part, ends, base.name)).op.name for part in parts}
    place = {node.op.name: place for place, node in enumerate(graphs.graph(base))}
    return tuple(sorted(names, key=place.__getitem__))


def _everywhere(base: keras.Model, ends: list[str]) -> list[str]:
    """List the block ends and the layer before the classifier, but no map whose average that layer is."""
    nodes = graphs.graph(base)
    last = graphs.find(base, graphs.layer_before_classifier(base))
    same, node = {last.op.name}, last
    while _averages(node, nodes[node.parents[0]].tensor.shape if node.parents else ()):
        node = nodes[node.parents[0]]
        same.add(node.op.name)
    return [end for end in ends if end not in same] + [last.op.name]


def _averages(node: graphs.Node, shape: tuple[int | None, ...]) -> bool:
    """Say whether an operation's output, averaged over the image, is its input, averaged over the
    image."""
    if isinstance(node.op, keras.layers.Flatten | keras.layers.Reshape):
        return math.prod(size or 0 for size in shape[1:]) == shape[-1]  # of one pixel
    return isinstance(node.op, keras.layers.Dropout | keras.layers.GlobalAveragePooling2D)


def _named(cut: str | int, ends: list[str], name: str) -> str:
    if not isinstance(cut, Integral):
        return str(cut)
    if not -len(ends) <= cut < len(ends):
        raise InputError(
            f"Expected a position among the {len(ends)} block ends of {name!r}, {-len(ends)} to "
            f"{len(ends) - 1}. Received: {cut}."
        )
    return ends[int(cut)]
