"""Whether a step of the anytime run replaces the model that was kept before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from transfer.anytime.plan import Kind


@dataclass(frozen=True)
class Gain:
    """A gain of accuracy with its standard deviation."""

    mean: float
    sd: float

    def __add__(self, other: Gain) -> Gain:
        return Gain(self.mean + other.mean, math.hypot(self.sd, other.sd))


TYPICAL_GAINS = {
    Kind.LARGER: Gain(0.015, 0.025),
    Kind.NETWORK: Gain(0.015, 0.025),
    Kind.FINE_TUNING: Gain(0.037, 0.06),
    Kind.LONGER: Gain(0.01, 0.02),
    Kind.AVERAGE: Gain(0.01, 0.015),
}
"""Gain of accuracy of each kind of step on other data sets. It is the prior knowledge about a new data set.

Fine-tuning was measured on eleven tuning sets at 128 pixels, one seed each: from -9 to +16 points. The other gains are
provisional."""


FEW_ERRORS = 0.1
"""Fraction of errors below which the typical gains shrink in proportion."""


def typical_gain(kind: Kind, accuracy: float) -> Gain:
    """Return the gain of a kind of step on other data sets, for a model with some accuracy before it."""
    factor = max(0.05, min(1.0, (1 - accuracy) / FEW_ERRORS))
    return Gain(factor * TYPICAL_GAINS[kind].mean, factor * TYPICAL_GAINS[kind].sd)


def posterior_gain(new: np.ndarray, old: np.ndarray, prior: Gain) -> Gain:
    """Combine the typical gain of a step with the paired results on the validation images, bool of shape (N,)."""
    # A normal prior and a normal likelihood: the mean is weighted by the inverse variances. Half an image is added to
    # the disagreements, so that two models that agree on a few images do not count as equal for certain.
    count = len(new)
    if not count:
        return prior
    difference = float(np.mean(new, dtype="float64") - np.mean(old, dtype="float64"))
    disagreements = float(np.sum(np.asarray(new) != np.asarray(old)))
    error = math.sqrt(disagreements + 0.5) / count
    weights = 1 / prior.sd**2, 1 / error**2
    mean = (weights[0] * prior.mean + weights[1] * difference) / sum(weights)
    return Gain(mean, 1 / math.sqrt(sum(weights)))
