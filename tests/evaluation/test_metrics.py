"""Metrics on arrays against values computed by hand and by scikit-learn."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from transfer.evaluation.metrics import (
    accuracy_interval,
    calibration,
    class_scores,
    confused_pairs,
    fit_temperature,
    mcnemar_test,
    top_k,
)


@pytest.mark.parametrize(("correct", "count"), [(80, 100), (450, 500)])
def test_the_interval_is_close_to_the_binomial_interval(correct, count):
    low, high = accuracy_interval(np.arange(count) < correct)
    exact = [binom.ppf(q, count, correct / count) / count for q in (0.025, 0.975)]
    assert (low, high) == pytest.approx(exact, abs=0.011)


def test_the_interval_contains_the_true_accuracy_in_95_percent_of_samples():
    rng = np.random.default_rng(0)
    found = [accuracy_interval(rng.random(200) < 0.8, seed=i) for i in range(300)]
    assert 0.91 <= np.mean([low <= 0.8 <= high for low, high in found]) <= 0.985


def test_all_correct_or_all_wrong_gives_the_exact_interval():
    low, high = accuracy_interval(np.ones(20, bool))
    assert low == pytest.approx(0.025 ** (1 / 20)) and high == 1.0  # Clopper and Pearson
    assert accuracy_interval(np.zeros(20, bool)) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))


def test_groups_widen_the_interval():
    correct = np.repeat(np.arange(10) < 7, 20)
    patients = np.repeat(np.arange(10), 20)
    narrow, wide = accuracy_interval(correct), accuracy_interval(correct, groups=patients.tolist())
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])
    alone = accuracy_interval(np.arange(10) < 7)
    assert wide == pytest.approx(alone, abs=0.11)


def test_intervals_repeat_with_a_seed_and_hardly_depend_on_it():
    correct = np.arange(300) % 4 > 0
    assert accuracy_interval(correct) == accuracy_interval(correct)
    assert accuracy_interval(correct, seed=1) == pytest.approx(accuracy_interval(correct), abs=0.01)


def test_top_k_grows_to_one():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(6), 200)
    labels = np.arange(200) % 6
    fractions = [top_k(labels, probabilities, k) for k in range(1, 7)]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert fractions[0] == np.mean(probabilities.argmax(axis=1) == labels)


def test_classes_without_images_or_predictions_have_zeros():
    scores = class_scores(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b", "c"])
    assert [one.images for one in scores] == [2, 1, 0]
    assert scores[0].recall == 0.5 and scores[1].precision == 0.5
    assert scores[2][1:4] == (0, 0, 0)


def test_pairs_are_sorted_by_count():
    counts = np.array([[5, 1, 0], [3, 2, 2], [0, 0, 9]])
    pairs = confused_pairs(counts, ["a", "b", "c"])
    assert [(p.label, p.predicted, p.images) for p in pairs] == [("b", "a", 3), ("b", "c", 2), ("a", "b", 1)]
    assert pairs[0].fraction == pytest.approx(3 / 7)


def calibrated(count=20_000, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(0, 2, (count, classes)), axis=1)
    labels = (probabilities.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return labels, probabilities


def test_calibrated_probabilities_have_no_calibration_error_and_temperature_one():
    labels, probabilities = calibrated()
    assert calibration(labels, probabilities).error < 0.012
    assert fit_temperature(labels, probabilities) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_a_known_temperature_is_recovered(factor):
    labels, probabilities = calibrated()
    sharper = softmax(factor * np.log(probabilities), axis=1)
    assert fit_temperature(labels, sharper) == pytest.approx(factor, rel=0.04)
    assert calibration(labels, sharper).error > 3 * calibration(labels, probabilities).error


def test_calibration_counts_every_image_once():
    labels, probabilities = calibrated(500)
    probabilities[0] = [1, 0, 0, 0]  # at the edge of the last bin
    found = calibration(labels, probabilities)
    assert sum(found.counts) == 500
    assert len(found.counts) == len(found.accuracy) == len(found.confidence)
    # By hand: mean distance in each bin, weighted.
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(
        abs(confidence[bins == b].mean() - correct[bins == b].mean()) * np.mean(bins == b) for b in set(bins)
    )
    assert found.error == pytest.approx(error, abs=1e-9)


def test_probabilities_of_zero_and_one_do_not_break_the_temperature():
    labels = np.array([0, 1, 1, 0] * 10)
    assert np.isfinite(fit_temperature(labels, np.eye(2)[np.array([0, 1, 0, 0] * 10)]))


def test_equal_models_have_a_p_value_of_one():
    correct = np.arange(50) % 3 > 0
    assert mcnemar_test(correct, correct) == (0, 0, 1.0)
    gained, lost, p_value = mcnemar_test(np.ones(50, bool), correct)
    assert (gained, lost) == (17, 0) and p_value < 0.001
