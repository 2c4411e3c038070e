"""Sums over blocks, and Cholesky factors of matrices that are not quite positive."""

import numpy as np
import pytest

from transfer.frozen import moments


@pytest.mark.parametrize("count", [5, 3000])
def test_second_moments_are_those_of_the_features_and_a_one(count):
    x = np.random.default_rng(0).normal(size=(count, 4))
    z = np.concatenate([x, np.ones((count, 1))], axis=1)
    np.testing.assert_allclose(moments.second_moments(x), z.T @ z / count, atol=1e-12)


def test_a_sum_over_blocks_counts_each_row_once():
    x = np.arange(1000)
    total, rows = moments.sum_blocks(lambda rows: (x[rows].sum(), len(x[rows])), len(x), 64)
    assert (total, rows) == (x.sum(), len(x))


@pytest.mark.parametrize("width", [30, 2500])
def test_the_triangle_has_the_scalar_products_of_the_rows(width):
    x = np.random.default_rng(0).normal(size=(20, width))
    x[3] = x[4]  # equal images
    triangle = moments.triangle(x)
    assert not np.triu(triangle, 1).any()
    np.testing.assert_allclose(triangle @ triangle.T, x @ x.T, atol=1e-6)


def test_a_singular_matrix_of_float32_has_a_factor():
    x = np.random.default_rng(0).normal(size=(40, 300)).astype("float32")
    matrix = x.T @ x
    root = moments.factor(matrix)
    assert np.abs(root @ root.T - matrix).max() < 1e-3 * np.trace(matrix)
    negative = matrix - np.float32(1e-5 * np.trace(matrix)) * np.eye(300, dtype="float32")
    assert np.isfinite(moments.factor(negative, 0.0)).all()
