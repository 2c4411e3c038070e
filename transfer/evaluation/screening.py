"""One class against the rest: sensitivity and specificity at every threshold, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn import metrics

from transfer.common.errors import InputError, unknown
from transfer.evaluation.evaluate import Evaluation
from transfer.evaluation.metrics import RESAMPLES, accuracy_interval


class OperatingPoint(NamedTuple):
    """What comes of calling images positive from a probability on."""

    threshold: float
    sensitivity: float
    specificity: float
    sensitivity_interval: tuple[float, float]
    specificity_interval: tuple[float, float]


@dataclass(frozen=True)
class Screening:
    """Positive images against all others.

    Attributes:
        positive: the classes that are looked for.
        truth: of each image, whether it is positive, shape (N,).
        scores: how probable the model says it is, shape (N,), 0 to 1.
        groups: of each image, such as its patient; empty where there are none.
        confidence: of all intervals, between 0 and 1.
        seed: of the draws of the bootstrap.
    """

    positive: tuple[str, ...]
    truth: np.ndarray
    scores: np.ndarray
    groups: Sequence[str] = ()
    confidence: float = 0.95
    seed: int = 0

    @cached_property
    def thresholds(self) -> np.ndarray:
        """All that change anything, falling: infinity, then each probability that occurs, once; shape (T,)."""
        return np.concatenate([[np.inf], np.unique(self.scores)[::-1]])

    @cached_property
    def sensitivity(self) -> np.ndarray:
        """At each threshold, shape (T,), rising from 0 to 1."""
        return self._counts[0] / self.truth.sum()

    @cached_property
    def specificity(self) -> np.ndarray:
        """At each threshold, shape (T,), falling from 1 to 0."""
        negative = np.sum(~self.truth)
        return (negative - self._counts[1]) / negative

    @cached_property
    def auc(self) -> float:
        """How often a positive image is more probable than a negative one; equal ones count half."""
        return float(metrics.roc_auc_score(self.truth, self.scores))

    @cached_property
    def auc_interval(self) -> tuple[float, float]:
        """Between what the area lies, by the bootstrap over images or groups (Efron 1979). Where the order is
        perfect every draw is the same; then by Clopper and Pearson (1934), for pairs of which none shares an image.
        """
        if 0 < self.auc < 1:
            return self._bootstrap(_area)
        pairs = min(len(set(self._units[self.truth])), len(set(self._units[~self.truth])))
        exact = binomtest(round(self.auc) * pairs, pairs).proportion_ci(self.confidence, method="exact")
        return float(exact.low), float(exact.high)

    def at(self, threshold: float) -> OperatingPoint:
        """Say what comes of a threshold that was chosen elsewhere, such as on the validation images.

        The intervals are those of two shares, of the positive and of the negative images: see
        `scores.accuracy_interval`.
        """
        called = self.scores >= threshold
        right = called == self.truth
        shares, intervals = [], []
        for side in (self.truth, ~self.truth):
            groups = np.asarray(self.groups)[side].tolist() if len(self.groups) else ()
            shares.append(float(right[side].mean()))
            options: dict[str, Any] = {"confidence": self.confidence, "seed": self.seed}
            intervals.append(accuracy_interval(right[side], groups=groups, **options))
        return OperatingPoint(float(threshold), shares[0], shares[1], intervals[0], intervals[1])

    def sensitivity_at(self, specificity: float = 0.9) -> OperatingPoint:
        """Give the best sensitivity whose specificity is this or more; nothing is interpolated between thresholds.

        The threshold is chosen on these very images, and so on each draw of the bootstrap; on new images the
        specificity will be another. Choose it on others, and ask `at`, for what may be expected.
        """
        _check_share("specificity", specificity)
        point = self.at(self.thresholds[_most_sensitive(*self._counts, specificity)])

        def figure(called: np.ndarray, wrongly: np.ndarray) -> float:
            return float(called[_most_sensitive(called, wrongly, specificity)] / called[-1])

        if not 0 < point.sensitivity < 1:  # draws may all be the same: the exact interval stays
            return point
        return point._replace(sensitivity_interval=self._bootstrap(figure))

    def specificity_at(self, sensitivity: float = 0.9) -> OperatingPoint:
        """Give the best specificity whose sensitivity is this or more; see `sensitivity_at`."""
        _check_share("sensitivity", sensitivity)
        point = self.at(self.thresholds[_most_specific(*self._counts, sensitivity)])

        def figure(called: np.ndarray, wrongly: np.ndarray) -> float:
            return float(1 - wrongly[_most_specific(called, wrongly, sensitivity)] / wrongly[-1])

        if not 0 < point.specificity < 1:
            return point
        return point._replace(specificity_interval=self._bootstrap(figure))

    def to_dict(self, *, specificity: float = 0.9, sensitivity: float = 0.9) -> dict[str, Any]:
        """Give the figures, for programs."""
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
        """Give the figures as lines for people."""
        one, other = self.sensitivity_at(specificity), self.specificity_at(sensitivity)
        unit = f", in {len(set(self.groups)):,} groups" if len(self.groups) else ""
        low, high = self.auc_interval
        lines = [
            f"{', '.join(self.positive)}: {self.truth.sum():,} images against {np.sum(~self.truth):,}{unit}",
            f"Area under the curve {self.auc:.3f} ({low:.3f} to {high:.3f} with {self.confidence:.0%} confidence)",
            f"Sensitivity {_said(one.sensitivity, one.sensitivity_interval)} at a specificity of "
            f"{one.specificity:.1%} ({specificity:.0%} or more): from a probability of {one.threshold:.3f} on",
            f"Specificity {_said(other.specificity, other.specificity_interval)} at a sensitivity of "
            f"{other.sensitivity:.1%} ({sensitivity:.0%} or more): from a probability of {other.threshold:.3f} on",
        ]
        return "\n".join([*lines, ""])

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative images that are called positive, at each threshold."""
        return self._weighed(np.ones(len(self.truth), "int64"))

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """The images by falling probability, and how many of them each threshold takes."""
        order = np.argsort(-self.scores, kind="stable")
        return order, np.searchsorted(-self.scores[order], -self.thresholds, side="right")

    @cached_property
    def _units(self) -> np.ndarray:
        """Number of what is drawn together: of each image's group, or of the image."""
        names = np.asarray(self.groups) if len(self.groups) else np.arange(len(self.truth))
        return np.unique(names, return_inverse=True)[1]

    def _weighed(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order, ends = self._order
        truth, weights = self.truth[order], weights[order]
        sums = (np.concatenate([[0], np.cumsum(weights * side)]) for side in (truth, ~truth))
        called, wrongly = (total[ends] for total in sums)
        return called, wrongly

    def _draws(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Counts at each threshold when units are drawn anew, with replacement; draws of one side alone say
        nothing."""
        rng, count = np.random.default_rng(self.seed), int(self._units.max()) + 1
        for _ in range(RESAMPLES):
            drawn = np.bincount(rng.integers(0, count, count), minlength=count)
            called, wrongly = self._weighed(drawn[self._units])
            if called[-1] and wrongly[-1]:
                yield called, wrongly

    def _bootstrap(self, figure: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float]:
        drawn = [figure(called, wrongly) for called, wrongly in self._draws()]
        low, high = np.quantile(drawn, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return float(low), float(high)


def screening(
    found: Evaluation, *, positive: str | Sequence[str], confidence: float = 0.95, seed: int = 0
) -> Screening:
    """Set one class, or several together, against all others.

    The probability of several is the sum of theirs, as in `class_tree.merge`.

    Args:
        found: of `evaluate` or `merge`.
        positive: what is looked for: a class, or several.
        confidence: of the intervals, between 0 and 1.
        seed: of the draws of the bootstrap.

    Returns:
        Sensitivity and specificity at every threshold, the area under the curve, and their intervals, over groups such
        as patients where there are any.

    Raises:
        InputError: no such class, all of them, no image on one side, or a confidence out of range.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
        >>> found = Evaluation(("ill", "well"), np.array([0, 0, 1, 1]), probabilities, "abcd")
        >>> ill = screening(found, positive="ill")
        >>> ill.auc, ill.sensitivity.tolist(), ill.specificity.tolist()
        (0.75, [0.0, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5, 0.0])
        >>> ill.sensitivity_at(specificity=0.5).threshold
        0.6
    """
    chosen = (positive,) if isinstance(positive, str) else tuple(dict.fromkeys(positive))
    for name in chosen:
        if name not in found.class_names:
            raise unknown("class", name, found.class_names)
    if not 0 < confidence < 1:
        raise InputError(f"Expected a confidence between 0 and 1. Received: {confidence!r}.")
    places = [found.class_names.index(name) for name in chosen]
    truth = np.isin(found.labels, places)
    if not truth.any() or truth.all() or len(chosen) == len(found.class_names):
        raise InputError(
            "Expected images of the positive classes and of others. Received: "
            f"{truth.sum()} of {', '.join(chosen) or 'no class'}, and {np.sum(~truth)} others."
        )
    return Screening(
        chosen, truth, found.probabilities[:, places].sum(axis=1), found.groups, confidence, seed
    )


def _check_share(name: str, asked: float) -> None:
    if not 0 <= asked <= 1:
        raise InputError(f"Expected a {name} from 0 to 1. Received: {asked!r}.")


def _area(called: np.ndarray, wrongly: np.ndarray) -> float:
    """The area under the curve from counts, by trapezoids: images that are equally probable count
    half."""
    twice = np.sum(np.diff(wrongly) * (called[1:] + called[:-1]))
    return float(twice / (2 * called[-1] * wrongly[-1]))


def _most_sensitive(called: np.ndarray, wrongly: np.ndarray, specificity: float) -> int:
    """The place of the threshold; of those that find as many, the highest."""
    last = np.flatnonzero((wrongly[-1] - wrongly) / wrongly[-1] >= specificity)[-1]
    return int(np.searchsorted(called, called[last]))


def _most_specific(called: np.ndarray, wrongly: np.ndarray, sensitivity: float) -> int:
    """The place of the threshold; of those that are as specific, the one that finds most."""
    first = np.flatnonzero(called / called[-1] >= sensitivity)[0]
    return int(np.searchsorted(wrongly, wrongly[first], side="right") - 1)


def _said(share: float, interval: tuple[float, float]) -> str:
    return f"{share:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
