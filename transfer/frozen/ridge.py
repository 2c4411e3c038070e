"""Solve the head of a frozen network for numbers: ridge regression with its best regularization, in closed form."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from transfer.common.errors import InputError
from transfer.frozen.heads import assign_folds
from transfer.frozen.moments import sum_blocks
from transfer.frozen.scaled_features import ScaledFeatures
from transfer.images.stratification import strata_of

GRID = tuple(float(c) for c in 10.0 ** np.arange(-6, 6.5, 0.5))
"""Values of C to choose from, the strongest regularization first. The scaled features have a mean squared length of 1,
so that the largest eigenvalue of their scatter matrix is at most the number of images."""

FOLDS = 5
"""Number of folds of the cross-validation of images with groups."""

_FLAT = 1e-3  # smaller relative differences of losses do not count: the strongest regularization is chosen


@dataclass(frozen=True, eq=False)
class SolvedRidge:
    """A linear Dense layer for features that are not scaled."""

    kernel: np.ndarray  # float32, shape (D, 1), in the units of the values
    bias: np.ndarray  # float32, shape (1,)
    # The chosen C: the layer minimizes the sum of the squared errors plus |kernel * scale|^2 / C.
    regularization: float
    # Float64 of shape (N,): prediction of each image by a layer that was solved without it, or without its group.
    out_of_fold: np.ndarray
    # C, loss and R2 of each value that was tried; the loss is the mean squared error over the variance of the values.
    tried: tuple[tuple[float, float, float], ...]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the predictions for features as float64, shape (images,)."""
        return np.asarray(features.astype("float64") @ self.kernel[:, 0] + self.bias[0])


def solve_ridge(
    features: np.ndarray, values: np.ndarray, *, groups: Sequence[Hashable] | np.ndarray = (), seed: int = 0
) -> SolvedRidge:
    """Solve a ridge regression with the regularization of the lowest held-out error."""
    features, values = _checked(features, values, groups)
    scaled = ScaledFeatures(features)
    mean, deviation = float(values.mean()), float(values.std()) or 1.0
    y = (values - mean) / deviation
    penalties = 1 / np.array(GRID)
    several = len(set(groups)) > 1  # otherwise no group could be held out
    with threadpool_limits(1):  # `sum_blocks` has threads of its own
        if several:
            folds = assign_folds(strata_of(values), groups=groups, count=FOLDS, seed=seed)
            held_out = _by_fold(scaled.x, y, penalties, folds)
        else:
            held_out = _leave_one_out(scaled.x, y, penalties)
        losses = np.square(held_out - y[:, None]).mean(axis=0)
        best = int((losses <= losses.min() * (1 + _FLAT)).argmax())
        kernel, intercept = _Ridge(scaled.x, y).solve(penalties[best : best + 1])
        kernel, bias = scaled.layer(kernel * deviation, intercept * deviation + mean)
    tried = tuple((c, float(loss), float(1 - loss)) for c, loss in zip(GRID, losses, strict=True))
    return SolvedRidge(kernel, bias, GRID[best], held_out[:, best] * deviation + mean, tried)


def _checked(
    features: np.ndarray, values: np.ndarray, groups: Sequence[Hashable] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float32 and values as float64; raise InputError if they do not fit together."""
    values = np.asarray(values, "float64")
    fits = features.ndim == 2 and values.shape == features.shape[:1] and len(values) > 1
    if not fits or not np.isfinite(values).all() or len(groups) not in (0, len(values)):
        raise InputError(
            "Expected features of shape (images, features), and a finite number and possibly a group for each of at "
            f"least 2 images. Received: {features.shape}, {values.shape} and {len(groups)} groups."
        )
    return features.astype("float32", copy=False), values


class _Ridge:
    """The eigenvectors of the scatter matrix of features, from which ridge regressions of any strength follow."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y
        self.center, self.intercept = x.mean(axis=0, dtype="float64"), y.mean()

        def products(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            part = x[rows] - self.center
            return part.T @ part, part.T @ (y[rows] - self.intercept)

        scatter, moment = sum_blocks(products, len(x), max(1024, -(-len(x) // 2)))
        values, self.vectors = eigh(scatter, overwrite_a=True, check_finite=False)
        self.values = np.maximum(values, 0)  # rounding makes those of dependent features negative
        self.moment = self.vectors.T @ moment

    def solve(self, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernels (D, P) and the intercepts (P,) for some penalties."""
        kernel = self.vectors @ (self.moment[:, None] / (self.values[:, None] + penalties))
        return kernel, self.intercept - self.center @ kernel

    def leverages(self, penalties: np.ndarray) -> np.ndarray:
        """Return by how much the prediction of each image follows its own value, shape (images, P)."""
        inverse = 1 / (self.values[:, None] + penalties)
        parts = []
        for start in range(0, len(self.x), 1024):
            coordinates = (self.x[start : start + 1024] - self.center) @ self.vectors
            parts.append(np.square(coordinates) @ inverse + 1 / len(self.x))
        return np.concatenate(parts)


def _leave_one_out(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return the prediction of each image by a regression without it, shape (images, penalties)."""
    # The error of the regression without an image is its error divided by 1 - leverage (Allen, 1974,
    # doi:10.1080/00401706.1974.10489157; Golub et al., 1979, doi:10.1080/00401706.1979.10489751), also with an
    # intercept that is not penalized.
    ridge = _Ridge(x, y)
    kernel, intercept = ridge.solve(penalties)
    errors = y[:, None] - (x @ kernel + intercept)
    return np.asarray(y[:, None] - errors / np.maximum(1 - ridge.leverages(penalties), 1e-12))


def _by_fold(x: np.ndarray, y: np.ndarray, penalties: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the prediction of each image by a regression without its fold, shape (images, penalties)."""
    predicted = np.zeros((len(x), len(penalties)))
    for fold in np.unique(folds):
        out = folds == fold
        kernel, intercept = _Ridge(x[~out], y[~out]).solve(penalties)
        predicted[out] = x[out] @ kernel + intercept
    return predicted
