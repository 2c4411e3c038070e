"""Metrics on arrays against values computed by hand and by scikit-learn."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom, binomtest
from sklearn import metrics

from transfer.evaluation.metrics import (
    accuracy_interval,
    calibration,
    class_scores,
    confused_pairs,
    confusion_matrix,
    exact_interval,
    fit_temperature,
    fraction_intervals,
    log_loss,
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_are_those_of_scikit_learn(dtype):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(7, 0.05), 200).astype(dtype)  # some are 0
    labels, predictions = rng.integers(0, 6, 200), probabilities.argmax(axis=1)
    every = list(range(7))
    np.testing.assert_array_equal(
        confusion_matrix(labels, predictions, 7), metrics.confusion_matrix(labels, predictions, labels=every)
    )
    expected = metrics.log_loss(labels, probabilities, labels=every)
    assert log_loss(labels, probabilities) == pytest.approx(expected, rel=1e-6)
    columns = metrics.precision_recall_fscore_support(labels, predictions, labels=every, zero_division=0.0)
    scores = class_scores(labels, predictions, [str(i) for i in every])
    np.testing.assert_allclose([score[1:] for score in scores], np.transpose(columns))


@pytest.mark.parametrize("count", [1, 6, 40])
def test_intervals_and_mcnemars_test_are_those_of_scipy(count):
    tests = [binomtest(hits, count) for hits in range(count + 1)]
    for hits, one in enumerate(tests):
        assert exact_interval(hits, count, 0.9) == pytest.approx(tuple(one.proportion_ci(0.9)))
        first = np.arange(count) < hits
        assert mcnemar_test(first, ~first) == (hits, count - hits, pytest.approx(one.pvalue))
    wilson = np.transpose([tuple(one.proportion_ci(method="wilson")) for one in tests])
    np.testing.assert_allclose(
        fraction_intervals(range(count + 1), [count] * (count + 1)), wilson, atol=1e-12
    )


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
    assert len(found.counts) == 15 and max(found.counts) - min(found.counts) <= 1
    # By hand: mean distance in each bin of neighboring confidences, weighted.
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order, ends = np.argsort(confidence), np.cumsum((0, *found.counts))
    bins = [order[start:end] for start, end in itertools.pairwise(ends)]
    np.testing.assert_allclose(found.confidence, [confidence[one].mean() for one in bins])
    np.testing.assert_allclose(found.accuracy, [correct[one].mean() for one in bins])
    error = sum(abs(confidence[one].mean() - correct[one].mean()) * len(one) / 500 for one in bins)
    assert found.error == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(("images", "bins"), [(1, 1), (39, 1), (40, 2), (100, 5), (10_000, 15)])
def test_no_bin_of_confidence_has_only_a_few_images(images, bins):
    found = calibration(*calibrated(images))
    assert len(found.counts) == bins and min(found.counts) >= min(images, 20)


def test_images_of_the_same_confidence_share_a_bin_in_any_order():
    probabilities = np.array([[1.0, 0.0]] * 60 + [[0.6, 0.4]] * 40)
    labels = np.arange(100) % 2
    found = calibration(labels, probabilities)
    assert found.counts == (40, 60) and found.confidence == pytest.approx((0.6, 1.0))
    order = np.random.default_rng(0).permutation(100)
    assert calibration(labels[order], probabilities[order]) == found


def test_intervals_of_fractions_hold_the_fraction_and_shrink_with_more_images():
    low, high = fraction_intervals(np.array([0, 5, 10, 500]), np.array([10, 10, 10, 1000]))
    assert (
        low[0] == 0
        and high[2] == 1
        and (low < [0.01, 0.5, 1, 0.5]).all()
        and (high > [0, 0.5, 0.99, 0.5]).all()
    )
    assert high[3] - low[3] < (high[1] - low[1]) / 5


def test_probabilities_of_zero_and_one_do_not_break_the_temperature():
    labels = np.array([0, 1, 1, 0] * 10)
    assert np.isfinite(fit_temperature(labels, np.eye(2)[np.array([0, 1, 0, 0] * 10)]))


def test_equal_models_have_a_p_value_of_one():
    correct = np.arange(50) % 3 > 0
    assert mcnemar_test(correct, correct) == (0, 0, 1.0)
    gained, lost, p_value = mcnemar_test(np.ones(50, bool), correct)
    assert (gained, lost) == (17, 0) and p_value < 0.001
