"""Features that are centered and scaled for a solver, and the way back to a layer for the features as they are."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular
from threadpoolctl import threadpool_limits

from transfer.frozen.moments import triangle


class ScaledFeatures:
    """Features of images, centered and divided by one common scale, in at most as many coordinates as images."""

    # A scale per feature would amplify rarely active features.

    def __init__(self, features: np.ndarray) -> None:
        self.mean = features.mean(axis=0, dtype="float64").astype("float32")
        self._scaled = features - self.mean
        lengths = np.einsum("nd,nd->n", self._scaled, self._scaled)
        # Root of the features' mean squared distance from their mean.
        self.scale = float(np.sqrt(lengths.mean(dtype="float64"))) or 1.0
        self._scaled /= np.float32(self.scale)
        # The optimal kernel is a linear combination of the images' features. With fewer images than features,
        # coordinates in the subspace that they span replace the features.
        self._root = None
        if len(features) < features.shape[1]:
            with threadpool_limits(1):
                self._root = triangle(self._scaled)
        self.x = self._scaled if self._root is None else self._root.astype("float32")

    def project(self, direction: np.ndarray) -> np.ndarray:
        """Return the products of the scaled features with a vector, shape (images,)."""
        return self._scaled @ direction.astype("float32")

    def coordinates(self, features: np.ndarray) -> np.ndarray:
        """Return the features of other images in the coordinates of `x`."""
        other = (features - self.mean) / np.float32(self.scale)
        if self._root is None:
            return np.asarray(other)
        return solve_triangular(self._root, self._scaled @ other.T, lower=True).T.astype("float32")

    def layer(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel (D, K) and the bias (K,) in float32 for features that are not scaled."""
        if self._root is not None:
            kernel = self._scaled.T @ solve_triangular(self._root, kernel, lower=True, trans=1)
        kernel = kernel / self.scale
        bias = bias - self.mean @ kernel
        return kernel.astype("float32"), bias.astype("float32")
