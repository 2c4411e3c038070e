"""A few steps of fine-tuning, timed."""

from dataclasses import replace

import pytest
from helpers.networks import assert_bit_equal, snapshot

from transfer.adviser.trials import time_fine_tuning
from transfer.common.errors import InputError


def test_it_times_steps_and_leaves_the_base_as_it_was(colors, tiny):
    before = snapshot(tiny)
    found = time_fine_tuning(colors.train.take(range(40)), tiny, image_size=(32, 32), preprocessing="tf")
    assert_bit_equal(before, snapshot(tiny))
    assert found.steps == 8 and found.seconds_per_step > 0 and found.seconds_start > 0


def test_too_few_steps_are_refused(colors, tiny):
    with pytest.raises(InputError, match="4 steps or more"):
        time_fine_tuning(colors.train, tiny, image_size=(32, 32), steps=3)


def test_fewer_images_than_a_step_takes_and_classes_with_gaps_are_no_matter(colors, tiny):
    some = colors.train.take(range(6))
    some = replace(some, labels=some.labels * 3 + 1)
    found = time_fine_tuning(some, tiny, image_size=(32, 32), preprocessing="tf", steps=4)
    assert found.seconds_per_step > 0
