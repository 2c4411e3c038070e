"""Solve the head of a frozen network exactly on stored features, without epochs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from transfer.common.errors import InputError
from transfer.frozen.discriminant import Discriminant
from transfer.frozen.held_out import Candidate, HeldOut, Setting, discriminants, score
from transfer.frozen.moments import second_moments
from transfer.frozen.scaled_features import ScaledFeatures
from transfer.frozen.softmax_regression import SoftmaxRegression, Solution

GRID = tuple(float(c) for c in 10.0 ** np.arange(-2, 4.5, 0.5))
"""Values of C to choose from, the strongest regularization first. They suit both noise and separable classes."""

START = GRID[5]
"""First value of the search, about 3; below `DEFAULT_C`, since weaker regularization is tried first."""

DEFAULT_C = 10.0
"""C if no image can be held out, as with one image per class: the middle of the best values for photos."""

FOLDS = 3
"""Number of folds of the cross-validation; the time is proportional to it."""

METHODS = ("regression", "discriminant")
"""Multinomial logistic regression, and linear discriminant analysis; the one with the lower held-out loss is chosen."""

ENOUGH = {"validation": 200, "cross-validation": 1000}
"""Number of images that suffices to choose C. With fewer than 200 validation images, C is cross-validated."""

_FLAT = 1e-3  # smaller relative differences of losses do not count: the strongest regularization is chosen
_TOLERANCE = 1e-5  # L-BFGS stops when the gradient norm of the mean loss is below this for each class


@dataclass(frozen=True, eq=False)
class SolvedHead:
    """A Dense softmax layer for features that are not scaled."""

    # Float32 of shape (D, K).
    kernel: np.ndarray
    # Float32 of shape (K,).
    bias: np.ndarray
    # Of a regression, the chosen C: the head minimizes the sum of the cross-entropies plus |kernel * scale|^2 / (2 C).
    # Of a discriminant, the shrinkage of the covariance.
    regularization: float
    # Root of the features' mean squared distance from their mean.
    scale: float
    # The strengths of the method; empty if no image could be held out.
    tried: tuple[Candidate, ...]
    # "validation", "cross-validation" or "default".
    chosen_by: str
    # One of `METHODS`.
    method: str = "regression"

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the class probabilities of features as float64, shape (images, classes)."""
        return np.asarray(softmax((features @ self.kernel + self.bias).astype("float64"), axis=1))

    def measure(self, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the loss and the accuracy on some images, as a row of a log."""
        scores = log_softmax(features @ self.kernel + self.bias, axis=1)
        loss = -scores[np.arange(len(labels)), labels].mean()
        return {"loss": float(loss), "accuracy": float((scores.argmax(axis=1) == labels).mean())}


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    class_weights: Mapping[int, float] | None = None,
    groups: Sequence[Hashable] | np.ndarray = (),
    methods: Sequence[str] = METHODS,
    seed: int = 0,
) -> SolvedHead:
    """Solve the head by the best method, with the best regularization on `val` or by cross-validation."""
    problem = HeadProblem(features, labels, num_classes, class_weights=class_weights, methods=methods)
    if len(groups) not in (0, len(labels)):
        raise InputError(
            f"Expected a group for each of {len(labels)} images. Received: {len(groups)} groups."
        )
    if val is not None and len(val[1]):
        problem.validate(*val)
    if val is None or len(val[1]) < ENOUGH["validation"]:
        # Sorting by a projection, unlike a checksum, hardly changes if another device rounds differently.
        keys = problem.scaled.project(np.random.default_rng(0).normal(size=len(problem.mean)))
        problem.cross_validate(assign_folds(problem.labels, groups=groups, keys=keys, count=FOLDS, seed=seed))
    return problem.solve()


class HeadProblem:
    """The problem of a head: its features, centered and scaled, its labels, and the choice of the regularization."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        class_weights: Mapping[int, float] | None = None,
        methods: Sequence[str] = METHODS,
        setting: Setting | None = None,
    ) -> None:
        features, self.labels = _to_arrays("features", features, labels, num_classes)
        _check_classes(self.labels, num_classes)
        self.weights = _weight_by_class(class_weights, num_classes)
        self.scaled = ScaledFeatures(features)
        self.mean, self.scale, self.x = self.scaled.mean, self.scaled.scale, self.scaled.x
        self.methods, self.chosen_by = methods, "default"
        self.setting = setting or Setting(
            "regression", DEFAULT_C
        )  # until `validate` or `cross_validate` chooses
        self.tried: tuple[Candidate, ...] = ()
        self._trials: dict[int, HeldOut] = {}
        self._folds = np.zeros(len(features), "int64")
        self._sums: dict[int, np.ndarray] = {}  # sum of the second moments over each fold

    def validate(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Choose the setting on other images."""
        self._choose("validation", {0: self._compare_on(features, labels)}, START)

    def use_discriminant(self, features: np.ndarray, labels: np.ndarray, shrinkage: float) -> None:
        """Use a discriminant, unless each class has one image, with the temperature that suits other images best."""
        with threadpool_limits(1):
            found = discriminants([self._compare_on(features, labels)], (shrinkage,))
        for setting, candidate in found.items():
            self.setting, self.tried, self.chosen_by = setting, (candidate,), "validation"

    def _compare_on(self, features: np.ndarray, labels: np.ndarray) -> HeldOut:
        """Return a trial that fits all images and compares settings on held-out images."""
        other, truth = _to_arrays("val features", features, labels, len(self.weights), width=len(self.mean))
        other, every = self.scaled.coordinates(other), np.ones(len(self.x), bool)
        return HeldOut(self.x, self.labels, other, truth, self.weights, self._moments(every))

    def cross_validate(self, folds: np.ndarray, *, start: float = START) -> None:
        """Choose the setting by cross-validation with the fold of each image, unless no fold can be held out."""
        self._folds, self._sums = folds, {}
        trials: dict[int, HeldOut] = {}
        for fold in np.unique(folds).tolist():
            trial = self._hold_out(folds == fold)
            trials |= {fold: trial} if trial else {}
            if sum(len(trial.truth) for trial in trials.values()) >= ENOUGH["cross-validation"]:
                break
        if trials:
            self._choose("cross-validation", trials, start)

    def _hold_out(self, out: np.ndarray) -> HeldOut | None:
        """Hold out some images; None if the others have one class, or other classes."""
        labels, truth = self.labels[~out], self.labels[out]
        if len(np.unique(labels)) < 2 or not np.isin(truth, labels).any():
            return None
        return HeldOut(self.x[~out], labels, self.x[out], truth, self.weights, self._moments(~out))

    def _moments(self, images: np.ndarray) -> np.ndarray:
        """Return the mean second moments of the images of some folds; compute those of each fold once."""
        folds = np.unique(self._folds[images]).tolist()
        for fold in set(folds) - set(self._sums):
            part = self.x[self._folds == fold]
            self._sums[fold] = second_moments(part) * np.float32(len(part))
        return np.asarray(sum(self._sums[fold] for fold in folds)) / np.float32(images.sum())

    def _choose(self, chosen_by: str, trials: dict[int, HeldOut], start: float) -> None:
        self.chosen_by, self._trials = chosen_by, trials
        held_out = list(trials.values())
        with threadpool_limits(1):  # `sum_blocks` has threads of its own
            self.tried = tuple(_search(held_out, start))
            lowest = min(row.loss for row in self.tried)
            best = next(row for row in self.tried if row.loss <= lowest * (1 + _FLAT))
            self.setting = Setting("regression", best.strength)
            others = discriminants(held_out) if "discriminant" in self.methods else {}
        setting = min(others, key=lambda one: others[one].loss, default=None)
        if setting is not None and others[setting].loss < best.loss:
            self.setting, self.tried = setting, tuple(others.values())

    def out_of_fold(self) -> np.ndarray:
        """Return the probabilities (N, K) of the images, each held out, with the setting of `cross_validate`."""
        # A class that is absent from a fold's training images gets the probability of a guess.
        count = len(self.weights)
        probabilities = np.full((len(self.labels), count), 1 / count)
        with threadpool_limits(1):
            for fold in np.unique(self._folds).tolist():
                out = self._folds == fold
                trial = self._trials.get(fold) or self._hold_out(out)
                if trial:
                    known = np.exp(trial.scores(self.setting)) * len(trial.classes) / count
                    probabilities[np.ix_(np.flatnonzero(out), trial.classes)] = known
        return probabilities

    def solve(self) -> SolvedHead:
        """Solve the head for all images with the chosen setting."""
        method, strength, temperature = self.setting
        every = np.ones(len(self.x), bool)
        with threadpool_limits(1):
            if method == "discriminant":
                model = Discriminant(self.x, self.labels, self.weights, self._moments(every))
                kernel, bias = model.solve(strength, temperature)
            else:
                kernel, bias = self._finish(strength)
            kernel, bias = self.scaled.layer(kernel, bias)
        return SolvedHead(
            kernel,
            bias,
            strength,
            self.scale,
            self.tried,
            self.chosen_by,
            method,
        )

    def _finish(self, c: float) -> Solution:
        """Fit all images, starting from the solution of a trial with all classes if there is one."""
        trials = [one for one in self._trials.values() if len(one.classes) == len(self.weights)]
        near = next((one for one in trials if c in one.solutions), None)
        start = near.solutions[c] if near else None
        # The moments of a trial's images suffice for the preconditioner, if there are more of them than features.
        some = near is not None and len(near.x) > self.x.shape[1]
        moments = near.moments if near and some else self._moments(np.ones(len(self.x), bool))
        regression = SoftmaxRegression(self.x, self.labels, self.weights, moments)
        return regression.solve(c, tolerance=_TOLERANCE, start=start)


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
    features = features.astype("float32", copy=False)
    finite = np.isfinite(features)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
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


def assign_folds(
    labels: np.ndarray,
    *,
    groups: Sequence[Hashable] | np.ndarray = (),
    keys: np.ndarray | None = None,
    count: int = FOLDS,
    seed: int = 0,
) -> np.ndarray:
    """Assign each image a fold, stratified by class, with whole groups; keys make the order of images irrelevant."""
    order = np.lexsort((np.arange(len(labels)) if keys is None else keys, labels))
    order = order[np.random.default_rng(seed).permutation(len(order))]
    fold_of: dict[Hashable, int] = {}
    counts = [[0] * count for _ in range(int(labels.max()) + 1)]
    total = [0] * count
    fold = np.empty(len(labels), "int64")
    for i in order.tolist():
        group, of_class = groups[i] if len(groups) else i, counts[labels[i]]
        fold[i] = fold_of.setdefault(group, min(zip(of_class, total, range(count), strict=True))[2])
        of_class[fold[i]] += 1
        total[fold[i]] += 1
    return fold


def _search(trials: Sequence[HeldOut], start: float) -> list[Candidate]:
    """Follow the grid from a value of C while the loss falls, first to weaker regularization."""
    at = GRID.index(start)
    tried = [score(trials, Setting("regression", start))]
    for direction in (GRID[at + 1 :], GRID[:at][::-1]):
        best = tried[0].loss
        for c in direction:
            tried.append(score(trials, Setting("regression", c)))
            if tried[-1].loss > best * (1 - _FLAT):
                break
            best = tried[-1].loss
        if best < tried[0].loss:
            break
    return sorted(tried)
