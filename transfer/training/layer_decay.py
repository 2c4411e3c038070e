"""Let an optimizer of Keras follow a recipe: learning rates per block, weight decay, clipping, weight averages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from transfer.cases.decisions import find_decision
from transfer.common.errors import InputError
from transfer.common.keras_private import UpdateStep, averages_not_applied, index_of, replaced_update_step
from transfer.distributed.strategies import on_tensorflow, replicas_of, scope_of
from transfer.networks.graphs import analyze
from transfer.training.recipes import Recipe, block_rates

SetProgress = Callable[[float], None]
"""Called before each step with the completed fraction of the training, from 0 to 1."""


def blocks_of(model: keras.Model) -> tuple[list[int], int]:
    """Return the block number of each trainable variable, from the input on, and the number of blocks."""
    decision = find_decision(model)
    network = analyze(model)
    ends = set(decision.kept if decision else network.block_ends)
    number, numbers = 0, dict[int, int]()
    for node in network.nodes:
        for weight in getattr(node.op, "weights", ()):
            numbers.setdefault(id(weight), number)
        number += node.op.name in ends
    return [numbers[id(weight)] for weight in model.trainable_variables], number + 1


@contextlib.contextmanager
def optimizer_following(recipe: Recipe, model: keras.Model) -> Iterator[SetProgress | None]:
    """Let a compiled model's optimizer follow a recipe; yield a function that unfreezes blocks, if any."""
    # Clipping and averages are options of Keras' optimizers. Rates per block are not, and Keras decays all weights
    # at one rate: for both, the step of each variable is wrapped. The optimizer keeps its class, so that a saved
    # model loads without this package.
    _check(recipe, model)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # for a LossScaleOptimizer
    if recipe.clip_norm is not None:
        optimizer.global_clipnorm = recipe.clip_norm
    with contextlib.ExitStack() as stack:
        if recipe.ema:
            if optimizer.built and not optimizer.use_ema:
                raise InputError(
                    "Expected a model that has not been trained yet, for averages of its weights. Received: "
                    f"ema={recipe.ema} with an optimizer that has trained. Build the model again, or leave ema out."
                )
            optimizer.use_ema, optimizer.ema_momentum = True, recipe.ema
            stack.enter_context(averages_not_applied(optimizer))
        if recipe.layer_decay == 1.0 and not recipe.gradual_unfreezing and not recipe.weight_decay:
            yield None
            return
        rates, count, update_step = _update_step_by_block(optimizer, model, recipe)
        stack.enter_context(replaced_update_step(model, optimizer, update_step))

        def set_progress(progress: float) -> None:
            rates.assign(block_rates(recipe, count, progress))

        yield set_progress if recipe.gradual_unfreezing else None


def _check(recipe: Recipe, model: keras.Model) -> None:
    if recipe.clip_norm is not None and on_tensorflow() and replicas_of(model) > 1:
        raise InputError(
            "Expected no clip_norm on several devices: Keras clips the gradients of each of the "
            f"{replicas_of(model)} devices separately, so the result would depend on their number. Leave it out, "
            "or train on one device."
        )
    if recipe.gradual_unfreezing and not on_tensorflow():
        raise InputError(
            "Expected no gradual_unfreezing with Keras on JAX, which compiles the rates of the blocks into "
            "the step. Use unfreeze_from or layer_decay."
        )


def _update_step_by_block(
    optimizer: Any, model: keras.Model, recipe: Recipe
) -> tuple[keras.Variable, int, UpdateStep]:
    """Return the relative learning rate of each block, the number of blocks, and a step that uses the rates."""
    numbers, count = blocks_of(model)
    with scope_of(model):
        rates = keras.Variable(
            block_rates(recipe, count, 0.0), trainable=False, dtype="float32", name="block_rates"
        )
    # Biases and normalization, with one dimension, are not decayed.
    decays = [
        recipe.weight_decay if len(variable.shape) > 1 else 0.0 for variable in model.trainable_variables
    ]
    step = optimizer.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = index_of(optimizer, variable)
        rate = keras.ops.cast(learning_rate, "float32") * rates[numbers[index]]
        if decays[index]:
            optimizer.assign_sub(variable, variable * keras.ops.cast(rate * decays[index], variable.dtype))
        step(gradient, variable, rate)

    return rates, count, update_step
