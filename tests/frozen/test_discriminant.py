"""A discriminant is that of scikit-learn, for any shape of the features, and is chosen where it is better."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from transfer.frozen import heads
from transfer.frozen.discriminant import SHRINKAGES, Discriminant


def noisy(per_class: int, width: int, classes: int = 4, *, apart: float = 0.5, seed: int = 0):
    """Images of a class differ a lot in a few directions, and the classes differ a little in all."""
    rng = np.random.default_rng(seed)
    labels = np.arange(per_class * classes) % classes
    centers = apart * np.random.default_rng(99).normal(size=(classes, width))
    directions = 3 * np.random.default_rng(98).normal(size=(8, width))
    x = centers[labels] + rng.normal(size=(len(labels), 8)) @ directions
    return x + rng.normal(size=x.shape), labels


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_the_layer_equals_that_of_scikit_learn(shrinkage):
    x, labels = noisy(30, 12)
    x, labels = x[:100], np.r_[labels[:80], np.zeros(20, int)]  # classes of different size
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, labels)
    # scikit-learn divides the covariance by the number of images, this module by the degrees of freedom.
    kernel, bias = Discriminant(x, labels, np.ones(4)).solve(shrinkage, temperature=96 / 100)
    np.testing.assert_allclose(log_softmax(x @ kernel + bias, axis=1), theirs.predict_log_proba(x), atol=1e-6)


def test_more_features_than_images_give_the_same_layer_in_rotated_features():
    x, labels = noisy(10, 20)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(70, 70)))[0]
    wide = Discriminant(np.pad(x, ((0, 0), (0, 50))) @ rotation, labels, np.ones(4))
    narrow = Discriminant(x, labels, np.ones(4))
    # The mean variance is over the directions in which images can differ: 36 of the wide features, 20 of the others.
    assert wide._mean_variance == pytest.approx(narrow._mean_variance * 20 / 36)
    narrow._mean_variance = wide._mean_variance
    for mine, other in zip(narrow.solve(0.3), wide.solve(0.3), strict=True):
        np.testing.assert_allclose((rotation @ other)[:20] if other.ndim > 1 else other, mine, atol=1e-8)


def test_class_weights_change_the_prior():
    x, labels = noisy(30, 12)
    _, even = Discriminant(x, labels, np.ones(4)).solve(0.3)
    _, first = Discriminant(x, labels, np.array([9.0, 1.0, 1.0, 1.0])).solve(0.3)
    np.testing.assert_allclose(first[0] - first[1] - even[0] + even[1], np.log(9))


def test_equal_images_give_a_finite_layer():
    x, labels = np.eye(4).repeat(3, axis=0), np.arange(4).repeat(3)
    kernel, bias = Discriminant(x, labels, np.ones(4)).solve(0.1)
    assert np.isfinite(kernel).all() and ((x @ kernel + bias).argmax(axis=1) == labels).all()
    kernel, bias = Discriminant(0 * x, labels, np.ones(4)).solve(0.1)
    assert not kernel.any() and np.allclose(bias, np.log(1 / 4))


def test_a_discriminant_is_chosen_where_images_of_a_class_differ_in_some_directions():
    x, labels = noisy(12, 60)
    new, truth = noisy(200, 60, seed=1)
    head = heads.solve(x, labels, 4)
    regression = heads.solve(x, labels, 4, methods=("regression",))
    assert head.method == "discriminant" and head.regularization in SHRINKAGES
    assert [row.strength for row in head.tried] == list(SHRINKAGES)
    right, other = (
        ((new @ one.kernel + one.bias).argmax(axis=1) == truth).mean() for one in (head, regression)
    )
    assert right > other + 0.05


def test_a_regression_is_chosen_where_a_discriminant_is_misled():
    """Far images of one class do not move the border of a regression."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    x = rng.normal(size=(200, 3)) + 3 * labels[:, None]
    x[::10] -= 60 * rng.random((20, 3))
    head = heads.solve(x, labels, 2)
    assert head.method == "regression" and head.regularization in heads.GRID


def test_validation_images_choose_the_method():
    x, labels = noisy(12, 60, apart=0.3)
    head = heads.solve(x, labels, 4, val=noisy(60, 60, apart=0.3, seed=2))
    assert (head.method, head.chosen_by) == ("discriminant", "validation")
