"""Estimates of accuracy and time, their intervals, and the choice that is picked."""

from dataclasses import replace

import numpy as np
import pytest

from transfer.adviser.estimates import (
    FINE_TUNING_GAIN,
    MIN_IMPROVEMENT,
    CaseEstimate,
    Evidence,
    HeadEvidence,
    best_head,
    estimate_choices,
    pick,
    prediction_interval,
)
from transfer.adviser.trials import Trial
from transfer.cases.policies import Case

TRIAL = Trial(steps=8, seconds_per_step=0.3, seconds_start=6.0)

EVIDENCE = Evidence(
    num_train=400,
    num_sampled=400,
    num_test=100,
    num_classes=4,
    heads=(
        HeadEvidence("all", 0.8, 0.02),
        HeadEvidence("block5", 0.76, 0.02, whole=False),
        HeadEvidence("top", 0.75, 0.02),
    ),
    growth=0.04,
    chance=0.25,
    signal=True,
    pixel_accuracy=0.4,
    similar=True,
    trial=TRIAL,
    seconds_per_image=0.01,
    steps=400,
    steps_scratch=1200,
)


def test_all_choices_are_sorted_by_their_estimate():
    found = estimate_choices(EVIDENCE)
    assert [choice.cut for choice in found] == [None, "all", "block5", "top", "random"]
    assert [choice.case for choice in found] == [
        Case.LARGE_SIMILAR,
        Case.SMALL_SIMILAR,  # a head on all layers keeps the whole network
        Case.SMALL_DIFFERENT,
        Case.SMALL_SIMILAR,
        Case.LARGE_DIFFERENT,
    ]
    assert found[0].seconds == pytest.approx(6 + 400 * 0.3)


@pytest.mark.parametrize("similar", [True, False, None])
def test_heads_have_the_same_case_on_all_data(similar):
    """The similarity of one data set depends on the image size."""
    found = estimate_choices(replace(EVIDENCE, similar=similar))
    assert [one.case for one in found[1:4]] == [Case.SMALL_SIMILAR, Case.SMALL_DIFFERENT, Case.SMALL_SIMILAR]


def test_fine_tuning_on_different_data_is_case_4():
    assert estimate_choices(replace(EVIDENCE, similar=False))[0].case is Case.LARGE_DIFFERENT
    assert estimate_choices(replace(EVIDENCE, similar=None))[0].case is Case.LARGE_DIFFERENT


def test_images_outside_the_sample_raise_the_estimate():
    more = estimate_choices(replace(EVIDENCE, num_train=1600))
    for one, other in zip(estimate_choices(EVIDENCE)[:4], more[:4], strict=True):
        assert other.expected_accuracy == pytest.approx(one.expected_accuracy + 2 * 0.04)


def test_the_gain_of_fine_tuning_is_the_typical_one_and_falls_where_few_errors_are_left():
    def gain(accuracy):
        heads = (HeadEvidence("all", accuracy, 0.02), HeadEvidence("top", 0.3, 0.02))
        found = estimate_choices(replace(EVIDENCE, heads=heads))
        tuned, every = (choice.expected_accuracy for choice in found[:2])
        return tuned - every

    assert gain(0.4) == pytest.approx(gain(0.8)) == pytest.approx(FINE_TUNING_GAIN.mean)
    assert gain(0.8) > gain(0.92) > MIN_IMPROVEMENT > gain(0.99)


def test_without_a_trial_the_time_is_a_lower_bound():
    found = estimate_choices(replace(EVIDENCE, trial=None))[0]
    assert found.seconds == pytest.approx(3 * 0.01 * 32 * 400)
    assert estimate_choices(replace(EVIDENCE, trial=None, seconds_per_image=0.0))[0].seconds is None


def test_no_evidence_gives_no_choices():
    assert estimate_choices(replace(EVIDENCE, heads=())) == ()


def test_estimates_and_intervals_stay_between_0_and_1():
    certain = replace(EVIDENCE, heads=(HeadEvidence("top", 1.0, 0.0),), num_train=10**6)
    for choice in estimate_choices(certain):
        low, high = choice.interval
        assert 0 <= low <= choice.expected_accuracy <= high <= 1


def test_intervals_narrow_with_the_size_of_the_test_set():
    def width(count):
        low, high = prediction_interval(0.8, (0.01,), num_test=count)
        return high - low

    assert width(10) > width(100) > width(10_000) > width(0) > 0
    low, high = prediction_interval(1.0, (0.0,), num_test=50)
    assert low < 1 and high == 1
    draws = np.random.default_rng(0).binomial(100, 0.8, 4000) / 100  # coverage
    low, high = prediction_interval(0.8, (), num_test=100)
    assert 0.87 < np.mean((draws >= low) & (draws <= high)) < 0.95


def choice(cut, expected, seconds):
    case = Case.SMALL_SIMILAR if cut else Case.LARGE_SIMILAR
    return CaseEstimate(case, cut, expected, (0.0, 1.0), seconds, "")


@pytest.mark.parametrize(
    ("gain", "budget", "picked"),
    [
        (0.1, None, None),
        (0.1, 300.0, "top"),
        (0.1, 700.0, None),
        (MIN_IMPROVEMENT / 2, None, "top"),  # the gain is too small
        (-0.1, None, "top"),
    ],
)
def test_the_most_accurate_choice_within_the_budget_is_picked(gain, budget, picked):
    assert pick([choice("top", 0.8, 5.0), choice(None, 0.8 + gain, 600.0)], time_budget=budget).cut == picked


def test_the_fastest_choice_is_picked_if_none_fits_the_budget():
    assert pick([choice("top", 0.8, 50.0), choice(None, 0.9, 600.0)], time_budget=1.0).cut == "top"


def test_the_best_head_is_picked_on_a_frozen_network_and_among_equals_the_first():
    heads = [choice("top", 0.8, 5.0), choice("all", 0.8, 5.0), choice("block5", 0.7, 5.0)]
    assert pick(heads).cut == best_head(heads).cut == "top"
    assert pick([choice(None, 0.99, 600.0), *heads], frozen=True).cut == "top"
    assert best_head([choice(None, 0.99, 600.0), *heads]).cut == "top"


def test_no_slower_choice_with_a_lower_estimate_than_another_is_picked():
    found = estimate_choices(replace(EVIDENCE, heads=(HeadEvidence("all", 0.97, 0.02), *EVIDENCE.heads)))
    picked = pick(found)
    assert all(
        one.expected_accuracy <= picked.expected_accuracy or one.seconds > picked.seconds for one in found
    )
