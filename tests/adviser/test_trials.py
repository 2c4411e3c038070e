"""Timing of a few steps of fine-tuning."""

from dataclasses import replace

import pytest
from helpers.networks import assert_bit_equal, snapshot

from transfer.adviser.trials import time_fine_tuning
from transfer.common.errors import InputError


def test_steps_are_timed_and_the_base_is_not_changed(colors, tiny):
    before = snapshot(tiny)
    trial = time_fine_tuning(colors.train.take(range(40)), tiny, image_size=(32, 32), preprocessing="tf")
    assert_bit_equal(before, snapshot(tiny))
    assert trial.steps == 8 and trial.seconds_per_step > 0 and trial.seconds_start > 0


def test_too_few_steps_are_rejected(colors, tiny):
    with pytest.raises(InputError, match="4 steps or more"):
        time_fine_tuning(colors.train, tiny, image_size=(32, 32), steps=3)


def test_fewer_images_than_a_batch_and_gaps_between_labels_work(colors, tiny):
    some = colors.train.take(range(6))
    some = replace(some, labels=some.labels * 3 + 1)
    trial = time_fine_tuning(some, tiny, image_size=(32, 32), preprocessing="tf", steps=4)
    assert trial.seconds_per_step > 0
