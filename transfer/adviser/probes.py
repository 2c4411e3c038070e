"""Formulas on arrays that tell how a network suits data before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from transfer.common.errors import InputError

_PSEUDO_COUNT = 0.1
"""Images added to each old class, spread like the labels, so that an unseen pair is not log(0). At 0.1 the
measure of four data sets moved by 0.06 at most from 256 to 1,000 images; at 1 it was drawn to 0."""


LAMBDAS = tuple(float(c) for c in 10.0 ** np.arange(-3, 3.5, 0.5))
"""Strengths of ridge regression to try, times the mean squared length of the centred features."""


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """What leaving each image out in turn says of features."""

    accuracy_by_lambda: dict[float, float]
    best_lambda: float
    # Left-out scores at the best, float64 of shape (N, K): about 1 for the class, -1 for the others.
    scores: np.ndarray
    # Bool of shape (N,): where the highest score is the class's.
    correct: np.ndarray
    standard_error: float
    # Bool of shape (strengths, N): the same for each strength.
    correct_by_lambda: np.ndarray

    @property
    def accuracy(self) -> float:
        """The best left-out accuracy."""
        return self.accuracy_by_lambda[self.best_lambda]


def ridge_leave_one_out(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    lambdas: Sequence[float] | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> RidgeProbe:
    """Judge features by ridge regression on targets of 1 and -1, each image predicted by all others."""
    labels = _check_probe(features, labels, num_classes, lambdas, groups)
    targets = np.where(np.arange(num_classes) == labels[:, None], 1.0, -1.0)
    members = _members(groups)
    with threadpool_limits(1):  # two threads took 2 to 6 s for 0.6 s of work where others used the cores too
        parts = _decomposed(features)
        accuracy, best_lambda, scores, right = _best_scores(parts, labels, targets, lambdas, members)
    correct = scores.argmax(axis=1) == labels
    return RidgeProbe(accuracy, best_lambda, scores, correct, _standard_error(correct, members), right)


def unselected_accuracy(correct: np.ndarray, *, draws: int = 50, seed: int = 0) -> float:
    """Say how accurate the best of several ways is on images that it was not chosen by."""
    correct = np.asarray(correct, bool)
    ways, count = correct.shape
    if ways == 1 or count < 4:
        return float(correct.mean(axis=1).max())
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        half = rng.permutation(count) < count // 2
        best = ways - 1 - int(correct[::-1, half].mean(axis=1).argmax())
        found.append(correct[best, ~half].mean())
    return float(np.mean(found))


def one_of_each(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Deal images into parts that hold one of each class, or as near to that as their counts allow."""
    counts = np.bincount(labels)
    parts = max(int(counts.max()), min(10, len(labels)))
    rng, found, start = np.random.default_rng(seed), np.empty(len(labels), "int64"), 0
    for label in np.flatnonzero(counts):
        members = rng.permutation(np.flatnonzero(labels == label))
        found[members] = (start + np.arange(len(members)) * parts // len(members)) % parts
        start += len(members) < parts  # rare classes into different parts
    return found


def chance_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    draws: int = 20,
    seed: int = 0,
) -> tuple[float, float]:
    """Say what `ridge_leave_one_out` gives where labels have nothing to do with images: where they are
    shuffled."""
    labels = _check_probe(features, labels, num_classes, None, groups)
    rng, found = np.random.default_rng(seed), []
    with threadpool_limits(1):
        u, squares, unit = _decomposed(features)
        parts = u.astype("float32"), squares.astype("float32"), unit  # half the time, and chance is coarse
        for _ in range(draws):
            shuffled = rng.permutation(labels)
            given = groups if groups is not None and len(groups) else one_of_each(shuffled, seed=seed)
            members = _members(given)
            targets = np.where(np.arange(num_classes) == shuffled[:, None], 1.0, -1.0).astype("float32")
            found.append(max(_best_scores(parts, shuffled, targets, None, members)[0].values()))
    return float(np.mean(found)), float(np.std(found, ddof=1))


