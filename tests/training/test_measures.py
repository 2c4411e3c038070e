"""The noise of metrics, and metrics of guesses, against many simulated data sets."""

import numpy as np
import pytest

from transfer.common.label_metrics import mean_average_precision, r2
from transfer.training.measures import guess_of, noise_of


def simulated(task, draw, count, strength):
    truth = draw.normal(size=(count, 4))
    predicted = strength * truth + draw.normal(size=truth.shape)
    if task == "multi":
        return (truth > [0.0, 0.5, 1.0, 1.3]).astype("int8"), predicted
    # The best linear prediction of the truth.
    return truth[:, 0], predicted[:, 0] * strength / (strength**2 + 1)


@pytest.mark.parametrize("task, metric", [("multi", mean_average_precision), ("regression", r2)])
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_the_noise_of_a_metric_is_about_that_of_many_data_sets(task, metric, strength):
    draw = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(200):
        labels, predicted = simulated(task, draw, 150, strength)
        scores.append(metric(predicted, labels))
        errors.append(noise_of(task, labels)(scores[-1]))
    assert 0.5 < np.mean(errors) / np.std(scores) < 2


@pytest.mark.parametrize("task, metric", [("multi", mean_average_precision), ("regression", r2)])
def test_a_guess_has_the_metric_of_predictions_without_the_images(task, metric):
    labels, predicted = simulated(task, np.random.default_rng(0), 2000, 0.0)
    found = metric(predicted, labels)
    assert guess_of(task, labels) == pytest.approx(found, abs=0.03)


def test_the_noise_of_an_accuracy_is_its_standard_error():
    labels = np.array([0, 1, 1, 1])
    assert noise_of("single", labels)(0.5) == 0.25 and noise_of("ordinal", labels)(1.0) == 0
    assert guess_of("single", labels) == 0.75


def test_r2_is_that_of_scikit_learn():
    from sklearn.metrics import r2_score

    draw = np.random.default_rng(0)
    values, predicted = draw.normal(size=(2, 50))
    assert r2(predicted, values) == pytest.approx(r2_score(values, predicted))
    assert np.isnan(r2(predicted, np.ones(50)))
