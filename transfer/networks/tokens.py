"""Outputs of vision transformers: sequences of a class token, other tokens, and the patches of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from transfer.common.keras_private import all_layers
from transfer.networks.families import Family
from transfer.networks.graphs import NetworkInfo, Node

POOLING = ("class", "patches", "both")
"""What a head takes from tokens: the class token, the mean of the patches, or both, as DINOv2's linear probe does."""

_CLASS_TOKENS = ("class_token", "cls_token", "class_embedding")


def count_tokens(nodes: Sequence[Node]) -> tuple[int, int]:
    """Count the class tokens, and the register and distillation tokens before the patch tokens."""
    for node in nodes[:4]:  # the embedding follows the scaling
        classes = sum(getattr(node.op, name, None) is not None for name in _CLASS_TOKENS)
        others = getattr(node.op, "num_register_tokens", 0) + hasattr(node.op, "distillation_token")
        if classes + others:
            return classes, others
    return 0, 0


def num_tokens(network: NetworkInfo) -> int:
    """Return the number of tokens after the last block; 0 for feature maps and vectors."""
    shape: tuple[int | None, ...] = network.output(network.block_ends[-1]).shape if network.block_ends else ()
    return (shape[1] or 0) if len(shape) == 3 else 0


def as_maps(nodes: Sequence[Node], values: Any) -> Any:
    """Return feature maps, shape (batch, height, width, channels); the tokens of patches as a square grid."""
    if len(values.shape) == 4:
        return values
    patches = values[:, sum(count_tokens(nodes)) :]
    side = math.isqrt(patches.shape[1])
    return keras.ops.reshape(patches[:, : side * side], (-1, side, side, values.shape[-1]))


def mixes_tokens(node: Node) -> bool:
    """Return whether an operation has attention, alone or in a block, and returns tokens or a vector."""
    return len(node.tensor.shape) in (2, 3) and any(
        "Attention" in type(layer).__name__ for layer in all_layers(node.op)
    )


def pooled_tokens(
    nodes: Sequence[Node], place: int, family: Family | None, name: str, *, dtype: str | None = None
) -> Any:
    """Pool tokens into a vector per image in the way of the network's family; layer names start with `name`."""
    layers, tokens = keras.layers, nodes[place].tensor
    classes, others = count_tokens(nodes)
    pooling = family.tokens if family is not None and classes else "patches"
    vectors = []
    if pooling in ("class", "both"):
        last = tokens.shape[1] - 1
        first = layers.Cropping1D((0, last), dtype=dtype, name=f"{name}_first")(tokens)
        final = name if pooling == "class" else f"{name}_class"
        vectors.append(layers.Flatten(dtype=dtype, name=final)(first))
    if pooling in ("patches", "both"):
        skipped = classes + others
        if skipped:
            tokens = layers.Cropping1D((skipped, 0), dtype=dtype, name=f"{name}_patches")(tokens)
        final = name if pooling == "patches" else f"{name}_mean"
        vectors.append(layers.GlobalAveragePooling1D(dtype=dtype, name=final)(tokens))
    return vectors[0] if len(vectors) == 1 else layers.Concatenate(dtype=dtype, name=name)(vectors)
