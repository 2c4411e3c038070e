"""A short fine-tuning: judged by pictures that it never saw, repeatable, within its time."""

from dataclasses import replace

import numpy as np
import pytest
from networks import assert_bit_equal, snapshot

from transfer.errors import InputError
from transfer.looks import look_at
from transfer.trials import FEWEST_STEPS, FOLDS, MOST_HELD_OUT, held_out, try_fine_tuning


@pytest.fixture(scope="module")
def some(colors):
    return colors.train.take(range(40))


def tried(some, tiny, **options):
    look = look_at(some, tiny, preprocessing="tf")
    features = list(look.taps.values())[-1]
    given = {"image_size": (32, 32), "preprocessing": "tf", "steps": 6, **options}
    return try_fine_tuning(some, features, tiny, **given)


def test_it_leaves_the_base_as_it_was_and_is_the_same_again(some, tiny):
    before = snapshot(tiny)
    one, other = tried(some, tiny), tried(some, tiny)
    assert_bit_equal(before, snapshot(tiny))
    for name in (
        "accuracy_frozen",
        "accuracy_tuned",
        "loss_frozen",
        "loss_tuned",
    ):  # threads add in any order
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3)
    assert one.steps == 6 and one.held_out == len(held_out(some.labels, (), 0))
    assert one.seconds_per_step > 0 and one.seconds_start >= 0
    assert one.loss_tuned != one.loss_frozen


def test_it_ends_in_time(some, tiny):
    assert tried(some, tiny, steps=60, limit=1e-6).steps == FEWEST_STEPS


def test_too_few_steps_are_refused(some, tiny):
    with pytest.raises(InputError, match="4 steps or more"):
        tried(some, tiny, steps=3)


def test_nothing_is_tried_where_nothing_can_be_held_out(some, tiny):
    assert tried(some.take([0, 39]), tiny) is None


def test_classes_without_gaps_are_not_needed(some, tiny):
    assert tried(replace(some, labels=some.labels * 3 + 1), tiny).held_out > 0


def test_each_class_is_held_out_in_part_and_groups_as_a_whole():
    labels = np.arange(90) % 3
    out = held_out(labels, (), 0)
    assert np.ptp(np.bincount(labels[out])) <= 1
    assert len(out) == pytest.approx(90 / FOLDS, abs=2)
    assert not np.array_equal(out, held_out(labels, (), 1))
    groups = [str(i // 6) for i in range(90)]
    chosen = {groups[i] for i in held_out(labels, groups, 0)}
    assert all((i in held_out(labels, groups, 0)) == (groups[i] in chosen) for i in range(90))


def test_of_many_pictures_no_more_are_held_out_than_tell_enough():
    assert len(held_out(np.arange(5000) % 10, (), 0)) == MOST_HELD_OUT


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 0, 1, 1, 1], list(range(50))])
def test_no_class_is_held_out_as_a_whole(labels):
    labels = np.array(labels)
    out = held_out(labels, (), 0)
    assert set(labels[out]) <= set(np.delete(labels, out))
