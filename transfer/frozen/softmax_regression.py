"""Multinomial logistic regression with an L2 penalty, solved to the optimum by preconditioned L-BFGS."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from transfer.frozen.principal_axes import PrincipalAxes

_MOST_STEPS = 5000
_MEMORY = 10  # previous steps that L-BFGS uses; they cost little compared with a pass over all images
_LEAST = 1e-7  # smallest penalty in the preconditioner; float32 cannot resolve smaller ones

Solution = tuple[np.ndarray, np.ndarray]


class SoftmaxRegression:
    """Minimize the sum of the images' weighted cross-entropies plus |kernel|^2 / (2 C)."""

    # The Hessian is bounded by half the features' second moments plus the penalty (Böhning 1992). In the moments'
    # eigenvectors, in units of the square root of that bound, L-BFGS takes far fewer steps, most of all with weak
    # regularization. One decomposition serves all values of C.

    def __init__(
        self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, dtype: str | None = None
    ) -> None:
        self.x, self.labels, self.dtype = x, labels, np.dtype(dtype or x.dtype)
        self.weights = weights[labels].astype(self.dtype)
        self.classes = len(weights)
        root = np.sqrt(self.weights)[:, None]
        self._axes = PrincipalAxes(x * root.astype(x.dtype), self.dtype)
        wide = self._axes.wide  # the optimal kernel lies in the space that the images span
        self._rows = (self._axes.rows / root).astype(self.dtype) if wide else x.astype(self.dtype, copy=False)
        self._bound = self._axes.squares.astype("float64") / (2 * len(x))

    def solve(self, c: float, *, tolerance: float, start: Solution | None = None) -> Solution:
        """Return the kernel (D, K) and bias (K,) as float64; stop when no gradient exceeds the tolerance."""
        ridge = 1 / (c * len(self.x))
        root = np.sqrt(self._bound + max(ridge, _LEAST))[:, None]
        first = np.zeros((len(root) + 1, self.classes))
        if start is not None:
            first[:-1], first[-1] = root * self._axes.inside(start[0]), start[1]
        steepest = np.inf

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal steepest
            at = flat.reshape(first.shape)
            inside = (at[:-1] / root).astype(self.dtype)
            kernel = inside if self._axes.wide else self._axes.outside(inside)
            value, by_kernel, by_bias = self._loss(kernel, at[-1], ridge)
            steepest = max(np.abs(by_kernel).max(initial=0), np.abs(by_bias).max())
            by_inside = by_kernel if self._axes.wide else self._axes.inside(by_kernel)
            return value, np.vstack([by_inside / root, by_bias[None]]).ravel().astype("float64")

        def stop(_: np.ndarray) -> None:
            if steepest < tolerance:
                raise StopIteration

        options = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "maxcor": _MEMORY, "gtol": 0, "ftol": 0}
        found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", callback=stop, options=options)
        at = found.x.reshape(first.shape)
        inside = (at[:-1] / root).astype(self.dtype)
        return self._axes.outside(inside).astype("float64"), at[-1]

    def _loss(
        self, kernel: np.ndarray, bias: np.ndarray, ridge: float
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the mean loss with the penalty, and its gradients by kernel and bias."""
        every = np.arange(len(self.x))
        scores = self._rows @ kernel + bias.astype(kernel.dtype)
        scores -= scores.max(axis=1, keepdims=True)
        truth = scores[every, self.labels]
        p = np.exp(scores)
        total = p.sum(axis=1)
        value = np.average(np.log(total) - truth, weights=self.weights) * self.weights.mean(dtype="float64")
        p /= total[:, None]
        p[every, self.labels] -= 1
        p *= self.weights[:, None] / len(self.x)
        value += ridge / 2 * np.square(kernel, dtype="float64").sum()
        return float(value), self._rows.T @ p + kernel.dtype.type(ridge) * kernel, p.sum(axis=0)
