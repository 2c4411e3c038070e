"""The head of a frozen network, solved exactly on features computed once: a convex problem, no epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from transfer.common.errors import InputError
from transfer.frozen.softmax_regression import SoftmaxRegression, Solution

GRID = tuple(float(c) for c in 10.0 ** np.arange(-2, 4.5, 0.5))
"""Values of C that may be chosen, strong regularization first: wide enough for noise and for separable classes."""

START = GRID[5]
"""Where the search begins, about 3: below `DEFAULT_C`, since the search tries weaker regularization first."""

DEFAULT_C = 10.0
"""Where nothing can be left out to choose by, as with one image per class: the middle of what photos want."""

FOLDS = 3
"""Of the cross-validation: each more costs as much again."""

ENOUGH = {"validation": 200, "cross-validation": 1000}
"""Images whose loss tells enough. Fewer validation images are left aside for cross-validation, which has more to
go by; folds beyond so many images are not computed."""

_TOLERANCE = {"choice": 1e-4, "head": 1e-5}
"""Largest slope of the mean loss at which L-BFGS stops; finer for the head that is kept than for the choice."""


class Tried(NamedTuple):
    """One value of the regularization."""

    C: float
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class SolvedHead:
    """A Dense softmax for raw features."""

    # Float32 of shape (D, K).
    kernel: np.ndarray
    # Float32 of shape (K,).
    bias: np.ndarray
    regularization: float
    scale: float
    # What was compared, strong regularization first.
    tried: tuple[Tried, ...]
    chosen_by: str


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    class_weights: Mapping[int, float] | None = None,
    groups: Sequence[Any] | np.ndarray = (),
    seed: int = 0,
) -> SolvedHead:
    """Train a head to the optimum: multinomial logistic regression by L-BFGS, its regularization chosen."""
    features, labels = _checked("features", features, labels, num_classes)
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
    # Of such thin products more threads gain little, and where other work uses the cores they wait for each other.
    with threadpool_limits(1):
        rotation, x = _span(x)
        chosen_by, trials = "validation", []
        if val is not None and len(val[1]):
            val_x, truth = _checked("val features", *val, num_classes, width=len(mean))
            val_x = (val_x - mean) / np.float32(scale)
            trials = [_Trial(x, labels, val_x if rotation is None else val_x @ rotation, truth, weights)]
        if not trials or len(trials[0].truth) < ENOUGH["validation"]:
            folds = _left_out(x, labels, _folds(features, labels, groups, seed), weights)
            chosen_by, trials = ("cross-validation", folds) if folds else (chosen_by, trials)
        tried = _try(trials)
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
            f"Expected 2 classes or more, each with an image to train on. Received: num_classes={num_classes}, "
            f"images of {len(np.unique(labels))}{none_of}. Add images, or number the classes that there are from 0."
        )


def _checked(
    name: str, features: np.ndarray, labels: np.ndarray, num_classes: int, *, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features), np.asarray(labels)
    fits = features.ndim == 2 and labels.shape == features.shape[:1] and features.size
    if not fits or width not in (None, features.shape[1]):
        raise InputError(
            f"Expected {name} of shape (images, {width or 'features'}) and a label for each image. Received: "
            f"{features.shape} and {labels.shape}. Pool feature maps first; give the same layers' features everywhere."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"Expected labels that are whole numbers from 0 to {num_classes - 1}. Received: {labels.dtype}, "
            f"{labels.min()} to {labels.max()}. Number the classes from 0, and give their number."
        )
    features = features.astype("float32")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise InputError(
            f"Expected finite {name}. Received: NaN or infinity in {len(bad)} of {len(features)} images, the first "
            f"at {bad[0]}. Look at these images and at the network's weights; in float16, values end at 65504."
        )
    return features, labels.astype("int64")


def _weight_by_class(class_weights: Mapping[int, float] | None, num_classes: int) -> np.ndarray:
    if class_weights is None:
        return np.ones(num_classes)
    weights = np.array([class_weights.get(k, np.nan) for k in range(num_classes)], "float64")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise InputError(
            f"Expected a weight above 0 for each class from 0 to {num_classes - 1}. Received: {dict(class_weights)}. "
            "`pipeline.class_weights` gives those at which all classes count the same."
        )
    return weights


def _span(x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Rotate fewer images than features into the space that they span: the optimum lies there, so this is
    exact."""
    if x.shape[0] >= x.shape[1]:
        return None, x
    rotation, rest = np.linalg.qr(x.T)
    return rotation, np.ascontiguousarray(rest.T)


