"""The solver of the head's convex problem reaches the optimum from any start in few steps."""

import numpy as np
import pytest
from scipy.special import log_softmax

from transfer.frozen import moments, softmax_regression
from transfer.frozen.moments import second_moments
from transfer.frozen.softmax_regression import SoftmaxRegression


def problem(count=300, width=20, classes=4, *, seed=0):
    """Centered features of very different scales, as of real layers."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    labels[:classes] = np.arange(classes)
    x = rng.normal(size=(count, width)) + rng.normal(size=(classes, width))[labels]
    x *= rng.lognormal(0, 2, width)
    x -= x.mean(axis=0)
    return x / np.sqrt(np.square(x).sum(axis=1).mean()), labels


def objective(x, labels, weights, c, kernel, bias):
    loss = -log_softmax(x @ kernel + bias, axis=1)[np.arange(len(x)), labels]
    return weights[labels] @ loss + np.square(kernel).sum() / (2 * c)


@pytest.mark.parametrize("c", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_no_step_from_the_solution_lowers_the_objective(c, classes):
    x, labels = problem(classes=classes)
    weights = np.linspace(0.5, 2, classes)
    kernel, bias = SoftmaxRegression(x, labels, weights).solve(c, tolerance=1e-9)
    best = objective(x, labels, weights, c, kernel, bias)
    assert best < 0.999 * objective(x, labels, weights, c, 0 * kernel, 0 * bias)
    rng = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            step = size * rng.normal(size=kernel.shape), size * rng.normal(size=bias.shape)
            assert objective(x, labels, weights, c, kernel + step[0], bias + step[1]) > best


def test_any_start_and_float32_give_the_same_solution():
    x, labels = problem()
    weights = np.ones(4)
    expected = SoftmaxRegression(x, labels, weights).solve(10.0, tolerance=1e-9)
    start = np.random.default_rng(2).normal(size=expected[0].shape), np.array([1.0, -1.0, 2.0, -2.0])
    other = SoftmaxRegression(x, labels, weights).solve(10.0, tolerance=1e-9, start=start)
    fast = SoftmaxRegression(x.astype("float32"), labels, weights).solve(10.0, tolerance=1e-5)
    p, q, r = (log_softmax(x @ kernel + bias, axis=1) for kernel, bias in (expected, other, fast))
    np.testing.assert_allclose(p, q, atol=1e-5)
    np.testing.assert_allclose(p, r, atol=0.02)
    assert np.ptp(p) > 5


def test_few_steps_suffice_for_features_of_different_scale(monkeypatch):
    """Without the preconditioner, features of different scales and weak regularization take many more steps."""
    x, labels = problem(300, 30, 5)
    counts = {}
    for name, given in (("preconditioned", None), ("plain", np.eye(31))):
        regression = SoftmaxRegression(x, labels, np.ones(5), given)
        calls, true_loss = [], regression._loss

        def counted(*arguments, calls=calls, true_loss=true_loss):
            calls.append(1)
            return true_loss(*arguments)

        monkeypatch.setattr(regression, "_loss", counted)
        regression.solve(100.0, tolerance=1e-5)
        counts[name] = len(calls)
    assert 3 * counts["preconditioned"] < counts["plain"], counts


def test_moments_of_other_images_give_the_same_solution():
    x, labels = problem()
    expected = SoftmaxRegression(x, labels, np.ones(4)).solve(10.0, tolerance=1e-9)
    part = second_moments(x[:150])
    assert not np.allclose(part, second_moments(x))
    found = SoftmaxRegression(x, labels, np.ones(4), part).solve(10.0, tolerance=1e-9)
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_blocks_of_images_change_no_sum_and_threads_no_bit(monkeypatch):
    x, labels = problem(500, 20)
    regression = SoftmaxRegression(x.astype("float32"), labels, np.linspace(0.5, 2, 4))
    layer = np.random.default_rng(0).normal(size=(21, 4))
    whole = regression._loss(layer, 0.01)
    monkeypatch.setattr(softmax_regression, "_LARGE", 0)
    monkeypatch.setattr(softmax_regression, "_CACHED", 20 * 64)
    blocks = regression._loss(layer, 0.01)
    np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(blocks[1], whole[1], atol=1e-6)
    monkeypatch.setattr(moments.os, "cpu_count", lambda: 1)
    assert np.array_equal(regression._loss(layer, 0.01)[1], blocks[1])


@pytest.mark.parametrize("count", [15, 60])
def test_more_features_than_images_give_the_same_solution_as_their_projection(count):
    x, labels = problem(count, 20)
    wide = np.concatenate([x, np.zeros((count, 50))], axis=1)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(70, 70)))[0]
    kernel, bias = SoftmaxRegression(wide @ rotation, labels, np.ones(4)).solve(10.0, tolerance=1e-9)
    expected = SoftmaxRegression(x, labels, np.ones(4)).solve(10.0, tolerance=1e-9)
    np.testing.assert_allclose((rotation @ kernel)[:20], expected[0], atol=1e-5)
    np.testing.assert_allclose(bias, expected[1], atol=1e-5)
