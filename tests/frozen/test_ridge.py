"""Ridge regression: the solution of scikit-learn, held-out predictions, and any units."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from transfer.common.errors import InputError
from transfer.frozen.ridge import GRID, solve_ridge


def problem(count=120, width=30, noise=0.5, seed=0):
    """Features that are not centered, and numbers that depend on them with noise."""
    draw = np.random.default_rng(seed)
    x = (3 * draw.normal(size=(count, width)) + 5).astype("float32")
    return x, x @ draw.normal(size=width) + noise * draw.normal(size=count)


def reference(x, y, c):
    """Return scikit-learn's solution with the same penalty on the scaled kernel."""
    scale = np.square(x - x.mean(axis=0)).sum(axis=1).mean()
    return Ridge(alpha=scale / c, solver="svd").fit(x.astype("float64"), y)


@pytest.mark.parametrize("count, width", [(120, 30), (40, 90)])
def test_the_solution_is_that_of_scikit_learn(count, width):
    x, y = problem(count, width)
    solved = solve_ridge(x, y)
    other = reference(x, y, solved.regularization)
    assert solved.kernel.shape == (width, 1) and solved.bias.shape == (1,)
    np.testing.assert_allclose(solved.kernel[:, 0], other.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(solved.predict(x), other.predict(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("count, width", [(60, 20), (30, 50)])
def test_each_image_is_predicted_by_a_regression_without_it(count, width):
    x, y = problem(count, width)
    solved = solve_ridge(x, y)
    scale = np.square(x - x.mean(axis=0)).sum(axis=1).mean()
    for i in (0, 7, count - 1):
        rest = np.arange(count) != i
        other = Ridge(alpha=scale / solved.regularization, solver="svd").fit(
            x[rest].astype("float64"), y[rest]
        )
        assert solved.out_of_fold[i] == pytest.approx(other.predict(x[i : i + 1])[0], rel=1e-4, abs=1e-3)


def test_the_chosen_value_has_the_lowest_error_and_noise_needs_a_strong_penalty():
    x, y = problem(noise=0.1)
    solved = solve_ridge(x, y)
    losses = [loss for _, loss, _ in solved.tried]
    assert [c for c, _, _ in solved.tried] == list(GRID)
    assert dict((c, loss) for c, loss, _ in solved.tried)[solved.regularization] <= min(losses) * 1.001
    assert np.square(solved.out_of_fold - y).mean() / y.var() == pytest.approx(
        dict((c, loss) for c, loss, _ in solved.tried)[solved.regularization]
    )
    noise = solve_ridge(x, np.random.default_rng(9).normal(size=len(x)))
    assert noise.regularization < solved.regularization
    assert np.square(noise.out_of_fold).mean() < 1.3


def test_images_of_a_group_are_held_out_together():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    person = draw.normal(size=(30, 40)).astype("float32")[groups]
    x = (person + 0.01 * draw.normal(size=person.shape)).astype("float32")
    y = draw.normal(size=30)[groups]  # depends on the group alone: nothing to learn for other groups
    alone, together = solve_ridge(x, y), solve_ridge(x, y, groups=groups)
    assert np.square(alone.out_of_fold - y).mean() < 0.1 * y.var()
    assert np.square(together.out_of_fold - y).mean() > 0.8 * y.var()
    one = solve_ridge(x, y, groups=["only"] * len(y))  # no other group to learn from
    np.testing.assert_array_equal(one.out_of_fold, alone.out_of_fold)


@pytest.mark.parametrize("factor, offset", [(1000.0, 5.0), (1e-12, -3e-12), (1e12, 0.0)])
def test_the_result_scales_with_the_units_of_the_values(factor, offset):
    x, y = problem()
    one, other = solve_ridge(x, y), solve_ridge(x, factor * y + offset)
    assert one.regularization == other.regularization
    np.testing.assert_allclose(
        other.out_of_fold, factor * one.out_of_fold + offset, rtol=1e-6, atol=1e-9 * factor
    )
    np.testing.assert_allclose(other.kernel, factor * one.kernel, rtol=1e-5)


def test_constant_features_and_constant_values_have_their_mean():
    x, y = problem()
    np.testing.assert_allclose(solve_ridge(np.ones_like(x), y).predict(x), y.mean(), rtol=1e-5)
    solved = solve_ridge(x, np.full(len(x), 7.0))
    np.testing.assert_allclose(solved.predict(x), 7.0)
    np.testing.assert_allclose(solved.out_of_fold, 7.0)
    some = np.concatenate([x, np.ones((len(x), 5), "float32")], axis=1)
    np.testing.assert_allclose(
        solve_ridge(some, y).out_of_fold, solve_ridge(x, y).out_of_fold, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "features, values, groups",
    [
        (np.ones((1, 3)), np.ones(1), ()),
        (np.ones((4, 3)), np.ones(3), ()),
        (np.ones((4, 3)), np.array([1, 2, 3, np.nan]), ()),
        (np.ones((4, 3)), np.ones(4), ("a", "b")),
    ],
)
def test_values_that_do_not_fit_are_refused(features, values, groups):
    with pytest.raises(InputError, match="a finite number"):
        solve_ridge(features, values, groups=groups)