def _folds(
    features: np.ndarray, labels: np.ndarray, groups: Sequence[Any] | np.ndarray, seed: int
) -> np.ndarray:
    """Give each image a fold, each class spread evenly, groups whole; by the features, not by their
    order."""
    # A projection, and not a checksum: where another device rounds otherwise, hardly any image changes its place.
    keys = features.reshape(len(features), -1) @ np.random.default_rng(0).normal(size=features[0].size)
    order = np.lexsort((keys, labels))
    order = order[np.random.default_rng(seed).permutation(len(order))]
    home: dict[Any, int] = {}
    load = [[0] * FOLDS for _ in range(int(labels.max()) + 1)]
    total = [0] * FOLDS
    fold = np.empty(len(labels), "int64")
    for i in order.tolist():
        group, of_class = groups[i] if len(groups) else i, load[labels[i]]
        fold[i] = home.setdefault(group, min(range(FOLDS), key=lambda f: (of_class[f], total[f])))
        of_class[fold[i]] += 1
        total[fold[i]] += 1
    return fold


class _Trial:
    """Images to train on and others to judge by; each fit starts from the last."""

    def __init__(
        self, x: np.ndarray, labels: np.ndarray, other: np.ndarray, truth: np.ndarray, weights: np.ndarray
    ) -> None:
        self.classes, self.labels = np.unique(labels, return_inverse=True)
        known = np.isin(truth, self.classes)  # a class of one image that is left out cannot be learnt
        self.x, self.other, self.weights = x, other[known], weights[self.classes]
        self.truth = np.searchsorted(self.classes, truth[known])
        self.regression = SoftmaxRegression(x, self.labels, self.weights)
        self.solutions: dict[float, Solution] = {}

    def judge(self, c: float) -> np.ndarray:
        """Sums over the left-out images: of loss, of right ones, and of weights."""
        start = (
            self.solutions[min(self.solutions, key=lambda d: abs(np.log(d / c)))] if self.solutions else None
        )
        self.solutions[c] = self.regression.solve(c, tolerance=_TOLERANCE["choice"], start=start)
        kernel, bias = self.solutions[c]
        scores = log_softmax(self.other @ kernel + bias, axis=1)
        weight = self.weights[self.truth]
        loss = -scores[np.arange(len(scores)), self.truth]
        return np.array([weight @ loss, weight @ (scores.argmax(axis=1) == self.truth), weight.sum()])


def _left_out(x: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> list[_Trial]:
    trials: list[_Trial] = []
    for fold in range(FOLDS):
        out = folds == fold
        if len(np.unique(labels[~out])) > 1 and np.isin(labels[out], labels[~out]).any():
            trials.append(_Trial(x[~out], labels[~out], x[out], labels[out], weights))
        if sum(len(trial.truth) for trial in trials) >= ENOUGH["cross-validation"]:
            break
    return trials


def _try(trials: Sequence[_Trial]) -> list[Tried]:
    """Walk from `START` along the grid while that helps, first to weaker regularization; the loss has one
    valley."""
    if not trials:
        return []
    start = GRID.index(START)
    tried = [_judge(trials, START)]
    for way in (GRID[start + 1 :], GRID[:start][::-1]):
        best = tried[0].loss
        for c in way:
            tried.append(_judge(trials, c))
            if tried[-1].loss > best:
                break
            best = tried[-1].loss
        if best < tried[0].loss:
            break
    return sorted(tried)


def _judge(trials: Sequence[_Trial], c: float) -> Tried:
    loss, right, weight = np.sum([trial.judge(c) for trial in trials], axis=0)
    return Tried(c, float(loss / weight), float(right / weight))


def _finish(
    trials: Sequence[_Trial], c: float, x: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> Solution:
    """Solve for all images, from a trial's solution where it knows all classes; in float32 for most of
    the way, whose rounding may stop it early, and to the end in float64."""
    near = [trial for trial in trials if len(trial.classes) == len(weights) and c in trial.solutions]
    start = near[0].solutions[c] if near else None
    same = near and near[0].x is x
    fast = near[0].regression if same else SoftmaxRegression(x, labels, weights)
    start = fast.solve(c, tolerance=_TOLERANCE["head"], start=start)
    exact = SoftmaxRegression(x.astype("float64"), labels, weights, moments=fast.moments)
    return exact.solve(c, tolerance=_TOLERANCE["head"], start=start)
