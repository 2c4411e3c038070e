"""Metrics on arrays: accuracy intervals, calibration, per-class scores and confusions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import bdtr, betaincinv, log_softmax, logsumexp, ndtri, softmax

from transfer.common.bootstrap import RESAMPLES

BINS = 15
"""Maximum number of confidence bins."""

IMAGES_PER_BIN = 20
"""Minimum number of images in a confidence bin, except of a smaller test set. With 20, the 95% interval of a bin's
accuracy is up to 40 points wide."""

MIN_IMAGES_TO_PLOT = 100
"""Minimum number of images of a reliability diagram: five bins of `IMAGES_PER_BIN`."""

_MIN_PROBABILITY = 1e-12  # avoids log(0)
_TEMPERATURES = (0.05, 20.0)


class ClassScore(NamedTuple):
    """Precision, recall and F1 of a class, and the number of its images."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


class Confused(NamedTuple):
    """Images of one class that the model assigns to another class."""

    label: str
    predicted: str
    images: int
    fraction: float  # fraction of the images of the true class


class Calibration(NamedTuple):
    """Mean confidence and accuracy in bins of confidence with nearly equal numbers of images."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]
    error: float  # expected calibration error: mean of |confidence - accuracy|, weighted by the counts


def accuracy_interval(
    correct: np.ndarray, *, groups: Sequence[Hashable] = (), confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval (Efron, 1979) of an accuracy, resampling images or groups of images."""
    correct = np.asarray(correct, bool)
    names = np.asarray(groups) if len(groups) else np.arange(len(correct))
    _, unit = np.unique(names, return_inverse=True)
    hits, sizes = np.bincount(unit, correct), np.bincount(unit)
    if not 0 < hits.sum() < len(correct):
        # All images are correct, or none is: every resample is the same.
        return exact_interval(int(np.sum(hits > 0)), len(sizes), confidence)
    rng = np.random.default_rng(seed)
    if len(sizes) == len(correct):  # the number of correct images in a resample is binomial
        accuracies = rng.binomial(len(correct), correct.mean(), RESAMPLES) / len(correct)
    else:
        resamples = (rng.integers(0, len(sizes), len(sizes)) for _ in range(RESAMPLES))
        accuracies = np.array([hits[units].sum() / sizes[units].sum() for units in resamples])
    low, high = np.quantile(accuracies, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def exact_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval (1934) of a fraction of independent images."""
    # `scipy.stats`, which has this interval and the tests below, takes most of a second to import.
    outside = (1 - confidence) / 2
    low = betaincinv(hits, count - hits + 1, outside) if hits else 0.0
    high = betaincinv(hits + 1, count - hits, 1 - outside) if hits < count else 1.0
    return float(low), float(high)


def fraction_intervals(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the 95% interval (Wilson, 1927) of each fraction of independent images, shape (2, N)."""
    hits, counts, z = np.asarray(hits, float), np.asarray(counts, float), ndtri(0.975)
    fraction, scale = hits / counts, 1 + z**2 / counts
    center = (fraction + z**2 / (2 * counts)) / scale
    half = z / scale * np.sqrt(fraction * (1 - fraction) / counts + z**2 / (4 * counts**2))
    return np.stack([np.where(hits == 0, 0.0, center - half), np.where(hits == counts, 1.0, center + half)])


def percent_range(interval: tuple[float, float], decimals: int = 0) -> str:
    """Return an interval of fractions as text, such as "71-93%"; "undefined" for one that is not a number."""
    if not np.isfinite(interval).all():
        return "undefined"
    low, high = (f"{100 * end:.{decimals}f}" for end in interval)
    return f"{low}-{high}%"


def top_k(labels: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """Return the fraction of images whose class is among the `k` most probable classes."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return the counts of true classes (rows) and predicted classes (columns), shape (classes, classes)."""
    pairs = np.asarray(labels) * classes + np.asarray(predictions)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean negative log probability of the true classes; probabilities are clipped as in scikit-learn."""
    true, least = probabilities[np.arange(len(labels)), labels], np.finfo(probabilities.dtype).eps
    return float(-np.log(np.clip(true, least, 1 - least), dtype="float64").mean())


def class_scores(
    labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> tuple[ClassScore, ...]:
    """Return precision, recall and F1 of each class; 0 where they are undefined."""
    counts = confusion_matrix(labels, predictions, len(class_names))
    correct, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    columns = (correct / np.maximum(1, whole) for whole in (predicted, true, (predicted + true) / 2))
    rows = zip(class_names, *(column.tolist() for column in columns), true.tolist(), strict=True)
    return tuple(ClassScore(*row) for row in rows)


def confused_pairs(counts: np.ndarray, class_names: Sequence[str]) -> tuple[Confused, ...]:
    """List the pairs of confused classes of a confusion matrix, the most frequent first."""
    pairs = [(i, j) for i, j in np.argwhere(counts).tolist() if i != j]
    pairs.sort(key=lambda pair: (-counts[pair], pair))
    return tuple(
        Confused(class_names[i], class_names[j], int(counts[i, j]), float(counts[i, j] / counts[i].sum()))
        for i, j in pairs
    )


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Compare confidence with accuracy in bins of equal counts (Nguyen and O'Connor, 2015, arXiv:1508.05154)."""
    # Bins of equal width (Guo et al., 2017) hold single images at low confidence. Their error is mostly noise.
    confidences = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = min(BINS, max(1, len(labels) // IMAGES_PER_BIN))
    borders = np.quantile(confidences, np.linspace(0, 1, bins + 1)[1:-1])
    # Images of the same confidence share a bin, so that their order does not matter.
    _, of_image, counts = np.unique(
        np.searchsorted(borders, confidences), return_inverse=True, return_counts=True
    )
    accuracy, confidence = (np.bincount(of_image, values) / counts for values in (correct, confidences))
    error = float(np.average(np.abs(accuracy - confidence), weights=counts))
    return Calibration(tuple(confidence.tolist()), tuple(accuracy.tolist()), tuple(counts.tolist()), error)


def fit_temperature(labels: np.ndarray, *probabilities: np.ndarray) -> float:
    """Return the temperature that minimizes the log loss, of the average of several models at that temperature."""
    # Guo et al. (2017), arXiv:1706.04599.
    logits = np.log(np.maximum(np.stack(probabilities), _MIN_PROBABILITY))
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scores = log_softmax(logits / np.exp(log_temperature), axis=2)[:, rows, labels]
        return float((np.log(len(scores)) - logsumexp(scores, axis=0)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded").x))


def averaged_probabilities(probabilities: Sequence[np.ndarray], temperature: float) -> np.ndarray:
    """Return the mean of the probabilities of several models at a temperature."""
    logits = np.log(np.maximum(np.stack(probabilities), _MIN_PROBABILITY))
    return np.asarray(softmax(logits / temperature, axis=2).mean(axis=0))


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Count the images that only the first or only the second model has correct; add McNemar's p-value (1947)."""
    gained, lost = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if not gained + lost:
        return 0, 0, 1.0
    return gained, lost, min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
