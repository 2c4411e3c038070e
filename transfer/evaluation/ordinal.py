"""Metrics of classes with an order, in ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class OrdinalScores(NamedTuple):
    """Metrics of classes with an order."""

    mean_absolute_error: float  # in ranks
    quadratic_weighted_kappa: float  # at most 1; 0 is chance
    accuracy_within_one: float  # fraction of images at most one rank from the true class


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
