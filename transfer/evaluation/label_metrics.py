"""Metrics of images with several labels, for each label and over all of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from transfer.common.label_metrics import average_precision


class LabelScore(NamedTuple):
    """Results of one label, 0 to 1; not a number where there is no image with the label."""

    name: str
    average_precision: float
    precision: float
    recall: float
    f1: float
    images: int  # number of images with the label


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
