"""Metrics of images with several labels, and the thresholds above which a label is predicted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MIN_POSITIVES = 5
"""Fewest images with a label that set its threshold. A label with fewer has the threshold 0.5."""


class LabelScore(NamedTuple):
    """Results of one label, 0 to 1; not a number where there is no image with the label."""

    name: str
    average_precision: float
    precision: float
    recall: float
    f1: float
    images: int  # number of images with the label


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


def f1_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the micro F1 over all decisions, and the macro F1 over the labels with images."""
    counts = _f1(predicted, labels)
    hits, chosen, true = (float(np.sum(part)) for part in counts)
    each = 2 * counts[0] / np.maximum(counts[1] + counts[2], 1)
    known = labels.any(axis=0)
    return {
        "micro": 2 * hits / max(1.0, chosen + true),
        "macro": float(each[known].mean()) if known.any() else np.nan,
    }


def _f1(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the correct predictions, all predictions and all images of each label."""
    predicted, labels = predicted.astype(bool), labels.astype(bool)
    return (predicted & labels).sum(axis=0), predicted.sum(axis=0), labels.sum(axis=0)


def label_scores(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> tuple[LabelScore, ...]:
    """Return the results of each label."""
    rows = []
    for number, name in enumerate(names):
        column = slice(number, number + 1)
        hits, chosen, true = (int(part[0]) for part in _f1(predicted[:, column], labels[:, column]))
        if not true:
            rows.append(LabelScore(name, np.nan, np.nan, np.nan, np.nan, 0))
            continue
        precision = hits / chosen if chosen else 0.0
        average = float(average_precision(probabilities[:, number], labels[:, number])[0])
        rows.append(LabelScore(name, average, precision, hits / true, 2 * hits / (chosen + true), true))
    return tuple(rows)


def co_occurrence(labels: np.ndarray) -> np.ndarray:
    """Return how many images have both labels of each pair, shape (labels, labels); the diagonal counts each label."""
    counts = labels.astype("int64")
    return np.asarray(counts.T @ counts)
