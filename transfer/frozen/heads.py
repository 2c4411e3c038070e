"""Solve the head of a frozen network exactly on stored features: a convex problem without epochs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from transfer.common.errors import InputError
from transfer.frozen.softmax_regression import SoftmaxRegression, Solution

GRID = tuple(float(c) for c in 10.0 ** np.arange(-2, 4.5, 0.5))
"""Values of C to choose from, the strongest regularization first. They suit both noise and separable classes."""

START = GRID[5]
"""First value of the search, about 3; below `DEFAULT_C`, since weaker regularization is tried first."""

DEFAULT_C = 10.0
"""C if no image can be held out, as with one image per class: the middle of the best values for photos."""

FOLDS = 3
"""Number of folds of the cross-validation; the time is proportional to it."""

ENOUGH = {"validation": 200, "cross-validation": 1000}
"""Number of images that suffices to choose C. With fewer than 200 validation images, C is cross-validated."""

_TOLERANCE = {"choice": 1e-4, "head": 1e-5}  # largest gradient of the mean loss at which L-BFGS stops


class Candidate(NamedTuple):
    """The results of one value of C on held-out images, weighted by class."""

    C: float
    # Mean cross-entropy in nats.
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class SolvedHead:
    """A Dense softmax layer for features that are not scaled."""

    # Float32 of shape (D, K).
    kernel: np.ndarray
    # Float32 of shape (K,).
    bias: np.ndarray
    # The chosen C: the head minimizes the sum of the cross-entropies plus |kernel * scale|^2 / (2 C).
    regularization: float
    # Root of the features' mean squared distance from their mean.
    scale: float
    # The strongest regularization first; empty if no image could be held out.
    tried: tuple[Candidate, ...]
    # "validation", "cross-validation" or "default".
    chosen_by: str


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    class_weights: Mapping[int, float] | None = None,
    groups: Sequence[Hashable] | np.ndarray = (),
    seed: int = 0,
) -> SolvedHead:
    """Solve multinomial logistic regression by L-BFGS; choose C on `val` or by cross-validation."""
    # Features are centered and divided by one common scale. A scale per feature would amplify rarely active features.
    features, labels = _to_arrays("features", features, labels, num_classes)
    _check_classes(labels, num_classes)
    if len(groups) not in (0, len(labels)):
        raise InputError(
            f"Expected a group for each of {len(labels)} images. Received: {len(groups)} groups."
        )
    weights = _weight_by_class(class_weights, num_classes)
    mean = features.mean(axis=0, dtype="float64").astype("float32")
    x = features - mean
    scale = float(np.sqrt(np.mean(np.sum(np.square(x), axis=1, dtype="float64")))) or 1.0
    x /= np.float32(scale)
    # More threads hardly speed up such small products, and they wait for each other when other work uses the cores.
    with threadpool_limits(1):
        rotation, x = _span(x)
        chosen_by, trials = "validation", []
        if val is not None and len(val[1]):
            val_x, truth = _to_arrays("val features", *val, num_classes, width=len(mean))
            val_x = (val_x - mean) / np.float32(scale)
            trials = [_HeldOut(x, labels, val_x if rotation is None else val_x @ rotation, truth, weights)]
        if not trials or len(trials[0].truth) < ENOUGH["validation"]:
            folds = _cross_validation(x, labels, _folds(features, labels, groups, seed), weights)
            chosen_by, trials = ("cross-validation", folds) if folds else (chosen_by, trials)
        tried = _search(trials)
        best = min(tried, key=lambda row: row.loss).C if tried else DEFAULT_C
        kernel, bias = _finish(trials, best, x, labels, weights)
    kernel = (kernel if rotation is None else rotation @ kernel).astype("float64") / scale
    bias = bias - mean @ kernel
    chosen_by = chosen_by if tried else "default"
    return SolvedHead(kernel.astype("float32"), bias.astype("float32"), best, scale, tuple(tried), chosen_by)


def _check_classes(labels: np.ndarray, num_classes: int) -> None:
    absent = np.setdiff1d(np.arange(num_classes), labels).tolist()
    if num_classes < 2 or absent:
        none_of = f", none of {absent[:10]}" if absent else ""
        raise InputError(
            f"Expected at least 2 classes, each with a training image. Received: num_classes={num_classes}, "
            f"images of {len(np.unique(labels))}{none_of}. Add images, or number the classes from 0 without gaps."
        )


def _to_arrays(
    name: str, features: np.ndarray, labels: np.ndarray, num_classes: int, *, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float32 and labels as int64; raise InputError if they cannot be used."""
    features, labels = np.asarray(features), np.asarray(labels)
    fits = features.ndim == 2 and labels.shape == features.shape[:1] and features.size
    if not fits or width not in (None, features.shape[1]):
        raise InputError(
            f"Expected {name} of shape (images, {width or 'features'}) and a label for each image. Received: "
            f"{features.shape} and {labels.shape}. Pool feature maps first, and use features of the same layers."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"Expected integer labels from 0 to {num_classes - 1}. Received: {labels.dtype}, {labels.min()} to "
            f"{labels.max()}. Number the classes from 0, and set num_classes to their number."
        )
    features = features.astype("float32")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise InputError(
            f"Expected finite {name}. Received: NaN or infinity in {len(bad)} of {len(features)} images, first "
            f"in image {bad[0]}. Check these images and the network's weights; the largest float16 is 65504."
        )
    return features, labels.astype("int64")


