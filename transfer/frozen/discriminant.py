"""Linear discriminant analysis with a shrunken covariance, as a softmax layer."""

from __future__ import annotations

import numpy as np

from transfer.frozen.principal_axes import PrincipalAxes
from transfer.frozen.softmax_regression import Solution

SHRINKAGES = (0.7, 0.3, 0.1, 0.03)
"""Weights of the mean variance in the covariance, the strongest first. Of eleven tuning sets, each is best on some."""


class Discriminant:
    """Class means, and the covariance of the images of a class, the same for all classes."""

    # Classes are assumed to be normally distributed. Directions in which images of the same class differ count less: a
    # logistic regression cannot learn these from few images. On tuning sets of 400 images it gained 2.4 points.

    def __init__(self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
        counts = np.bincount(labels, minlength=len(weights)).astype("float64")
        self._means = np.stack([x[labels == k].mean(axis=0) for k in range(len(weights))])
        self._axes = PrincipalAxes(x - self._means[labels], x.dtype)
        freedom = len(x) - len(weights)
        self._variances = self._axes.squares.astype("float64") / freedom
        # The mean is over the directions in which images of a class can differ.
        mean = self._variances.sum() / min(x.shape[1], freedom)
        self._mean_variance = max(mean, 1e-6 * float(np.square(x).mean())) or 1.0  # 0 if all images are equal
        self._inside = self._axes.inside(self._means.T)
        # Logarithms of the weighted class fractions.
        self.log_prior = np.log(counts * weights / (counts @ weights))

    def solve(self, shrinkage: float, temperature: float = 1.0) -> Solution:
        """Return the kernel (D, K) and bias (K,); a higher temperature gives less certain probabilities."""
        # (1 - s) * covariance + s * mean variance * identity, inverted along the axes and in the other directions.
        rest = 1 / (shrinkage * self._mean_variance)
        along = 1 / ((1 - shrinkage) * self._variances + shrinkage * self._mean_variance)
        inside = ((along - rest)[:, None] * self._inside).astype(self._means.dtype)
        kernel = self._means.T.astype("float64") * rest + self._axes.outside(inside)
        bias = -0.5 * np.einsum("kd,dk->k", self._means, kernel)
        return kernel / temperature, bias / temperature + self.log_prior
