"""Low-rank adaptation (LoRA): two small trained matrices beside each frozen matrix of attention and Dense layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from transfer.common.errors import InputError
from transfer.common.keras_private import all_layers, kernel_without_lora
from transfer.common.whole_numbers import at_least


def check_rank(rank: int | None) -> None:
    """Raise unless a rank is None or a whole number of at least 1."""
    if rank is not None and not at_least(1, rank):
        raise InputError(f"Expected lora as a rank, a whole number of at least 1. Received: {rank!r}.")


def add_low_rank(model: keras.Model, rank: int, *, head: str, seed: int) -> None:
    """Add trainable low-rank matrices to a model's matrices; freeze all other variables except the head's."""
    trained = {id(variable) for variable in model.get_layer(head).variables}
    matrices = matrices_of(model.name, [layer for layer in model.layers if layer.name != head])
    for number, layer in enumerate(matrices):
        layer.enable_lora(rank, a_initializer=keras.initializers.HeUniform(seed + number))
        trained |= {id(layer.lora_kernel_a), id(layer.lora_kernel_b)}
    for variable in model.variables:
        variable.trainable = id(variable) in trained


def matrices_of(name: str, operations: Iterable[Any]) -> list[Any]:
    """Return the layers that LoRA adapts, in operations of a network; raise if there are none."""
    inner = [layer for operation in operations for layer in all_layers(operation)]
    found = [layer for layer in inner if isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense)]
    if not found:
        raise InputError(
            f"{name!r} has no attention or Dense layers, which LoRA adapts. Leave out lora to train all layers."
        )
    return found


def has_low_rank(layer: keras.layers.Layer) -> bool:
    """Return whether a layer, or one in it, has matrices that LoRA added."""
    return any(getattr(one, "lora_enabled", False) for one in all_layers(layer))


def merged_values(layer: keras.layers.Layer) -> dict[int, Any]:
    """Return each adapted matrix plus its low-rank product, by the id of its variable."""
    return {
        id(kernel_without_lora(one)): one.kernel
        for one in all_layers(layer)
        if getattr(one, "lora_enabled", False)
    }


def without_low_rank(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables of a layer, without the matrices that LoRA added."""
    added = {
        id(variable)
        for one in all_layers(layer)
        if getattr(one, "lora_enabled", False)
        for variable in (one.lora_kernel_a, one.lora_kernel_b)
    }
    return [variable for variable in layer.variables if id(variable) not in added]
