"""Rules and metrics of ordered classes."""

import numpy as np
import pytest

from transfer.common.decision_rules import choose_rule, decide, expected_ranks
from transfer.evaluation.metrics import confusion_matrix
from transfer.evaluation.ordinal import ordinal_scores

ROWS = np.array([[0.4, 0.25, 0.35], [0.5, 0.0, 0.5], [0.1, 0.2, 0.7]])


def test_each_rule_decides_in_its_own_way():
    rows = np.array([[0.4, 0.0, 0.25, 0.35]])
    assert decide(rows, None).tolist() == decide(rows, "most-probable").tolist() == [0]
    assert decide(rows, "median").tolist() == [2]
    assert expected_ranks(rows).tolist() == pytest.approx([2.55])
    assert decide(rows, "expected").tolist() == [2]
    assert decide(ROWS, "median").tolist() == [1, 0, 2]
    assert decide(ROWS, "expected").tolist() == [1, 1, 2]


def test_certain_predictions_are_the_same_by_all_rules():
    certain = np.eye(5)
    for rule in ("most-probable", "median", "expected"):
        assert decide(certain, rule).tolist() == [0, 1, 2, 3, 4]
    assert choose_rule(np.arange(5), certain) == "most-probable"  # the first one of equals


def test_the_rule_with_the_lowest_error_is_chosen():
    rows = np.array([[0.4, 0.0, 0.25, 0.35]])
    assert choose_rule(np.array([2]), rows) == "median"  # so does the expected rank, which comes later
    assert choose_rule(np.array([0]), rows) == "most-probable"
    far = np.array([[0.51, 0.0, 0.0, 0.49], [0.51, 0.0, 0.0, 0.49]])
    assert choose_rule(np.array([1, 1]), far) == "expected"


def test_metrics_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    found[:100] = labels[:100]
    scores = ordinal_scores(confusion_matrix(labels, found, 5))
    kappa = metrics.cohen_kappa_score(labels, found, weights="quadratic")
    assert scores.quadratic_weighted_kappa == pytest.approx(kappa)
    assert scores.mean_absolute_error == pytest.approx(metrics.mean_absolute_error(labels, found))
    assert scores.accuracy_within_one == pytest.approx(np.mean(np.abs(labels - found) <= 1))


def test_kappa_of_one_class_is_defined():
    assert ordinal_scores(np.diag([0, 7, 0])) == (0.0, 1.0, 1.0)
