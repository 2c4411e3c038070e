"""Whether a step of the anytime run replaces the model that was kept before it."""

from __future__ import annotations

import math

import numpy as np

from transfer.adviser.estimates import FINE_TUNING_GAIN, Gain
from transfer.anytime.plan import Kind

TYPICAL_GAINS = {
    Kind.LARGER: Gain(0.015, 0.025),
    Kind.NETWORK: Gain(0.015, 0.025),
    Kind.FINE_TUNING: FINE_TUNING_GAIN,
    Kind.LONGER: Gain(0.01, 0.02),
    Kind.AVERAGE: Gain(0.01, 0.015),
}
"""Gain of accuracy of each kind of step on other data sets. It is the prior knowledge about a new data set.

All but that of fine-tuning are provisional."""


ONE_IMAGE = Gain(0.35, 0.15)
"""Accuracy of a head with one image per class, for which no image can be held out: 0.34 on average of twelve tuning
sets."""


def typical_gain(kind: Kind, accuracy: float) -> Gain:
    """Return the gain of a kind of step on other data sets, for a model with some accuracy before it."""
    return TYPICAL_GAINS[kind].after(accuracy)


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
