"""Metrics of images with several labels, compared with those of scikit-learn, and thresholds."""

import numpy as np
import pytest
from sklearn import metrics

from transfer.common.label_metrics import label_thresholds, mean_average_precision
from transfer.evaluation.label_metrics import (
    co_occurrence,
    f1_scores,
    label_scores,
)

draw = np.random.default_rng(0)
labels = (draw.random((200, 3)) < [0.1, 0.4, 0.7]).astype(int)
probabilities = np.clip(0.3 * labels + draw.random((200, 3)) * 0.7, 0, 1)


def test_metrics_are_those_of_scikit_learn():
    predicted = probabilities > 0.5
    found = f1_scores(predicted, labels)
    for kind in ("micro", "macro"):
        assert found[kind] == pytest.approx(metrics.f1_score(labels, predicted, average=kind))
    assert mean_average_precision(probabilities, labels) == pytest.approx(
        metrics.average_precision_score(labels, probabilities)
    )
    for number, row in enumerate(label_scores(probabilities, predicted, labels, ("a", "b", "c"))):
        truth, own = labels[:, number], predicted[:, number]
        assert row.precision == pytest.approx(metrics.precision_score(truth, own))
        assert row.recall == pytest.approx(metrics.recall_score(truth, own))
        assert (row.name, row.images) == ("abc"[number], truth.sum())


def test_a_label_without_images_is_left_out_of_the_means():
    empty = np.concatenate([labels, np.zeros((200, 1), int)], axis=1)
    more = np.concatenate([probabilities, np.full((200, 1), 0.9)], axis=1)
    assert mean_average_precision(more, empty) == mean_average_precision(probabilities, labels)
    assert f1_scores(more > 0.5, empty)["macro"] == f1_scores(probabilities > 0.5, labels)["macro"]
    assert np.isnan(label_scores(more, more > 0.5, empty, tuple("abcd"))[3].f1)
    assert np.isnan(mean_average_precision(more, empty * 0))


def test_no_other_threshold_has_a_higher_f1():
    thresholds = label_thresholds(probabilities, labels)
    for number, threshold in enumerate(thresholds):
        best = max(
            metrics.f1_score(labels[:, number], probabilities[:, number] > value)
            for value in np.linspace(0, 1, 101)
        )
        assert metrics.f1_score(labels[:, number], probabilities[:, number] > threshold) >= best


def test_thresholds_of_rare_labels_and_of_equal_probabilities():
    rare = np.zeros((50, 1), int)
    rare[:4] = 1
    assert label_thresholds(np.random.default_rng(0).random((50, 1)), rare) == [0.5]
    equal = label_thresholds(np.full((50, 1), 0.2), (np.arange(50) < 20).astype(int)[:, None])
    assert 0 <= equal[0] < 0.2, "all or none"


def test_co_occurrence_counts_pairs():
    found = co_occurrence(np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]]))
    assert found.tolist() == [[3, 2, 1], [2, 2, 1], [1, 1, 1]]
