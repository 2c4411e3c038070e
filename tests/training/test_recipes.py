"""Recipes check their options and give the learning rate of each block."""

import dataclasses

import pytest

from transfer.common.errors import InputError
from transfer.training.recipes import Recipe, block_rates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay above 0"),
        ({"layer_decay": 1.5}, "layer_decay above 0"),
        ({"gradual_unfreezing": 1.0}, "gradual_unfreezing from 0"),
        ({"ema": -0.1}, "ema from 0"),
        ({"weight_decay": -1.0}, "weight_decay of 0"),
        ({"weight_decay": float("nan")}, "weight_decay of 0"),
        ({"clip_norm": 0.0}, "clip_norm above 0"),
        ({"mix": "mixapp"}, "mixup"),
        ({"batchnorm": "pined"}, "pinned"),
        ({"schedule": "step"}, "steps"),
        ({"decay_factor": 0.16}, "it divides"),
        ({"decay_factor": float("nan")}, "decay_factor of 1"),
        ({"decay_every": 0}, "decay_every of 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Recipe(**options)


def test_rates_grow_by_a_constant_factor_from_block_to_block():
    rates = block_rates(Recipe(layer_decay=0.01), 5, 0.0)
    assert rates[0] == pytest.approx(0.01) and rates[-1] == 1.0
    factors = [a / b for a, b in zip(rates[1:], rates, strict=False)]
    assert factors == pytest.approx([factors[0]] * 4)


def test_blocks_unfreeze_one_after_the_other_from_the_last():
    recipe = Recipe(gradual_unfreezing=0.8)
    trainable = [[rate > 0 for rate in block_rates(recipe, 5, step / 20)] for step in range(21)]
    assert trainable[0] == [False] * 4 + [True] and trainable[-1] == [True] * 5
    counts = [sum(row) for row in trainable]
    assert counts == sorted(counts) and set(counts) == {1, 2, 3, 4, 5}
    assert all(row == sorted(row) for row in trainable)
    assert counts.index(5) == 16


def test_the_default_recipe_changes_no_rate():
    assert block_rates(Recipe(), 4, 0.5) == [1.0] * 4
    assert dataclasses.astuple(Recipe())[:2] == (1.0, 0.0)
