"""Second moments of features and their Cholesky factors, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky

_BLOCK = 1024  # images or features per matrix product
_LEAST = 1e-6  # smallest eigenvalue relative to the trace that float32 resolves


def sum_blocks(function: Callable[[slice], tuple[Any, ...]], count: int, size: int = _BLOCK) -> list[Any]:
    """Return the sums of a function's results over slices of `count`; threads share the slices."""
    # Blocks do not depend on the number of threads, so neither does the result. On busy cores, the threads of BLAS
    # would wait for each other.
    slices = [slice(start, start + size) for start in range(0, count, size)]
    if len(slices) == 1:
        return list(function(slices[0]))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(slices))) as pool:
        return [sum(results) for results in zip(*pool.map(function, slices), strict=True)]


def second_moments(x: np.ndarray) -> np.ndarray:
    """Return the mean of z z' over the images, for z = (features, 1), of shape (D + 1, D + 1)."""
    moments = np.ones((x.shape[1] + 1, x.shape[1] + 1), x.dtype)
    half = max(_BLOCK, -(-len(x) // 2))  # smaller blocks need more sums of large matrices
    squares, total = sum_blocks(lambda rows: (x[rows].T @ x[rows], x[rows].sum(axis=0)), len(x), half)
    moments[:-1, :-1] = squares / len(x)
    moments[-1, :-1] = moments[:-1, -1] = total / len(x)
    return moments


def triangle(x: np.ndarray) -> np.ndarray:
    """Return a lower triangular matrix whose rows have the same scalar products as the rows of x, as float64."""

    def products(columns: slice) -> tuple[np.ndarray]:
        part = x[:, columns].astype("float64")
        return (part @ part.T,)

    matrix = sum_blocks(products, x.shape[1])[0]
    matrix[np.diag_indices(len(x))] += 1e-9  # with equal images, the matrix has no Cholesky factor
    return cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False)


def factor(matrix: np.ndarray, least: float = _LEAST) -> np.ndarray:
    """Return the lower Cholesky factor of a symmetric matrix; increase its diagonal until it has one."""
    raised = matrix.copy()
    raised[np.diag_indices(len(matrix))] += least * np.trace(matrix, dtype="float64")
    try:
        return cholesky(raised.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return factor(matrix, max(10 * least, _LEAST))
