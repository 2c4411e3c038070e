"""Multinomial logistic regression with an L2 penalty, solved to the optimum by preconditioned L-BFGS."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

_MOST_STEPS = 5000
_MEMORY = 20  # previous steps that L-BFGS uses; they cost little compared with a pass over all images
_LEAST = 1e-7  # smallest penalty in the preconditioner; float32 cannot resolve smaller ones

Solution = tuple[np.ndarray, np.ndarray]


class SoftmaxRegression:
    """Minimize the sum of the images' weighted cross-entropies plus |kernel|^2 / (2 C)."""

    # The Hessian is bounded by half the features' second moments plus the penalty (Böhning 1992). In units of the
    # square root of that bound, L-BFGS takes far fewer steps, most of all with weak regularization.

    def __init__(
        self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, moments: np.ndarray | None = None
    ) -> None:
        self.x, self.labels = x, labels
        self.weights = weights[labels].astype(x.dtype)
        self.classes = len(weights)
        self._moments = moments

    def solve(self, c: float, *, tolerance: float, start: Solution | None = None) -> Solution:
        """Return the kernel (D, K) and bias (K,) as float64; stop when no gradient exceeds the tolerance."""
        width, ridge = self.x.shape[1], 1 / (c * len(self.x))
        root = self._root(ridge)
        first = np.zeros((width + 1, self.classes))
        if start is not None:
            first[:width], first[width] = root @ start[0], start[1]
        steepest = np.inf

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal steepest
            at = flat.reshape(first.shape)
            kernel = solve_triangular(root, at[:width].astype(root.dtype), check_finite=False)
            value, by_kernel, by_bias = self._loss(kernel, at[width], ridge)
            steepest = max(np.abs(by_kernel).max(), np.abs(by_bias).max())
            by_root = solve_triangular(root, by_kernel, trans="T", check_finite=False)
            return value, np.vstack([by_root, by_bias[None]]).ravel().astype("float64")

        def stop(_: np.ndarray) -> None:
            if steepest < tolerance:
                raise StopIteration

        options = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "maxcor": _MEMORY, "gtol": 0, "ftol": 0}
        found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", callback=stop, options=options)
        at = found.x.reshape(first.shape)
        return solve_triangular(root.astype("float64"), at[:width], check_finite=False), at[width]

    @property
    def moments(self) -> np.ndarray:
        """The features' weighted second moments, shape (D, D)."""
        if self._moments is None:
            self._moments = self.x.T @ (self.x * self.weights[:, None])
        return self._moments

    def _root(self, ridge: float) -> np.ndarray:
        """Return the triangular square root of a bound of the Hessian of the mean loss."""
        bound = self.moments.astype("float64") / (2 * len(self.x))
        bound[np.diag_indices_from(bound)] += max(ridge, _LEAST)
        return cholesky(bound, overwrite_a=True, check_finite=False).astype(self.x.dtype)

    def _loss(
        self, kernel: np.ndarray, bias: np.ndarray, ridge: float
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the mean loss with the penalty, and its gradients by kernel and bias."""
        every = np.arange(len(self.x))
        scores = self.x @ kernel + bias.astype(kernel.dtype)
        scores -= scores.max(axis=1, keepdims=True)
        truth = scores[every, self.labels]
        p = np.exp(scores)
        total = p.sum(axis=1)
        value = np.average(np.log(total) - truth, weights=self.weights) * self.weights.mean(dtype="float64")
        p /= total[:, None]
        p[every, self.labels] -= 1
        p *= self.weights[:, None] / len(self.x)
        value += ridge / 2 * np.square(kernel, dtype="float64").sum()
        return float(value), self.x.T @ p + kernel.dtype.type(ridge) * kernel, p.sum(axis=0)