def _weight_by_class(class_weights: Mapping[int, float] | None, num_classes: int) -> np.ndarray:
    if class_weights is None:
        return np.ones(num_classes)
    weights = np.array([class_weights.get(k, np.nan) for k in range(num_classes)], "float64")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise InputError(
            f"Expected a weight above 0 for each class from 0 to {num_classes - 1}. Received: {dict(class_weights)}. "
            "`pipeline.class_weights` returns weights that balance the classes."
        )
    return weights


def _span(x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Rotate the features into the space that the images span if there are fewer images than features."""
    # This is exact: the optimal kernel lies in that space.
    if x.shape[0] >= x.shape[1]:
        return None, x
    rotation, rest = np.linalg.qr(x.T)
    return rotation, np.ascontiguousarray(rest.T)


def _folds(
    features: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable] | np.ndarray, seed: int
) -> np.ndarray:
    """Assign each image a fold, stratified by class, with whole groups, for any order of the images."""
    # Sorting by a projection, unlike a checksum, hardly changes if another device rounds differently.
    keys = features.reshape(len(features), -1) @ np.random.default_rng(0).normal(size=features[0].size)
    order = np.lexsort((keys, labels))
    order = order[np.random.default_rng(seed).permutation(len(order))]
    fold_of: dict[Hashable, int] = {}
    counts = [[0] * FOLDS for _ in range(int(labels.max()) + 1)]
    total = [0] * FOLDS
    fold = np.empty(len(labels), "int64")
    for i in order.tolist():
        group, of_class = groups[i] if len(groups) else i, counts[labels[i]]
        fold[i] = fold_of.setdefault(group, min(range(FOLDS), key=lambda f: (of_class[f], total[f])))
        of_class[fold[i]] += 1
        total[fold[i]] += 1
    return fold


class _HeldOut:
    """Training images and held-out images on which values of C are compared."""

    def __init__(
        self, x: np.ndarray, labels: np.ndarray, other: np.ndarray, truth: np.ndarray, weights: np.ndarray
    ) -> None:
        self.classes, self.labels = np.unique(labels, return_inverse=True)
        known = np.isin(truth, self.classes)  # a class whose only image is held out cannot be learned
        self.x, self.other, self.weights = x, other[known], weights[self.classes]
        self.truth = np.searchsorted(self.classes, truth[known])
        self.regression = SoftmaxRegression(x, self.labels, self.weights)
        self.solutions: dict[float, Solution] = {}

    def score(self, c: float) -> np.ndarray:
        """Return weighted sums over the held-out images: losses, correct predictions, and weights."""
        # Start from the solution of the nearest C.
        start = (
            self.solutions[min(self.solutions, key=lambda d: abs(np.log(d / c)))] if self.solutions else None
        )
        self.solutions[c] = self.regression.solve(c, tolerance=_TOLERANCE["choice"], start=start)
        kernel, bias = self.solutions[c]
        scores = log_softmax(self.other @ kernel + bias, axis=1)
        weight = self.weights[self.truth]
        loss = -scores[np.arange(len(scores)), self.truth]
        return np.array([weight @ loss, weight @ (scores.argmax(axis=1) == self.truth), weight.sum()])


def _cross_validation(
    x: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> list[_HeldOut]:
    trials: list[_HeldOut] = []
    for fold in range(FOLDS):
        out = folds == fold
        if len(np.unique(labels[~out])) > 1 and np.isin(labels[out], labels[~out]).any():
            trials.append(_HeldOut(x[~out], labels[~out], x[out], labels[out], weights))
        if sum(len(trial.truth) for trial in trials) >= ENOUGH["cross-validation"]:
            break
    return trials


def _search(trials: Sequence[_HeldOut]) -> list[Candidate]:
    """Follow the grid from `START` while the loss falls, first to weaker regularization."""
    if not trials:
        return []
    start = GRID.index(START)
    tried = [_score(trials, START)]
    for direction in (GRID[start + 1 :], GRID[:start][::-1]):
        best = tried[0].loss
        for c in direction:
            tried.append(_score(trials, c))
            if tried[-1].loss > best:
                break
            best = tried[-1].loss
        if best < tried[0].loss:
            break
    return sorted(tried)


def _score(trials: Sequence[_HeldOut], c: float) -> Candidate:
    loss, correct, weight = np.sum([trial.score(c) for trial in trials], axis=0)
    return Candidate(c, float(loss / weight), float(correct / weight))


def _finish(
    trials: Sequence[_HeldOut], c: float, x: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> Solution:
    """Solve for all images, starting from the solution of a trial that has all classes."""
    near = [trial for trial in trials if len(trial.classes) == len(weights) and c in trial.solutions]
    start = near[0].solutions[c] if near else None
    # Most steps run in float32, which may stop early for its rounding; the last ones run in float64.
    same = near and near[0].x is x
    fast = near[0].regression if same else SoftmaxRegression(x, labels, weights)
    start = fast.solve(c, tolerance=_TOLERANCE["head"], start=start)
    exact = SoftmaxRegression(x.astype("float64"), labels, weights, moments=fast.moments)
    return exact.solve(c, tolerance=_TOLERANCE["head"], start=start)
