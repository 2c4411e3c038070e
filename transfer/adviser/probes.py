"""Linear probes of features by ridge regression, and the information of source classes on labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from transfer.common.accuracies import standard_error
from transfer.common.display import one_line
from transfer.common.errors import InputError

_PSEUDO_COUNT = 0.1
"""Images added to each source class, distributed like the labels; without them, unseen pairs give log(0). At 0.1 the
label information of four data sets changed by at most 0.06 from 256 to 1,000 images; at 1 it shrank towards 0."""

LAMBDAS = tuple(float(c) for c in 10.0 ** np.arange(-3, 3.5, 0.5))
"""Strengths of the ridge regression to try, in units of the mean squared length of the centered features."""


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """Leave-one-out accuracy of a ridge regression on some features."""

    accuracy_by_lambda: dict[float, float]
    best_lambda: float  # among equals, the strongest
    scores: (
        np.ndarray
    )  # left-out scores at `best_lambda`, float64 of shape (N, K), about 1 for the class, else -1
    correct: np.ndarray  # bool of shape (N,), at `best_lambda`
    standard_error: float  # standard error over images, or over groups if there are any
    correct_by_lambda: np.ndarray  # bool of shape (strengths, N)

    def __repr__(self) -> str:
        return one_line(self, f"accuracy {self.accuracy:.1%} +- {self.standard_error:.1%}")

    @property
    def accuracy(self) -> float:
        """Accuracy at the best strength: slightly optimistic, see `debiased_accuracy`."""
        return self.accuracy_by_lambda[self.best_lambda]


def ridge_leave_one_out(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    lambdas: Sequence[float] | None = None,
    groups: Sequence[Hashable] | np.ndarray | None = None,
) -> RidgeProbe:
    """Predict each image by a ridge regression on all others, or on all other groups."""
    labels = _check_arguments(features, labels, num_classes, lambdas, groups)
    targets = np.where(np.arange(num_classes) == labels[:, None], 1.0, -1.0)
    members = _members(groups)
    with threadpool_limits(1):  # on busy cores, two threads took 2 to 6 s for 0.6 s of work
        parts = _decompose(features)
        accuracy, best_lambda, scores, by_lambda = _best_scores(parts, labels, targets, lambdas, members)
    correct = scores.argmax(axis=1) == labels
    return RidgeProbe(
        accuracy,
        best_lambda,
        scores,
        correct,
        standard_error(correct, () if groups is None else groups),
        by_lambda,
    )


def stratified_folds(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Assign images to folds with about one image of each class; return each image's fold, int64 (N,)."""
    # If a single image is left out, its class is slightly rarer in the rest, and a regression on weak features predicts
    # the other classes. With 9 images per class of CIFAR-10, leaving out single images gave an accuracy of 0.43 for
    # features that have 0.54 on a test set, and these folds gave 0.52.
    counts = np.bincount(labels)
    num_folds = max(int(counts.max()), min(10, len(labels)))
    rng, folds, start = np.random.default_rng(seed), np.empty(len(labels), "int64"), 0
    for label in np.flatnonzero(counts):
        members = rng.permutation(np.flatnonzero(labels == label))
        folds[members] = (start + np.arange(len(members)) * num_folds // len(members)) % num_folds
        start += len(members) < num_folds  # spread rare classes over different folds
    return folds


def chance_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    draws: int = 20,
    seed: int = 0,
) -> tuple[float, float]:
    """Return mean and standard deviation of the leave-one-out accuracy with shuffled labels."""
    labels = _check_arguments(features, labels, num_classes, None, groups)
    rng, accuracies = np.random.default_rng(seed), []
    with threadpool_limits(1):
        u, squares, unit = _decompose(features)
        # float32 takes half the time, and is precise enough.
        parts = u.astype("float32"), squares.astype("float32"), unit
        for _ in range(draws):
            shuffled = rng.permutation(labels)
            folds = groups if groups is not None and len(groups) else stratified_folds(shuffled, seed=seed)
            targets = np.where(np.arange(num_classes) == shuffled[:, None], 1.0, -1.0).astype("float32")
            by_lambda, *_ = _best_scores(parts, shuffled, targets, None, _members(folds))
            accuracies.append(max(by_lambda.values()))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))


