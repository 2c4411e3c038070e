"""Decisions on measured numbers: what is expected, how surely, and what is picked."""

from dataclasses import replace

import numpy as np
import pytest

from transfer.adviser.estimates import (
    WORTH,
    Choice,
    Evidence,
    HeadEvidence,
    best_head,
    choices_of,
    interval_of,
    pick,
)
from transfer.adviser.trials import Trial
from transfer.cases.policies import Case

TRIAL = Trial(steps=8, seconds_per_step=0.3, seconds_start=6.0)

EVIDENCE = Evidence(
    num_train=400,
    num_looked=400,
    num_test=100,
    num_classes=4,
    heads=(
        HeadEvidence("top", 0.75, 0.02),
        HeadEvidence("block5", 0.76, 0.02),
        HeadEvidence("all", 0.8, 0.02),
    ),
    growth=0.04,
    chance=0.25,
    signal=True,
    pixels=0.4,
    similar=True,
    trial=TRIAL,
    seconds_per_image=0.01,
    steps=400,
    steps_scratch=1200,
)


def test_each_case_is_there_from_the_cheapest_to_the_costliest():
    found = choices_of(EVIDENCE)
    assert [choice.cut for choice in found] == ["top", "block5", "all", None, "random"]
    assert [choice.case for choice in found] == [
        Case.SMALL_SIMILAR,
        Case.SMALL_DIFFERENT,
        Case.SMALL_SIMILAR,  # nothing is sliced off for a head on all layers
        Case.LARGE_SIMILAR,
        Case.LARGE_DIFFERENT,
    ]
    seconds = [choice.seconds for choice in found]
    assert seconds == sorted(seconds)
    assert found[3].seconds == pytest.approx(6 + 400 * 0.3)


def test_different_data_that_are_fine_tuned_are_the_fourth_case():
    found = choices_of(replace(EVIDENCE, similar=False))
    assert found[2].case is Case.SMALL_DIFFERENT and found[3].case is Case.LARGE_DIFFERENT
    assert choices_of(replace(EVIDENCE, similar=None))[3].case is Case.LARGE_DIFFERENT


def test_images_that_were_not_looked_at_raise_what_is_expected():
    more = choices_of(replace(EVIDENCE, num_train=1600))
    for one, other in zip(choices_of(EVIDENCE)[:4], more[:4], strict=True):
        assert other.expected_accuracy == pytest.approx(one.expected_accuracy + 2 * 0.04)


def test_where_less_is_wrong_less_is_gained_but_never_nothing():
    def gain(accuracy):
        heads = (HeadEvidence("top", 0.3, 0.02), HeadEvidence("all", accuracy, 0.02))
        found = choices_of(replace(EVIDENCE, heads=heads))
        _, every, tuned, _ = (choice.expected_accuracy for choice in found)
        return tuned - every

    assert gain(0.4) > gain(0.6) > gain(0.9) > WORTH
    assert gain(0.92) == pytest.approx(gain(0.9))


def test_without_a_trial_the_time_is_the_least_that_it_can_be():
    found = choices_of(replace(EVIDENCE, trial=None))[3]
    assert found.seconds == pytest.approx(3 * 0.01 * 32 * 400)
    assert choices_of(replace(EVIDENCE, trial=None, seconds_per_image=0.0))[3].seconds is None


def test_nothing_measured_gives_no_choices():
    assert choices_of(replace(EVIDENCE, heads=())) == ()


def test_expectations_stay_within_what_an_accuracy_can_be():
    sure = replace(EVIDENCE, heads=(HeadEvidence("top", 1.0, 0.0),), num_train=10**6)
    for choice in choices_of(sure):
        low, high = choice.interval
        assert 0 <= low <= choice.expected_accuracy <= high <= 1


def test_an_interval_narrows_with_the_test_and_never_to_nothing():
    def width(count):
        low, high = interval_of(0.8, (0.01,), num_test=count)
        return high - low

    assert width(10) > width(100) > width(10_000) > width(0) > 0
    low, high = interval_of(1.0, (0.0,), num_test=50)
    assert low < 1 and high == 1
    draws = np.random.default_rng(0).binomial(100, 0.8, 4000) / 100  # covers as it says
    low, high = interval_of(0.8, (), num_test=100)
    assert 0.87 < np.mean((draws >= low) & (draws <= high)) < 0.95


def choice(cut, expected, seconds):
    case = Case.SMALL_SIMILAR if cut else Case.LARGE_SIMILAR
    return Choice(case, cut, expected, (0.0, 1.0), seconds, "")


@pytest.mark.parametrize(
    ("gain", "budget", "picked"),
    [
        (0.1, None, None),
        (0.1, 300.0, "top"),
        (0.1, 700.0, None),
        (WORTH / 2, None, "top"),  # not worth ten minutes
        (-0.1, None, "top"),
    ],
)
def test_the_most_accurate_that_is_worth_its_time_is_picked(gain, budget, picked):
    assert pick([choice("top", 0.8, 5.0), choice(None, 0.8 + gain, 600.0)], time_budget=budget).cut == picked


def test_where_no_choice_is_quick_enough_the_quickest_is_picked():
    assert pick([choice("top", 0.8, 50.0), choice(None, 0.9, 600.0)], time_budget=1.0).cut == "top"


@pytest.mark.parametrize(
    ("last", "early", "every", "picked"),
    [
        (0.8, 0.8, 0.8, "all"),
        (0.82, 0.81, 0.8, "all"),  # may be luck
        (0.84, 0.81, 0.8, "top"),
        (0.8, 0.86, 0.82, "block5"),
        (0.8, 0.82, 0.9, "all"),
    ],
)
def test_a_single_layer_is_picked_where_it_is_surely_better_than_all(last, early, every, picked):
    heads = [choice("top", last, 5.0), choice("block5", early, 5.0), choice("all", every, 5.0)]
    assert pick(heads).cut == best_head(heads).cut == picked
    assert pick([*heads, choice(None, 0.99, 600.0)], frozen=True).cut == picked
