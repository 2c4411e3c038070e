"""Multinomial logistic regression with an L2 penalty, solved to the optimum by preconditioned L-BFGS."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import minimize

_MOST_STEPS = 5000
_MEMORY = 10  # previous steps that L-BFGS uses; they cost little compared with a pass over all images
_LEAST = 1e-7  # smallest penalty in the preconditioner; float32 cannot resolve smaller ones
_COLUMNS = 1024  # features that are converted to float64 at once

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
        self._wide = x.shape[0] < x.shape[1]
        if self._wide:  # the optimal kernel lies in the space that the images span
            squares, vectors = _decompose(sum(part @ part.T for part in self._columns()))
            real = squares > 10 * np.finfo(self.dtype).eps * max(squares[-1], 0)
            lengths, vectors = np.sqrt(squares[real]), vectors[:, real]
            self._rows = (vectors * lengths).astype(self.dtype)
            self._vectors = (vectors / lengths).astype(self.dtype)
            moments = self.weights @ np.square(self._rows)
        else:
            self._rows = x.astype(self.dtype, copy=False)
            moments, vectors = _decompose(self._rows.T @ (self._rows * self.weights[:, None]))
            self._vectors = vectors.astype(self.dtype)
        self._bound = np.maximum(moments.astype("float64"), 0) / (2 * len(x))

    def _columns(self) -> Iterator[np.ndarray]:
        """Yield the features in parts, so that a conversion takes little memory."""
        for start in range(0, self.x.shape[1], _COLUMNS):
            yield self.x[:, start : start + _COLUMNS].astype(self.dtype, copy=False)

    def solve(self, c: float, *, tolerance: float, start: Solution | None = None) -> Solution:
        """Return the kernel (D, K) and bias (K,) as float64; stop when no gradient exceeds the tolerance."""
        ridge = 1 / (c * len(self.x))
        root = np.sqrt(self._bound + max(ridge, _LEAST))[:, None]
        first = np.zeros((len(root) + 1, self.classes))
        if start is not None:
            first[:-1], first[-1] = root * self._inside(start[0]), start[1]
        steepest = np.inf

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal steepest
            at = flat.reshape(first.shape)
            inside = (at[:-1] / root).astype(self.dtype)
            kernel = inside if self._wide else self._vectors @ inside
            value, by_kernel, by_bias = self._loss(kernel, at[-1], ridge)
            steepest = max(np.abs(by_kernel).max(initial=0), np.abs(by_bias).max())
            by_inside = by_kernel if self._wide else self._vectors.T @ by_kernel
            return value, np.vstack([by_inside / root, by_bias[None]]).ravel().astype("float64")

        def stop(_: np.ndarray) -> None:
            if steepest < tolerance:
                raise StopIteration

        options = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "maxcor": _MEMORY, "gtol": 0, "ftol": 0}
        found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", callback=stop, options=options)
        at = found.x.reshape(first.shape)
        inside = self._vectors @ (at[:-1] / root)
        return self._outside(inside) if self._wide else inside, at[-1]

    def _outside(self, inside: np.ndarray) -> np.ndarray:
        """Return the kernel that is this combination of the images."""
        return np.concatenate([part.T @ inside.astype(self.dtype) for part in self._columns()]).astype(
            "float64"
        )

    def _inside(self, kernel: np.ndarray) -> np.ndarray:
        """Return a kernel in the coordinates of the decomposition."""
        return self._vectors.T @ (self.x @ kernel if self._wide else kernel)

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


def _decompose(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues in ascending order, and the eigenvectors."""
    return eigh(symmetric, overwrite_a=True, check_finite=False, driver="evd")
