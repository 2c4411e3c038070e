"""Split-conformal prediction sets: sets of classes that contain the true class with a chosen probability."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from transfer.common.errors import InputError
from transfer.evaluation.metrics import accuracy_interval, percent_range

COVERAGE = 0.9
"""Coverage of the sets in an evaluation and in the report."""

# Angelopoulos and Bates (2021), arXiv:2107.07511. The score is that of LAC (Sadinle et al., 2019): one minus the
# probability of a class. In `tests/benchmarks/prediction_sets.py`, the sets of APS are larger at the same coverage.


def set_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how badly the true class of each image fits its probabilities, 0 to 1, in ascending order."""
    return np.sort(1 - probabilities[np.arange(len(labels)), labels])


def conformal_quantile(scores: np.ndarray, level: float) -> float | None:
    """Return the value that a new score does not exceed with at least this probability; None with too few scores."""
    # The finite-sample quantile: of n + 1 exchangeable scores, the new one has each rank with the same probability.
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return None if rank > len(scores) else float(np.sort(scores)[rank - 1])


def possible_coverage(count: int) -> float:
    """Return the largest coverage that sets can have with this number of validation images."""
    return count / (count + 1)


def set_threshold(scores: np.ndarray, coverage: float) -> float:
    """Return the largest score of a class in a set; raise if the coverage needs more validation images."""
    if not 0 < coverage < 1:
        raise InputError(f"Expected a coverage between 0 and 1, such as 0.9. Received: {coverage!r}.")
    threshold = conformal_quantile(scores, coverage)
    if threshold is None:
        needed = math.ceil(coverage / (1 - coverage) * (1 - 1e-9))
        possible = possible_coverage(len(scores))
        raise InputError(
            f"Expected {needed:,} validation images or more for a coverage of {coverage:g}. Received a run with "
            f"{len(scores):,}. {f'It allows a coverage of up to {possible:.3g}. ' if len(scores) else ''}"
            "Train with a larger --val for more."
        )
    return threshold


def prediction_sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return whether each class is in the set of each image, bool of shape (N, classes)."""
    inside = 1 - probabilities <= threshold
    # No set is empty: the most probable class is always in it, which can only raise the coverage.
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return np.asarray(inside)


def measure_sets(
    scores: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    coverage: float = COVERAGE,
    groups: Sequence[Hashable] = (),
) -> dict[str, Any]:
    """Return the nominal and the measured coverage of the sets of some images, and their mean size."""
    inside = prediction_sets(probabilities, set_threshold(scores, coverage))
    covered = inside[np.arange(len(labels)), labels]
    return {
        "coverage": coverage,
        "measured": float(covered.mean()),
        "interval": list(accuracy_interval(covered, groups=groups)),
        "mean_size": float(inside.sum(axis=1).mean()),
        "num_images": len(labels),
        "num_calibration": len(scores),
    }


def describe_sets(values: dict[str, Any]) -> str:
    """Return the measured sets as a sentence."""
    return (
        f"Prediction sets with a nominal coverage of {values['coverage']:.0%}: measured coverage "
        f"{values['measured']:.1%} (95% interval {percent_range(tuple(values['interval']), 1)}), mean size "
        f"{values['mean_size']:.2f} classes (calibrated on {values['num_calibration']:,} images)."
    )