def _decompose(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return left singular vectors, squared singular values and mean squared length of centered features."""
    x = np.asarray(features, "float64")
    x = x - x.mean(axis=0)
    # Decompose the smaller of the two Gram matrices.
    wide = x.shape[0] < x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    positive = squares > squares[-1] * len(squares) * np.finfo("float64").eps
    squares, vectors = squares[positive], vectors[:, positive]
    u = vectors if wide else x @ vectors / np.sqrt(squares)
    return u, squares, float(np.mean(np.sum(np.square(x), axis=1))) or 1.0


def _best_scores(
    parts: tuple[np.ndarray, np.ndarray, float],
    labels: np.ndarray,
    targets: np.ndarray,
    lambdas: Sequence[float] | None,
    members: list[np.ndarray] | None,
) -> tuple[dict[float, float], float, np.ndarray, np.ndarray]:
    """Return accuracy by strength, the best strength, its left-out scores, and correct images by strength."""
    # Closed form of leave-one-out (PRESS: Allen, 1974). With centered features U diag(s) V', the hat matrix is
    # H = 1/N + U diag(s^2 / (s^2 + lambda)) U'. The left-out residual of an image is its residual / (1 - H_ii), and
    # that of a group g left out together is (I - H_gg)^-1 times the residuals of g.
    u, squares, unit = parts
    strengths = [c * unit for c in LAMBDAS] if lambdas is None else sorted(float(c) for c in lambdas)
    projected = u.T @ targets
    accuracy: dict[float, float] = {}
    correct = np.zeros((len(strengths), len(labels)), bool)
    best, best_scores = strengths[0], targets
    for row, strength in enumerate(strengths):
        shrink = squares / (squares + strength)
        residuals = targets - targets.mean(axis=0) - u @ (shrink[:, None] * projected)
        scores = targets - _left_out_residuals(u, shrink, residuals, members)
        correct[row] = scores.argmax(axis=1) == labels
        accuracy[strength] = float(np.mean(correct[row]))
        if accuracy[strength] >= accuracy[best]:
            best, best_scores = strength, scores
    return accuracy, best, best_scores, correct


def _members(groups: Sequence[Hashable] | np.ndarray | None) -> list[np.ndarray] | None:
    """Return the indices of each group's images; None without groups."""
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
    for size in {len(group) for group in members}:  # all groups of a size at once
        indices = np.stack([group for group in members if len(group) == size])
        part = u[indices]
        hat = 1 / count + (part * shrink) @ part.transpose(0, 2, 1)
        out[indices] = np.linalg.solve(np.eye(size, dtype=u.dtype) - hat, residuals[indices])
    return out


def _check_arguments(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    lambdas: Sequence[float] | None,
    groups: Sequence[Hashable] | np.ndarray | None,
) -> np.ndarray:
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or not features.shape[1] or labels.shape != features.shape[:1]:
        raise InputError(
            "Expected features of shape (images, features) and a label for each image. Received: "
            f"{features.shape} and {labels.shape}. Pool feature maps first."
        )
    if labels.dtype.kind not in "iu" or len(np.unique(labels)) < 2 or not 0 <= labels.min() < num_classes:
        raise InputError(
            f"Expected integer labels from 0 to {num_classes - 1}, of 2 classes or more. Received: {len(labels)} of "
            f"{labels.dtype}, {len(np.unique(labels))} different. Add images of another class."
        )
    if labels.max() >= num_classes:
        raise InputError(
            f"Expected labels below num_classes={num_classes}. Received: up to {labels.max()}. Number classes from 0."
        )
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise InputError(
            f"Expected finite features. Received: NaN or infinity in {len(bad)} of {len(labels)} images, the first "
            f"at {bad[0]}. Check these images and the network's weights. In float16, the largest value is 65504."
        )
    if lambdas is not None and (not len(lambdas) or not np.all(np.isfinite(lambdas)) or min(lambdas) <= 0):
        raise InputError(
            f"Expected lambdas above 0. Received: {list(lambdas)}. Use None for the default grid."
        )
    if groups is not None and len(groups) and (len(groups) != len(labels) or len(set(groups)) < 2):
        raise InputError(
            f"Expected a group for each of {len(labels)} images, 2 different ones or more. Received: {len(groups)}, "
            f"{len(set(groups))} different. Leave groups out if there are none."
        )
    return labels.astype("int64")


def label_information(source_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Measure the information of the source classes on the labels, about 0 (none) to 1 (complete)."""
    # 1 + LEEP / H(Y), where LEEP (Nguyen et al., 2020, arXiv:2002.12462) is the mean over images of
    # log sum_z P(y | z) theta(z | x). P is estimated from the joint distribution of labels y and source classes z,
    # theta are the source probabilities, and H(Y) is the entropy of the labels. Each image is left out of its own joint
    # distribution, since with few images per source class it would predict itself. The result is below 0 if source
    # classes mislead, as they do with hardly more images than source classes.
    if not len(labels):
        return 0.0
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    fraction = one_hot.mean(axis=0)
    prior = fraction[fraction > 0]
    entropy = -float(np.sum(prior * np.log(prior)))
    if entropy == 0.0:
        return 0.0
    joint = one_hot.T @ source_probabilities
    left_joint = joint[labels] - source_probabilities
    left_marginal = source_probabilities.sum(axis=0)[None, :] - source_probabilities
    conditional = (left_joint + _PSEUDO_COUNT * fraction[labels][:, None]) / (left_marginal + _PSEUDO_COUNT)
    likelihood = np.sum(conditional * source_probabilities, axis=1)
    return 1.0 + float(np.mean(np.log(np.maximum(likelihood, 1e-12)))) / entropy
