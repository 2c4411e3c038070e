"""Figures on arrays against numbers worked out by hand, and against scikit-learn."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from transfer.evaluation.metrics import (
    accuracy_interval,
    calibration,
    class_scores,
    compare_right,
    confused_pairs,
    fit_temperature,
    top_k,
)


@pytest.mark.parametrize(("right", "count"), [(80, 100), (450, 500)])
def test_the_interval_covers_what_the_binomial_gives(right, count):
    low, high = accuracy_interval(np.arange(count) < right)
    exact = [binom.ppf(q, count, right / count) / count for q in (0.025, 0.975)]
    assert (low, high) == pytest.approx(exact, abs=0.011)


def test_the_interval_holds_the_truth_in_19_of_20_tests():
    rng = np.random.default_rng(0)
    found = [accuracy_interval(rng.random(200) < 0.8, seed=i) for i in range(300)]
    assert 0.91 <= np.mean([low <= 0.8 <= high for low, high in found]) <= 0.985


def test_all_right_or_none_is_not_certain():
    low, high = accuracy_interval(np.ones(20, bool))
    assert low == pytest.approx(0.025 ** (1 / 20)) and high == 1.0  # Clopper and Pearson
    assert accuracy_interval(np.zeros(20, bool)) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))


def test_images_of_one_patient_are_no_new_evidence():
    right = np.repeat(np.arange(10) < 7, 20)
    patients = np.repeat(np.arange(10), 20)
    narrow, wide = accuracy_interval(right), accuracy_interval(right, groups=patients.tolist())
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])
    alone = accuracy_interval(np.arange(10) < 7)
    assert wide == pytest.approx(alone, abs=0.11)


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly():
    right = np.arange(300) % 4 > 0
    assert accuracy_interval(right) == accuracy_interval(right)
    assert accuracy_interval(right, seed=1) == pytest.approx(accuracy_interval(right), abs=0.01)


def test_top_k_grows_to_one():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(6), 200)
    labels = np.arange(200) % 6
    shares = [top_k(labels, probabilities, k) for k in range(1, 7)]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert shares[0] == np.mean(probabilities.argmax(axis=1) == labels)


def test_classes_without_images_or_predictions_have_zeros():
    scores = class_scores(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b", "c"])
    assert [one.images for one in scores] == [2, 1, 0]
    assert scores[0].recall == 0.5 and scores[1].precision == 0.5
    assert scores[2][1:4] == (0, 0, 0)


def test_pairs_are_listed_by_their_number():
    counts = np.array([[5, 1, 0], [3, 2, 2], [0, 0, 9]])
    pairs = confused_pairs(counts, ["a", "b", "c"])
    assert [(p.label, p.predicted, p.images) for p in pairs] == [
        ("b", "a", 3),
        ("b", "c", 2),
        ("a", "b", 1),
    ]
    assert pairs[0].share == pytest.approx(3 / 7)


def honest(count=20_000, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(0, 2, (count, classes)), axis=1)
    labels = (probabilities.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return labels, probabilities


def test_honest_probabilities_have_no_calibration_error_and_temperature_one():
    labels, probabilities = honest()
    assert calibration(labels, probabilities).error < 0.012
    assert fit_temperature(labels, probabilities) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_a_temperature_is_found_again(factor):
    labels, probabilities = honest()
    sharper = softmax(factor * np.log(probabilities), axis=1)
    assert fit_temperature(labels, sharper) == pytest.approx(factor, rel=0.04)
    assert calibration(labels, sharper).error > 3 * calibration(labels, probabilities).error


def test_calibration_counts_every_image_once():
    labels, probabilities = honest(500)
    probabilities[0] = [1, 0, 0, 0]  # at the very edge of the last bin
    found = calibration(labels, probabilities)
    assert sum(found.counts) == 500
    assert len(found.counts) == len(found.accuracy) == len(found.confidence)
    # By hand: mean distance in each bin, weighted.
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((sure * 15).astype(int), 14)
    error = sum(abs(sure[bins == b].mean() - right[bins == b].mean()) * np.mean(bins == b) for b in set(bins))
    assert found.error == pytest.approx(error, abs=1e-9)


def test_probabilities_of_zero_and_one_do_not_break_the_temperature():
    labels = np.array([0, 1, 1, 0] * 10)
    assert np.isfinite(fit_temperature(labels, np.eye(2)[np.array([0, 1, 0, 0] * 10)]))


def test_equal_models_are_not_told_apart():
    right = np.arange(50) % 3 > 0
    assert compare_right(right, right) == (0, 0, 1.0)
    gained, lost, chance = compare_right(np.ones(50, bool), right)
    assert (gained, lost) == (17, 0) and chance < 0.001
