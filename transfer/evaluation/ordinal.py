"""Ordered classes: the rule that decides a class from its probabilities, and metrics in ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MOST_PROBABLE = "most-probable"


def expected_ranks(probabilities: np.ndarray) -> np.ndarray:
    """Return the expected value of the rank of each image; the lowest class has rank 1."""
    return np.asarray(probabilities @ np.arange(1, probabilities.shape[1] + 1))


def _median(probabilities: np.ndarray) -> np.ndarray:
    # Rounding must not move a probability of exactly one half to the next class.
    return np.asarray((probabilities.cumsum(axis=1) >= 0.5 - 1e-9).argmax(axis=1))


def _expected(probabilities: np.ndarray) -> np.ndarray:
    ranks = np.floor(expected_ranks(probabilities) - 0.5 + 1e-9).astype("int64")
    return np.clip(ranks, 0, probabilities.shape[1] - 1)


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    MOST_PROBABLE: lambda probabilities: np.asarray(probabilities.argmax(axis=1)),
    "median": _median,
    "expected": _expected,
}
"""Rules that decide the class of each row of probabilities: the mode, the median, or the rounded expected rank."""


class OrdinalScores(NamedTuple):
    """Metrics of classes with an order."""

    mean_absolute_error: float  # in ranks
    quadratic_weighted_kappa: float  # at most 1; 0 is chance
    accuracy_within_one: float  # fraction of images at most one rank from the true class


def decide(probabilities: np.ndarray, rule: str | None) -> np.ndarray:
    """Return the class of each row of probabilities; without an order, the most probable one."""
    return RULES[rule or MOST_PROBABLE](probabilities)


def choose_rule(labels: np.ndarray, probabilities: np.ndarray) -> str:
    """Return the rule with the lowest mean absolute error on held-out predictions; the first one of equals."""
    errors = {name: np.abs(rule(probabilities) - labels).sum() for name, rule in RULES.items()}
    return min(errors, key=lambda name: errors[name])


def ordinal_scores(confusion: np.ndarray) -> OrdinalScores:
    """Return the metrics of a confusion matrix whose classes are in order."""
    ranks, count = np.arange(len(confusion)), confusion.sum()
    distance = np.abs(ranks[:, None] - ranks)
    # Cohen (1968): squared distances, relative to those of independent labels and predictions.
    by_chance = (confusion.sum(axis=1)[:, None] * confusion.sum(axis=0) * distance**2).sum() / count
    kappa = 1 - (confusion * distance**2).sum() / by_chance if by_chance else 1.0
    error = (confusion * distance).sum() / count
    return OrdinalScores(float(error), float(kappa), float(confusion[distance <= 1].sum() / count))


def describe_scores(scores: OrdinalScores, rule: str | None) -> str:
    """Return the metrics and the rule as sentences."""
    return (
        f"Mean absolute error: {scores.mean_absolute_error:.3f} ranks. Quadratic weighted kappa: "
        f"{scores.quadratic_weighted_kappa:.3f}. Accuracy within one rank: {scores.accuracy_within_one:.1%}. "
        f"Decision rule: {rule}."
    )
