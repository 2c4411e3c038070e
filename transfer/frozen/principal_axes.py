"""The principal axes of features, from the smaller of the two Gram matrices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import eigh

_COLUMNS = 1024  # features that are converted to another type at once


class PrincipalAxes:
    """Eigenvectors of x' x, for features x of shape (N, D), with their eigenvalues `squares`."""

    def __init__(self, x: np.ndarray, dtype: np.dtype) -> None:
        self.x, self.dtype = x, dtype
        self.wide = x.shape[0] < x.shape[1]
        if not self.wide:
            x = x.astype(dtype, copy=False)
            self.squares, self._vectors = _decompose(x.T @ x)
            self.squares = np.maximum(self.squares, 0)
            return
        # All axes with an eigenvalue above 0 are combinations of the images.
        squares, vectors = _decompose(sum(part @ part.T for part in self._columns()))
        real = squares > 10 * np.finfo(dtype).eps * max(squares[-1], 0)
        self.squares = squares[real]
        lengths = np.sqrt(self.squares)
        self.rows = vectors[:, real] * lengths  # coordinates of the images
        self._vectors = vectors[:, real] / lengths

    def inside(self, kernel: np.ndarray) -> np.ndarray:
        """Return the coordinates (axes, K) of the columns of a matrix (D, K)."""
        return self._vectors.T @ (self.x @ kernel if self.wide else kernel)

    def outside(self, inside: np.ndarray) -> np.ndarray:
        """Return the matrix (D, K) whose columns have these coordinates."""
        at = self._vectors @ inside
        return np.concatenate([part.T @ at for part in self._columns()]) if self.wide else at

    def _columns(self) -> Iterator[np.ndarray]:
        """Yield the features in parts, so that a conversion takes little memory."""
        for start in range(0, self.x.shape[1], _COLUMNS):
            yield self.x[:, start : start + _COLUMNS].astype(self.dtype, copy=False)


def _decompose(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues in ascending order, and the eigenvectors."""
    return eigh(symmetric, overwrite_a=True, check_finite=False, driver="evd")
