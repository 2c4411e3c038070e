"""Heads for images with several labels: the optimum of each label, its regularization, and folds."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from transfer.common.errors import InputError
from transfer.frozen.label_heads import assign_label_folds, solve_labels
from transfer.frozen.softmax_regression import SigmoidRegression


def problem(count=300, width=20, num_labels=4, seed=0):
    """Features, and labels that depend on them with noise; the last label is rare."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, width)).astype("float32")
    scores = 2 * x @ draw.normal(size=(width, num_labels)) + draw.logistic(size=(count, num_labels))
    return x, (scores > np.quantile(scores, [0.3, 0.5, 0.7, 0.95][:num_labels], axis=0).diagonal()).astype(
        int
    )


@pytest.mark.parametrize("count", [300, 12])
def test_each_label_has_the_solution_of_scikit_learn(count):
    x, labels = problem(count)
    kernel, bias = SigmoidRegression(x, labels[:, :3], np.ones(3)).solve(0.5, tolerance=1e-7)
    for number in range(3):
        other = LogisticRegression(C=0.5, tol=1e-10, max_iter=10**5).fit(
            x.astype("float64"), labels[:, number]
        )
        np.testing.assert_allclose(kernel[:, number], other.coef_[0], atol=1e-4)
        np.testing.assert_allclose(bias[number], other.intercept_[0], atol=1e-4)


def test_weights_count_for_images_with_the_label():
    x, labels = problem()
    kernel, _ = SigmoidRegression(x, labels[:, 3:], np.array([5.0])).solve(1.0, tolerance=1e-7)
    other = LogisticRegression(tol=1e-10, max_iter=10**5, class_weight={0: 1, 1: 5}).fit(
        x.astype("float64"), labels[:, 3]
    )
    np.testing.assert_allclose(kernel[:, 0], other.coef_[0], atol=1e-4)


def test_the_layer_fits_features_as_they_are_and_more_features_than_images():
    x, labels = problem(60)
    wide = np.concatenate([x, np.zeros((60, 100), "float32")], axis=1) * 7 + 3
    narrow, same = solve_labels(x, labels), solve_labels(wide, labels)
    np.testing.assert_allclose(same.probabilities(wide), narrow.probabilities(x), atol=1e-3)
    assert ((narrow.probabilities(x) > 0.5) == labels).mean() > 0.8


def test_out_of_fold_probabilities_do_not_know_their_labels():
    x, labels = problem(400)
    noise = np.random.default_rng(1).integers(0, 2, (400, 2))
    solved = solve_labels(x, np.concatenate([labels[:, :2], noise], axis=1))
    right = ((solved.out_of_fold > 0.5) == np.concatenate([labels[:, :2], noise], axis=1)).mean(axis=0)
    assert (right[:2] > 0.8).all() and (right[2:] < 0.6).all()
    assert (solved.regularization[2:] < solved.regularization[:2].min()).all(), "noise needs the strongest"


def test_a_label_that_no_image_or_each_image_has_is_predicted_so():
    x, labels = problem()
    labels[:, 0], labels[:, 1] = 0, 1
    probabilities = solve_labels(x, labels).probabilities(x)
    assert (probabilities[:, 0] < 0.1).all() and (probabilities[:, 1] > 0.9).all()


def test_folds_have_equal_shares_of_each_label_and_keep_groups_together():
    draw = np.random.default_rng(0)
    labels = (draw.random((300, 6)) < [0.02, 0.05, 0.1, 0.3, 0.5, 0.9]).astype(int)
    folds = assign_label_folds(labels)
    counts = np.stack([labels[folds == fold].sum(axis=0) for fold in range(3)])
    assert (np.ptp(counts, axis=0) <= 2).all() and np.ptp(np.bincount(folds)) <= 12
    groups = [f"patient {i // 5}" for i in range(300)]
    grouped = assign_label_folds(labels, groups=groups)
    assert all(len(set(grouped[5 * i : 5 * i + 5])) == 1 for i in range(60))
    assert np.bincount(grouped).min() > 60


@pytest.mark.parametrize("labels", [np.zeros(5), np.full((5, 2), 2), np.zeros((4, 2)), np.zeros((5, 0))])
def test_wrong_labels_raise(labels):
    with pytest.raises(InputError, match="each 0 or 1"):
        solve_labels(np.zeros((5, 3), "float32"), labels)