def _decomposed(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Left singular vectors of the centred features, squares of the singular values, mean squared
    length."""
    x = np.asarray(features, "float64")
    x = x - x.mean(axis=0)
    return (*_left_singular(x), float(np.mean(np.sum(np.square(x), axis=1))) or 1.0)


def _best_scores(
    parts: tuple[np.ndarray, np.ndarray, float],
    labels: np.ndarray,
    targets: np.ndarray,
    lambdas: Sequence[float] | None,
    members: list[np.ndarray] | None,
) -> tuple[dict[float, float], float, np.ndarray, np.ndarray]:
    """Accuracy by strength, the best strength, the left-out scores there, and who is right by strength."""
    u, squares, unit = parts
    strengths = [c * unit for c in LAMBDAS] if lambdas is None else sorted(float(c) for c in lambdas)
    projected = u.T @ targets
    accuracy: dict[float, float] = {}
    right = np.zeros((len(strengths), len(labels)), bool)
    best, best_scores = strengths[0], targets
    for row, strength in enumerate(strengths):
        shrink = squares / (squares + strength)
        residuals = targets - targets.mean(axis=0) - u @ (shrink[:, None] * projected)
        scores = targets - _left_out_residuals(u, shrink, residuals, members)
        right[row] = scores.argmax(axis=1) == labels
        accuracy[strength] = float(np.mean(right[row]))
        if accuracy[strength] >= accuracy[best]:
            best, best_scores = strength, scores
    return accuracy, best, best_scores, right


def _left_singular(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left singular vectors and the squares of the singular values above 0, from the smaller Gram
    matrix."""
    wide = x.shape[0] < x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = squares > squares[-1] * len(squares) * np.finfo("float64").eps
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if wide else x @ vectors / np.sqrt(squares)), squares


def _members(groups: Sequence[Any] | np.ndarray | None) -> list[np.ndarray] | None:
    """The positions of each group's images; None where every image is its own."""
    if groups is None or not len(groups):
        return None
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def _left_out_residuals(
    u: np.ndarray, shrink: np.ndarray, residuals: np.ndarray, members: list[np.ndarray] | None
) -> np.ndarray:
    count = len(u)
    if members is None:
        return residuals / (1 - 1 / count - np.square(u) @ shrink)[:, None]
    out = np.empty_like(residuals)
    for size in {len(group) for group in members}:  # those of one size at once
        alike = np.stack([group for group in members if len(group) == size])
        part = u[alike]
        hat = 1 / count + (part * shrink) @ part.transpose(0, 2, 1)
        out[alike] = np.linalg.solve(np.eye(size, dtype=u.dtype) - hat, residuals[alike])
    return out


def _standard_error(correct: np.ndarray, members: list[np.ndarray] | None) -> float:
    """Of a share of images; images of one group are right or wrong together, so groups count as
    draws."""
    off = correct - correct.mean()
    sums = off if members is None else np.array([off[group].sum() for group in members])
    draws = len(sums)
    return float(np.sqrt(np.sum(np.square(sums)) * draws / (draws - 1)) / len(correct))


def _check_probe(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    lambdas: Sequence[float] | None,
    groups: Sequence[Any] | np.ndarray | None,
) -> np.ndarray:
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or not features.shape[1] or labels.shape != features.shape[:1]:
        raise InputError(
            "Expected features of shape (images, features) and a label for each image. Received: "
            f"{features.shape} and {labels.shape}. Pool feature maps first."
        )
    if labels.dtype.kind not in "iu" or len(np.unique(labels)) < 2 or not 0 <= labels.min() < num_classes:
        raise InputError(
            f"Expected labels that are whole numbers from 0 to {num_classes - 1}, of 2 classes or more. Received: "
            f"{len(labels)} of {labels.dtype}, {len(np.unique(labels))} different. Add images of another class."
        )
    if labels.max() >= num_classes:
        raise InputError(
            f"Expected labels below num_classes={num_classes}. Received: up to {labels.max()}. Number classes from 0."
        )
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise InputError(
            f"Expected finite features. Received: NaN or infinity in {len(bad)} of {len(labels)} images, the first "
            f"at {bad[0]}. Look at these images and at the network's weights; in float16, values end at 65504."
        )
    if lambdas is not None and (not len(lambdas) or not np.all(np.isfinite(lambdas)) or min(lambdas) <= 0):
        raise InputError(f"Expected lambdas above 0. Received: {list(lambdas)}. None takes a grid that fits.")
    if groups is not None and len(groups) and (len(groups) != len(labels) or len(set(groups)) < 2):
        raise InputError(
            f"Expected a group for each of {len(labels)} images, 2 different ones or more. Received: {len(groups)}, "
            f"{len(set(groups))} different. Leave groups out where there are none."
        )
    return labels.astype("int64")


def label_information(old_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Measure how much a network's old classes tell about the new ones, 0 (nothing) to 1 (everything)."""
    if not len(labels):
        return 0.0
    num_classes = int(labels.max()) + 1
    one_hot = np.eye(num_classes)[labels]
    share = one_hot.mean(axis=0)
    prior = share[share > 0]
    entropy = -float(np.sum(prior * np.log(prior)))
    if entropy == 0.0:
        return 0.0
    joint = one_hot.T @ old_probabilities
    marginal = old_probabilities.sum(axis=0)
    left_joint = joint[labels] - old_probabilities
    left_marginal = marginal[None, :] - old_probabilities
    conditional = (left_joint + _PSEUDO_COUNT * share[labels][:, None]) / (left_marginal + _PSEUDO_COUNT)
    likelihood = np.sum(conditional * old_probabilities, axis=1)
    return 1.0 + float(np.mean(np.log(np.maximum(likelihood, 1e-12)))) / entropy
