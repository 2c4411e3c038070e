"""Logistic regressions with an L2 penalty, solved to the optimum by preconditioned L-BFGS.

`SoftmaxRegression` has one label per image, `SigmoidRegression` any number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import expit, softmax

from transfer.frozen.moments import factor, second_moments, sum_blocks

_MOST_STEPS = 5000
_MEMORY = 10  # previous steps that L-BFGS uses; they cost little compared with a pass over all images
_CACHED = 2**19  # values in a block of features; a block stays in the processor's cache for both products
_LARGE = 2**21  # number of values above which threads save time
_SAMPLE = 500  # images that estimate the curvature
_LEAST_CURVATURE = 1e-3

Solution = tuple[np.ndarray, np.ndarray]


class SoftmaxRegression:
    """Minimize the sum of the images' weighted cross-entropies plus |kernel|^2 / (2 C)."""

    # Preconditioner: the Hessian is close to the second moments of the features times the mean of p (1 - p), plus the
    # penalty. In coordinates given by the Cholesky factor of this matrix, L-BFGS takes far fewer steps. A factor for
    # each C takes less time than eigenvectors for all of them.

    def __init__(
        self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray, moments: np.ndarray | None = None
    ) -> None:
        self.x, self.labels, self.classes = x, labels, len(weights)
        self.weights = self._weights_of(labels, weights)
        self.moments = second_moments(x) if moments is None else moments  # of these or similar images

    def _weights_of(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the weight of each image in the loss as float64."""
        return weights[labels].astype("float64")

    def _predict(self, scores: np.ndarray) -> np.ndarray:
        """Return the probabilities for scores of shape (images, classes)."""
        return np.asarray(softmax(scores, axis=1))

    def _residuals(self, scores: np.ndarray, rows: slice) -> tuple[Any, np.ndarray]:
        """Return the loss of some images, and its derivative by their scores, shape (classes, images)."""
        p, labels, weights = scores, self.labels[rows], self.weights[rows]
        every = np.arange(len(labels))
        p -= p.max(axis=0)
        truth = p[labels, every]
        total = np.exp(p, out=p).sum(axis=0)
        value = weights @ (np.log(total) - truth)
        p *= (weights / total).astype(p.dtype)
        p[labels, every] -= weights.astype(p.dtype)
        return value, p

    def solve(self, c: float, *, tolerance: float, start: Solution | None = None) -> Solution:
        """Return the kernel (D, K) and bias (K,) as float64; stop when all classes have gradients below `tolerance`."""
        ridge = 1 / (c * len(self.x))
        layer = np.zeros((self.x.shape[1] + 1, self.classes)) if start is None else np.vstack(start)
        root = self._precondition(layer, ridge)
        for dtype in ("float32", "float64"):  # rounding may stop float32 before the tolerance
            layer, done = self._descend(layer, root.astype(dtype, copy=False), ridge, tolerance)
            if done:
                break
        return layer[:-1], layer[-1]

    def _precondition(self, layer: np.ndarray, ridge: float) -> np.ndarray:
        sample = slice(None, None, max(1, len(self.x) // _SAMPLE))
        p = self._predict(self.x[sample] @ layer[:-1].astype(self.x.dtype) + layer[-1])
        curvature = max(float(np.mean(p * (1 - p))), _LEAST_CURVATURE) * self.weights.mean()
        matrix = self.moments * self.moments.dtype.type(curvature)
        matrix[np.diag_indices(len(layer) - 1)] += ridge
        return factor(matrix)

    def _descend(
        self, layer: np.ndarray, root: np.ndarray, ridge: float, tolerance: float
    ) -> tuple[np.ndarray, bool]:
        """Return the solution of L-BFGS in the data type of `root`, and whether it is within the tolerance."""
        steepest, done = np.inf, False

        def outside(flat: np.ndarray) -> np.ndarray:
            inside = flat.reshape(layer.shape).astype(root.dtype)
            return solve_triangular(root, inside, lower=True, trans=1, check_finite=False)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal steepest
            value, slope = self._loss(outside(flat), ridge)
            steepest = np.linalg.norm(slope, axis=0).max()  # the same in all coordinates of the features
            inside = solve_triangular(root, slope, lower=True, check_finite=False)
            return value, inside.ravel().astype("float64")

        def stop(_: np.ndarray) -> None:
            nonlocal done
            if steepest < tolerance:
                done = True
                raise StopIteration

        ftol = 1e-9 if root.dtype == "float32" else 0.0
        options = {
            "maxiter": _MOST_STEPS,
            "maxfun": 2 * _MOST_STEPS,
            "maxcor": _MEMORY,
            "gtol": 0,
            "ftol": ftol,
        }
        first = (root.T @ layer.astype(root.dtype)).ravel().astype("float64")
        found = minimize(loss, first, jac=True, method="L-BFGS-B", callback=stop, options=options)
        return outside(found.x).astype("float64"), done

    def _loss(self, layer: np.ndarray, ridge: float) -> tuple[float, np.ndarray]:
        """Return the mean loss with the penalty, and its gradient of shape (D + 1, K)."""
        kernel, bias, dtype = layer[:-1], layer[-1][:, None], layer.dtype

        def of_block(rows: slice) -> tuple[np.ndarray, ...]:
            x = self.x[rows].astype(dtype, copy=False)
            scores = (x @ kernel).T + bias  # images in the last axis: sums over classes are faster
            value, p = self._residuals(np.ascontiguousarray(scores), rows)
            return value, p @ x, p.sum(axis=1)

        size = max(1, _CACHED // self.x.shape[1]) if self.x.size > _LARGE else len(self.x)
        value, by_kernel, by_bias = sum_blocks(of_block, len(self.x), size)
        slope = np.vstack([by_kernel.T, by_bias]) / dtype.type(len(self.x))
        slope[:-1] += dtype.type(ridge) * kernel
        return float(value / len(self.x) + ridge / 2 * np.square(kernel, dtype="float64").sum()), slope


class SigmoidRegression(SoftmaxRegression):
    """Minimize the sums of the binary cross-entropies plus |kernel|^2 / (2 C), for each label separately."""

    # `labels` is 0 or 1, shape (images, labels). The weights, shape (labels,), are those of images with the label.
    # Labels do not affect each other, so one descent for all of them finds the same optima as one for each.

    def _weights_of(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.where(labels > 0, weights, 1.0)

    def _predict(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(expit(scores))

    def _residuals(self, scores: np.ndarray, rows: slice) -> tuple[Any, np.ndarray]:
        labels, weights = self.labels[rows].T, self.weights[rows].T
        value = (weights * (np.logaddexp(0, scores) - labels * scores)).sum()
        return value, (weights * (expit(scores) - labels)).astype(scores.dtype)
