"""Solve the head of a frozen network for images with several labels: one logistic regression per label."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from threadpoolctl import threadpool_limits

from transfer.common.errors import InputError
from transfer.frozen.heads import DEFAULT_C, FOLDS, GRID
from transfer.frozen.scaled_features import ScaledFeatures
from transfer.frozen.softmax_regression import SigmoidRegression, Solution
from transfer.images.stratification import distribute

_FLAT = 1e-3  # smaller relative differences of losses do not count: the strongest regularization is chosen
_TOLERANCES = {"choice": 1e-3, "final": 1e-5}  # gradient norm of the mean loss at which L-BFGS stops


@dataclass(frozen=True, eq=False)
class SolvedLabels:
    """A Dense layer with a sigmoid for features that are not scaled."""

    kernel: np.ndarray  # float32, shape (D, labels)
    bias: np.ndarray  # float32, shape (labels,)
    regularization: (
        np.ndarray
    )  # C of each label; its loss is the sum of the cross-entropies plus |kernel|^2 / (2 C)
    out_of_fold: (
        np.ndarray
    )  # probabilities of the images by heads that were solved without them, shape (N, labels)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of each label as float64, shape (images, labels)."""
        return np.asarray(expit((features @ self.kernel + self.bias).astype("float64")))


def solve_labels(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    balanced: bool = False,
    groups: Sequence[Hashable] | np.ndarray = (),
    seed: int = 0,
) -> SolvedLabels:
    """Solve one logistic regression per label, each with its best regularization by cross-validation."""
    labels = _checked(features, labels)
    scaled = ScaledFeatures(features.astype("float32", copy=False))
    weights = positive_weights(labels) if balanced else np.ones(labels.shape[1])
    folds = assign_label_folds(labels, groups=groups, seed=seed)
    with threadpool_limits(1):  # the solver has threads of its own
        scores = _held_out_scores(scaled.x, labels, weights, folds)
        losses = np.array([_mean_loss(one, labels, weights) for one in scores])  # (C, labels)
        flat = losses <= losses.min(axis=0) * (1 + _FLAT)
        best = np.where(labels.any(axis=0), flat.argmax(axis=0), GRID.index(DEFAULT_C))
        kernel, bias = _solve_each(scaled.x, labels, weights, np.array(GRID)[best])
    kernel, bias = scaled.layer(kernel, bias)
    out_of_fold = expit(scores[best, :, np.arange(labels.shape[1])].T)
    return SolvedLabels(kernel, bias, np.array(GRID)[best], out_of_fold)


def _checked(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return labels as float32; raise InputError if features and labels do not fit together."""
    labels = np.asarray(labels)
    fits = features.ndim == labels.ndim == 2 and len(features) == len(labels) > 1 and labels.shape[1] > 0
    if not fits or not np.isin(labels, (0, 1)).all():
        raise InputError(
            "Expected features of shape (images, features) and labels of shape (images, labels), each 0 or 1, of at "
            f"least 2 images. Received: {features.shape} and {labels.shape}."
        )
    return labels.astype("float32")


def positive_weights(labels: np.ndarray) -> np.ndarray:
    """Return the weight of images with each label that makes them count as much as the images without it."""
    positive = labels.sum(axis=0)
    both = (positive > 0) & (positive < len(labels))
    return np.where(both, (len(labels) - positive) / np.maximum(positive, 1), 1.0)


def _held_out_scores(x: np.ndarray, labels: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the scores of each image by heads that were solved without its fold, shape (C, images, labels)."""
    scores = np.zeros((len(GRID), *labels.shape), "float32")
    for fold in np.unique(folds):
        out, start = folds == fold, None
        regression = SigmoidRegression(x[~out], labels[~out], weights)
        for number, c in enumerate(
            GRID
        ):  # each starts from the solution with the next stronger regularization
            start = regression.solve(c, tolerance=_TOLERANCES["choice"], start=start)
            scores[number, out] = x[out] @ start[0].astype("float32") + start[1]
    return scores


def _mean_loss(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean binary cross-entropy of each label, weighted as in the training."""
    weight = np.where(labels > 0, weights, 1.0)
    loss = weight * (np.logaddexp(0, scores) - labels * scores)
    return np.asarray(loss.sum(axis=0) / weight.sum(axis=0))


def _solve_each(x: np.ndarray, labels: np.ndarray, weights: np.ndarray, strengths: np.ndarray) -> Solution:
    """Solve the heads on all images; labels with the same C are solved together."""
    kernel, bias = np.zeros((x.shape[1], labels.shape[1])), np.zeros(labels.shape[1])
    for c in np.unique(strengths):
        own = strengths == c
        regression = SigmoidRegression(x, labels[:, own], weights[own])
        kernel[:, own], bias[own] = regression.solve(float(c), tolerance=_TOLERANCES["final"])
    return kernel, bias


def assign_label_folds(
    labels: np.ndarray,
    *,
    groups: Sequence[Hashable] | np.ndarray = (),
    count: int = FOLDS,
    seed: int = 0,
) -> np.ndarray:
    """Assign each image a fold so that each label has about the same fraction of each fold; groups stay together."""
    units = np.unique([str(group) for group in groups], return_inverse=True)[1] if len(groups) else None
    units = np.arange(len(labels)) if units is None else units
    return distribute(labels, units, [1 / count] * count, np.random.default_rng(seed))
