"""What a recipe asks of an optimizer, done over any of Keras' own: rates by block, weight decay, clipping, averages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from transfer.cases.decisions import find_decision
from transfer.common.errors import InputError
from transfer.common.keras_private import UpdateStep, averages_not_applied, index_of, replaced_update_step
from transfer.distributed.strategies import on_tensorflow, replicas_of, scope_of
from transfer.networks import graphs
from transfer.networks.backbones import block_ends
from transfer.training.recipes import Recipe, block_rates


def blocks_of(model: keras.Model) -> tuple[list[int], int]:
    """Number the blocks that a model's trainable weights are in, from the input on."""
    decision = find_decision(model)
    ends = set(decision.kept if decision else block_ends(model))
    number, found = 0, dict[int, int]()
    for node in graphs.graph(model):
        for weight in getattr(node.op, "weights", ()):
            found.setdefault(id(weight), number)
        number += node.op.name in ends
    return [found[id(weight)] for weight in model.trainable_variables], number + 1


@contextlib.contextmanager
def following(recipe: Recipe, model: keras.Model) -> Iterator[Callable[[float], None] | None]:
    """Make a compiled model's optimizer follow a recipe for as long as this lasts."""
    _refuse(recipe, model)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of a LossScaleOptimizer
    if recipe.clip_norm is not None:
        optimizer.global_clipnorm = recipe.clip_norm
    with contextlib.ExitStack() as undo:
        if recipe.ema:
            _average(optimizer, recipe.ema)
            undo.enter_context(averages_not_applied(optimizer))
        if recipe.layer_decay == 1.0 and not recipe.gradual_unfreezing and not recipe.weight_decay:
            yield None
            return
        rates, count, update_step = _wrap(optimizer, model, recipe)
        undo.enter_context(replaced_update_step(model, optimizer, update_step))
        yield (
            (lambda progress: rates.assign(block_rates(recipe, count, progress)))
            if recipe.gradual_unfreezing
            else None
        )


def _refuse(recipe: Recipe, model: keras.Model) -> None:
    """What would be something else than what was asked, and silently."""
    if recipe.clip_norm is not None and on_tensorflow() and replicas_of(model) > 1:
        raise InputError(
            f"Expected no clip_norm on several devices: Keras clips what each of the {replicas_of(model)} computes by "
            "itself, and the result would depend on their number. Leave it out, or train on one."
        )
    if recipe.gradual_unfreezing and not on_tensorflow():
        raise InputError(
            "Expected no gradual_unfreezing with Keras on JAX, which compiles the rates of blocks into the step. "
            "Use unfreeze_from or layer_decay."
        )


def _average(optimizer: Any, ema: float) -> None:
    """Have the optimizer keep averages, which Keras' `fit` would put into the model whenever it ends."""
    if optimizer.built and not optimizer.use_ema:
        raise InputError(
            f"Expected a model whose optimizer has not trained yet, for averages of its weights. Received: {ema=} with "
            "one that has. Build the model anew, or leave ema out."
        )
    optimizer.use_ema, optimizer.ema_momentum = True, ema


def _wrap(optimizer: Any, model: keras.Model, recipe: Recipe) -> tuple[Any, int, UpdateStep]:
    """Wrap the step of each variable; give the rates by block, which may be set, and how many blocks there
    are."""
    numbers, count = blocks_of(model)
    with scope_of(model):
        rates = keras.Variable(
            block_rates(recipe, count, 0.0), trainable=False, dtype="float32", name="block_rates"
        )
    variables = model.trainable_variables
    decays = [recipe.weight_decay if len(variable.shape) > 1 else 0.0 for variable in variables]
    step = optimizer.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        place = index_of(optimizer, variable)
        rate = keras.ops.cast(learning_rate, "float32") * rates[numbers[place]]
        if decays[place]:
            shrunk = variable * keras.ops.cast(rate * decays[place], variable.dtype)
            optimizer.assign_sub(variable, shrunk)
        step(gradient, variable, rate)

    return rates, count, update_step
