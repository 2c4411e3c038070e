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


def average_precision(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the average precision of one label without interpolation, for each row of weights of the images."""
    # The sum of the precision at each threshold times the gain in recall, as in scikit-learn. Equal probabilities have
    # one threshold. It is not a number for a row of weights without an image with the label.
    order = np.argsort(-probabilities, kind="stable")
    scores, positive = probabilities[order], labels[order].astype("int64")
    ends = np.append(scores[:-1] != scores[1:], True)
    rows = np.ones((1, len(order)), "int64") if weights is None else weights[:, order]
    hits, chosen = ((rows * part).cumsum(axis=1)[:, ends] for part in (positive, 1))
    gained, total = np.diff(hits, axis=1, prepend=0), hits[:, -1]
    sums = (gained * hits / np.maximum(chosen, 1)).sum(axis=1)
    return np.where(total > 0, sums / np.maximum(total, 1), np.nan)


def mean_average_precisions(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean average precision over the labels that have images, for each row of weights of the images."""
    known = np.flatnonzero(labels.any(axis=0))
    if not len(known):
        return np.full(1 if weights is None else len(weights), np.nan)
    each = np.stack([average_precision(probabilities[:, k], labels[:, k], weights) for k in known])
    present = np.isfinite(each)
    return np.where(present, each, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)


def mean_average_precision(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean average precision over the labels that have images, 0 to 1, without interpolation."""
    return float(mean_average_precisions(probabilities, labels)[0])


def r2_scores(predicted: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficient of determination for each row of weights; not a number for constant values."""
    predicted, values = (np.ravel(one).astype("float64") for one in (predicted, values))
    centered = values - values.mean()  # the sums below cancel less
    around = weights @ centered**2 - (weights @ centered) ** 2 / weights.sum(axis=1)
    wrong, differ = weights @ (predicted - values) ** 2, around > 1e-12 * (centered @ centered)
    return np.where(differ, 1 - wrong / np.where(differ, around, 1), np.nan)


def r2(predicted: np.ndarray, values: np.ndarray) -> float:
    """Return the coefficient of determination, 1 if all predictions are right; not a number for constant values."""
    return float(r2_scores(predicted, values, np.ones((1, values.size)))[0])
