"""Screening: one or several classes against all others, at every threshold of the probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transfer.common import display
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, unknown
from transfer.evaluation.evaluation import Evaluation, check_evaluation
from transfer.evaluation.metrics import RESAMPLES, accuracy_interval, exact_interval, percent_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class OperatingPoint(NamedTuple):
    """Sensitivity and specificity of the images with a probability of `threshold` or more, with intervals."""

    threshold: float
    sensitivity: float
    specificity: float
    sensitivity_interval: tuple[float, float]
    specificity_interval: tuple[float, float]


@dataclass(frozen=True)
class Screening:
    """Sensitivity and specificity of positive classes against all others.

    Attributes:
        positive: the positive classes.
        truth: whether each image is positive, bool of shape (N,).
        scores: predicted probability that each image is positive, shape (N,), 0 to 1.
        groups: group of each image, such as its patient; empty without groups.
        confidence: confidence level of all intervals, between 0 and 1.
        seed: random seed of the bootstrap.

    Example:
        >>> one = Screening(("ill",), np.array([True, True, False]), np.array([0.9, 0.4, 0.2]))
        >>> one.auc, one.at(0.5).sensitivity
        (1.0, 0.5)
    """

    positive: tuple[str, ...]
    truth: np.ndarray
    scores: np.ndarray
    groups: Sequence[str] = ()
    confidence: float = 0.95
    seed: int = 0

    def __repr__(self) -> str:
        counts = f"{self.truth.sum():,} positive and {np.sum(~self.truth):,} negative images"
        area = f"AUC {self.auc:.3f}, " if 0 < self.truth.sum() < len(self.truth) else ""
        return display.one_line(self, f"{display.quoted(', '.join(self.positive))}: {area}{counts}")

    def plot(
        self,
        *,
        references: Sequence[tuple[str, float, float]] = (),
        specificity: float | None = 0.9,
        title: str | None = None,
    ) -> Figure:
        """Draw specificity against sensitivity, as figure 3 of Esteva et al. (2017), doi:10.1038/nature21056.

        Args:
            references: points to compare with, each as (name, sensitivity, specificity), 0 to 1.
            specificity: mark the highest sensitivity with at least this specificity, 0 to 1; None marks none.
            title: title of the figure. None shows the classes and the numbers of images.

        Raises:
            InputError: a reference is not a name with two numbers from 0 to 1.
        """
        from transfer.evaluation.screening_plots import sensitivity_plot

        return sensitivity_plot(self, references=references, specificity=specificity, title=title)

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Thresholds in descending order: infinity, then each distinct probability; shape (T,)."""
        return np.concatenate([[np.inf], np.unique(self.scores)[::-1]])

    @cached_property
    def sensitivity(self) -> np.ndarray:
        """Sensitivity at each threshold, shape (T,), rising from 0 to 1."""
        return self._counts[0] / self.truth.sum()

    @cached_property
    def specificity(self) -> np.ndarray:
        """Specificity at each threshold, shape (T,), falling from 1 to 0."""
        negative = np.sum(~self.truth)
        return (negative - self._counts[1]) / negative

    @cached_property
    def auc(self) -> float:
        """Area under the ROC curve, 0 to 1."""
        from sklearn import metrics  # takes seconds to import

        return float(metrics.roc_auc_score(self.truth, self.scores))

    @cached_property
    def auc_interval(self) -> tuple[float, float]:
        """Interval of the AUC, by the bootstrap (Efron, 1979) over images, or groups if there are any."""
        if 0 < self.auc < 1:
            return self._bootstrap(_area_under_curve)
        # With a perfect order, every resample is the same. Use the exact interval of Clopper and Pearson (1934) for
        # disjoint pairs of a positive and a negative image.
        pairs = min(len(set(self._units[self.truth])), len(set(self._units[~self.truth])))
        return exact_interval(round(self.auc) * pairs, pairs, self.confidence)

    def at(self, threshold: float) -> OperatingPoint:
        """Return the operating point of a threshold that was chosen on other images, such as validation images.

        The intervals are bootstrap intervals of the accuracy on the positive and on the negative images.
        """
        correct = (self.scores >= threshold) == self.truth
        fractions, intervals = [], []
        for side in (self.truth, ~self.truth):
            groups = np.asarray(self.groups)[side].tolist() if len(self.groups) else ()
            fractions.append(float(correct[side].mean()))
            intervals.append(
                accuracy_interval(correct[side], groups=groups, confidence=self.confidence, seed=self.seed)
            )
        return OperatingPoint(float(threshold), fractions[0], fractions[1], intervals[0], intervals[1])

    def sensitivity_at(self, specificity: float = 0.9) -> OperatingPoint:
        """Return the highest sensitivity with at least this specificity.

        The threshold is chosen on these images, and again on each bootstrap resample, without interpolation. On new
        images the specificity will differ: for an estimate, choose a threshold on other images and call `at`.
        """
        _check_fraction("specificity", specificity)
        point = self.at(self.thresholds[_most_sensitive(*self._counts, specificity)])

        def sensitivity(true_positives: np.ndarray, false_positives: np.ndarray) -> float:
            best = _most_sensitive(true_positives, false_positives, specificity)
            return float(true_positives[best] / true_positives[-1])

        if not 0 < point.sensitivity < 1:  # every resample may be the same: keep the exact interval
            return point
        return point._replace(sensitivity_interval=self._bootstrap(sensitivity))

    def specificity_at(self, sensitivity: float = 0.9) -> OperatingPoint:
        """Return the highest specificity with at least this sensitivity; see `sensitivity_at`."""
        _check_fraction("sensitivity", sensitivity)
        point = self.at(self.thresholds[_most_specific(*self._counts, sensitivity)])

        def specificity(true_positives: np.ndarray, false_positives: np.ndarray) -> float:
            best = _most_specific(true_positives, false_positives, sensitivity)
            return float(1 - false_positives[best] / false_positives[-1])

        if not 0 < point.specificity < 1:
            return point
        return point._replace(specificity_interval=self._bootstrap(specificity))

    def to_dict(self, *, specificity: float = 0.9, sensitivity: float = 0.9) -> dict[str, Any]:
        """Return the metrics as a dictionary for JSON; an infinite threshold is None."""
        points = {
            "sensitivity_at": self.sensitivity_at(specificity),
            "specificity_at": self.specificity_at(sensitivity),
        }
        return {
            "positive": list(self.positive),
            "num_positive": int(self.truth.sum()),
            "num_negative": int(np.sum(~self.truth)),
            "num_groups": len(set(self.groups)),
            "confidence": self.confidence,
            "auc": self.auc,
            "auc_interval": list(self.auc_interval),
            **{
                name: {
                    **point._asdict(),
                    "threshold": point.threshold if np.isfinite(point.threshold) else None,
                }
                for name, point in points.items()
            },
        }

    def to_text(self, *, specificity: float = 0.9, sensitivity: float = 0.9) -> str:
        """Return the metrics as lines of text."""
        first, second = self.sensitivity_at(specificity), self.specificity_at(sensitivity)
        groups = f" in {len(set(self.groups)):,} groups" if len(self.groups) else ""
        level, (low, high) = f"{self.confidence:.0%} interval", self.auc_interval
        return (
            f"{', '.join(self.positive)}: {self.truth.sum():,} positive and {np.sum(~self.truth):,} negative "
            f"images{groups}.\n"
            f"AUC: {self.auc:.3f} ({level} {low:.3f}-{high:.3f}).\n"
            f"Sensitivity: {first.sensitivity:.1%} ({level} {percent_range(first.sensitivity_interval, 1)}) at a "
            f"specificity of {first.specificity:.1%} (at least {specificity:.0%}); threshold {first.threshold:.3f}.\n"
            f"Specificity: {second.specificity:.1%} ({level} {percent_range(second.specificity_interval, 1)}) at a "
            f"sensitivity of {second.sensitivity:.1%} (at least {sensitivity:.0%}); threshold {second.threshold:.3f}.\n"
        )

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """True positives and false positives at each threshold."""
        return self._weighted_counts(np.ones(len(self.truth), "int64"))

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Images by falling probability, and the number of images at or above each threshold."""
        order = np.argsort(-self.scores, kind="stable")
        return order, np.searchsorted(-self.scores[order], -self.thresholds, side="right")

    @cached_property
    def _units(self) -> np.ndarray:
        """Index of each image's resampling unit: its group, or the image itself."""
        names = np.asarray(self.groups) if len(self.groups) else np.arange(len(self.truth))
        return np.unique(names, return_inverse=True)[1]

    def _weighted_counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order, ends = self._order
        truth, weights = self.truth[order], weights[order]
        sums = (np.concatenate([[0], np.cumsum(weights * side)]) for side in (truth, ~truth))
        true_positives, false_positives = (total[ends] for total in sums)
        return true_positives, false_positives

    def _resampled_counts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield true and false positives of bootstrap resamples that have positive and negative images."""
        rng, count = np.random.default_rng(self.seed), int(self._units.max()) + 1
        for _ in range(RESAMPLES):
            times_drawn = np.bincount(rng.integers(0, count, count), minlength=count)
            true_positives, false_positives = self._weighted_counts(times_drawn[self._units])
            if true_positives[-1] and false_positives[-1]:
                yield true_positives, false_positives

    def _bootstrap(self, metric: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float]:
        values = [metric(*counts) for counts in self._resampled_counts()]
        low, high = np.quantile(values, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return float(low), float(high)


@explain_arguments()
def screening(
    evaluation: Evaluation, *, positive: str | Sequence[str], confidence: float = 0.95, seed: int = 0
) -> Screening:
    """Evaluate one class, or several classes together, against all others.

    The probability of several classes is the sum of their probabilities, as in `merge`.

    Args:
        evaluation: evaluation from `evaluate` or `merge`.
        positive: the positive class or classes.
        confidence: confidence level of the intervals, between 0 and 1.
        seed: random seed of the bootstrap.

    Returns:
        Sensitivity and specificity at every threshold, the AUC, and their intervals. Intervals are over groups, such
        as patients, if the images have groups.

    Raises:
        InputError: a class is unknown, all classes are positive, there are no positive or no negative images, or
            `confidence` is out of range.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
        >>> evaluation = Evaluation(("ill", "well"), np.array([0, 0, 1, 1]), probabilities, "abcd")
        >>> ill = screening(evaluation, positive="ill")
        >>> ill.auc, ill.sensitivity.tolist(), ill.specificity.tolist()
        (0.75, [0.0, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5, 0.0])
        >>> ill.sensitivity_at(specificity=0.5).threshold
        0.6
    """
    check_evaluation(evaluation, "screening(evaluation, positive=...)")
    chosen = (positive,) if isinstance(positive, str) else tuple(dict.fromkeys(positive))
    for name in chosen:
        if name not in evaluation.class_names:
            raise unknown("class", name, evaluation.class_names)
    if not 0 < confidence < 1:
        raise InputError(f"Expected a confidence between 0 and 1. Received: {confidence!r}.")
    indices = [evaluation.class_names.index(name) for name in chosen]
    truth = np.isin(evaluation.labels, indices)
    if not truth.any() or truth.all() or len(chosen) == len(evaluation.class_names):
        raise InputError(
            "Expected images of positive classes and of other classes. Received: "
            f"{truth.sum()} of {', '.join(chosen) or 'no class'}, and {np.sum(~truth)} others."
        )
    scores = evaluation.probabilities[:, indices].sum(axis=1)
    return Screening(chosen, truth, scores, evaluation.groups, confidence, seed)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"Expected a {name} from 0 to 1. Received: {value!r}.")


def _area_under_curve(true_positives: np.ndarray, false_positives: np.ndarray) -> float:
    # By the trapezoidal rule, pairs of equal probability count half.
    twice = np.sum(np.diff(false_positives) * (true_positives[1:] + true_positives[:-1]))
    return float(twice / (2 * true_positives[-1] * false_positives[-1]))


def _most_sensitive(true_positives: np.ndarray, false_positives: np.ndarray, specificity: float) -> int:
    """Return the index of the most sensitive threshold; among equals, the highest threshold."""
    last = np.flatnonzero((false_positives[-1] - false_positives) / false_positives[-1] >= specificity)[-1]
    return int(np.searchsorted(true_positives, true_positives[last]))


def _most_specific(true_positives: np.ndarray, false_positives: np.ndarray, sensitivity: float) -> int:
    """Return the index of the most specific threshold; among equals, the most sensitive one."""
    first = np.flatnonzero(true_positives / true_positives[-1] >= sensitivity)[0]
    return int(np.searchsorted(false_positives, false_positives[first], side="right") - 1)
