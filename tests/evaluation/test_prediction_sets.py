"""Prediction sets contain the true class with the chosen probability."""

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.evaluation import prediction_sets as sets


def drawn(count, rng, sharpness=1.0):
    """Return probabilities of 5 classes, and labels drawn from them; a sharpness above 1 makes them overconfident."""
    logits = 2 * rng.normal(size=(count, 5))
    true, shown = (np.exp(scale * logits) for scale in (1.0, sharpness))
    true /= true.sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > rng.uniform(size=(count, 1))).argmax(axis=1)
    return shown / shown.sum(axis=1, keepdims=True), labels


def test_the_quantile_has_the_rank_of_finite_samples():
    scores = np.arange(1.0, 20.0)
    assert sets.conformal_quantile(scores, 0.95) == 19.0
    assert sets.conformal_quantile(scores, 0.9) == 18.0
    assert sets.conformal_quantile(scores, 0.5) == 10.0
    assert sets.conformal_quantile(scores, 0.96) is None
    assert sets.conformal_quantile(np.zeros(0), 0.5) is None


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_the_coverage_holds_for_any_model(coverage, sharpness):
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        threshold = sets.set_threshold(sets.set_scores(*drawn(60, rng, sharpness)), coverage)
        probabilities, labels = drawn(100, rng, sharpness)
        found.append(sets.prediction_sets(probabilities, threshold)[np.arange(100), labels].mean())
    assert coverage - 0.01 < np.mean(found) < coverage + 0.03


def test_no_set_is_empty_and_certain_images_have_small_sets():
    probabilities = np.array([[0.4, 0.35, 0.25], [0.98, 0.01, 0.01], [0.6, 0.38, 0.02]])
    inside = sets.prediction_sets(probabilities, 0.5)
    assert inside.tolist() == [[True, False, False], [True, False, False], [True, False, False]]
    assert sets.prediction_sets(probabilities, 0.65).sum(axis=1).tolist() == [2, 1, 2]


def test_too_few_images_are_reported_with_the_possible_coverage():
    with pytest.raises(
        InputError, match=r"9 validation images or more .* Received a run with 4\..* up to 0\.8"
    ):
        sets.set_threshold(np.zeros(4), 0.9)
    with pytest.raises(InputError, match="larger --val"):
        sets.set_threshold(np.zeros(0), 0.9)
    assert sets.set_threshold(np.arange(4.0), sets.possible_coverage(4)) == 3.0
    for wrong in (0, 1, -0.5, 90):
        with pytest.raises(InputError, match="between 0 and 1"):
            sets.set_threshold(np.zeros(100), wrong)


def test_sets_are_measured_on_other_images():
    probabilities, labels = np.array([[0.7, 0.3], [0.2, 0.8], [0.55, 0.45]]), np.array([0, 0, 1])
    values = sets.measure_sets(np.full(30, 0.6), probabilities, labels)
    assert values["measured"] == pytest.approx(2 / 3) and values["mean_size"] == pytest.approx(4 / 3)
    low, high = values["interval"]
    assert 0 <= low < 2 / 3 < high <= 1
    assert "coverage of 90%: measured coverage 66.7%" in sets.describe_sets(values)
