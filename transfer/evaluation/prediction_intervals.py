"""Split-conformal intervals of predicted numbers, which contain the true number with a chosen probability."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from transfer.common.text import number
from transfer.evaluation.metrics import accuracy_interval, percent_range
from transfer.evaluation.prediction_sets import COVERAGE, set_threshold

# Angelopoulos and Bates (2021), arXiv:2107.07511. The score is the absolute error, so all intervals have one width.


def measure_intervals(
    scores: np.ndarray,
    predicted: np.ndarray,
    labels: np.ndarray,
    *,
    coverage: float = COVERAGE,
    groups: Sequence[Hashable] = (),
) -> dict[str, Any]:
    """Return the nominal and the measured coverage of the intervals of some images, and their width."""
    half = set_threshold(scores, coverage)
    covered = np.abs(predicted - labels) <= half
    return {
        "coverage": coverage,
        "measured": float(covered.mean()),
        "interval": list(accuracy_interval(covered, groups=groups)),
        "width": 2 * half,
        "num_images": len(labels),
        "num_calibration": len(scores),
    }


def describe_intervals(values: dict[str, Any]) -> str:
    """Return the measured intervals as a sentence."""
    return (
        f"Prediction intervals with a nominal coverage of {values['coverage']:.0%}: measured coverage "
        f"{values['measured']:.1%} (95% interval {percent_range(tuple(values['interval']), 1)}), width "
        f"{number(values['width'])} (calibrated on {values['num_calibration']:,} images)."
    )
