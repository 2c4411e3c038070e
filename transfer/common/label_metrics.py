"""Metrics of several labels and of numbers, and the thresholds above which a label is predicted."""

from __future__ import annotations

import numpy as np

MIN_POSITIVES = 5
"""Fewest images with a label that set its threshold. A label with fewer has the threshold 0.5."""


def label_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return, for each label, the threshold with the highest F1 on held-out probabilities, shape (labels,)."""
    thresholds = np.full(labels.shape[1], 0.5)
    for number in np.flatnonzero(labels.sum(axis=0) >= MIN_POSITIVES):
        order = np.argsort(-probabilities[:, number], kind="stable")
        values, hits = probabilities[order, number], np.cumsum(labels[order, number])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        f1[:-1][values[:-1] == values[1:]] = -1  # equal probabilities cannot be separated
        best = int(f1.argmax())
        after = values[best + 1] if best + 1 < len(values) else 0.0
        thresholds[number] = (values[best] + after) / 2
    return thresholds


def mean_average_precision(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean average precision over the labels that have images, 0 to 1, without interpolation."""
    from sklearn.metrics import average_precision_score  # takes seconds to import

    known = labels.any(axis=0)
    return (
        float(average_precision_score(labels[:, known], probabilities[:, known])) if known.any() else np.nan
    )


def r2(predicted: np.ndarray, values: np.ndarray) -> float:
    """Return the coefficient of determination, 1 if all predictions are right; not a number for constant values."""
    total = float(np.square(values - values.mean()).sum())
    return 1 - float(np.square(predicted - values).sum()) / total if total else np.nan
