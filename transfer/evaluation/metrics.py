"""Figures of merit on arrays: how sure an accuracy is, how honest probabilities are, what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve

RESAMPLES = 2000
"""Draws of the bootstrap: the ends of a 95% interval move by less than a tenth of its width between seeds."""

BINS = 15
"""Of confidence, as Guo et al. (2017) take them."""

_LEAST = 1e-12  # probability, below which the logarithm would decide alone
_TEMPERATURES = (0.05, 20.0)


class ClassScore(NamedTuple):
    """How a class fares."""

    name: str
    # Of the images that are called so, the share that are.
    precision: float
    # Of its images, the share that are called so.
    recall: float
    f1: float
    images: int


class Confused(NamedTuple):
    """One class that is taken for another."""

    label: str
    predicted: str
    images: int
    share: float


class Calibration(NamedTuple):
    """Whether images that are named with a confidence of 80% are right in 80% of cases."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]
    # Expected calibration error: mean distance of the two, weighted by the counts.
    error: float


def accuracy_interval(
    right: np.ndarray, *, groups: Sequence[Any] = (), confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Say between what an accuracy lies, by the bootstrap (Efron 1979): images are drawn anew, with
    replacement."""
    right = np.asarray(right, bool)
    names = np.asarray(groups) if len(groups) else np.arange(len(right))
    _, unit = np.unique(names, return_inverse=True)
    hits, sizes = np.bincount(unit, right), np.bincount(unit)
    if not 0 < hits.sum() < len(right):
        exact = binomtest(int(np.sum(hits > 0)), len(sizes)).proportion_ci(confidence, method="exact")
        return float(exact.low), float(exact.high)
    rng = np.random.default_rng(seed)
    if len(sizes) == len(right):  # a sum of draws of single images is binomial
        drawn = rng.binomial(len(right), right.mean(), RESAMPLES) / len(right)
    else:
        picks = (rng.integers(0, len(sizes), len(sizes)) for _ in range(RESAMPLES))
        drawn = np.array([hits[some].sum() / sizes[some].sum() for some in picks])
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def top_k(labels: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """Give the share of images whose class is among the most probable ones."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def class_scores(
    labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> tuple[ClassScore, ...]:
    """Give precision, recall and F1 of each class."""
    found = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(len(class_names)), zero_division=0.0
    )
    rows = zip(class_names, *(part.tolist() for part in found), strict=True)
    return tuple(ClassScore(name, p, r, f, int(n)) for name, p, r, f, n in rows)


def confused_pairs(counts: np.ndarray, class_names: Sequence[str]) -> tuple[Confused, ...]:
    """List which classes are taken for which."""
    pairs = [(i, j) for i, j in np.argwhere(counts).tolist() if i != j]
    pairs.sort(key=lambda pair: (-counts[pair], pair))
    return tuple(
        Confused(class_names[i], class_names[j], int(counts[i, j]), float(counts[i, j] / counts[i].sum()))
        for i, j in pairs
    )


def calibration(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS) -> Calibration:
    """Compare confidence with accuracy, in bins of equal width (Guo et al. 2017, arXiv:1706.04599)."""
    sure, guess = probabilities.max(axis=1).clip(0, 1), probabilities.argmax(axis=1)
    right = guess == labels
    accuracy, confidence = calibration_curve(right, sure, n_bins=bins, strategy="uniform")
    # The same bins as scikit-learn's, which does not say how many fall into each.
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure)
    counts = np.bincount(places, minlength=bins)
    counts = counts[counts > 0]
    error = float(np.average(np.abs(accuracy - confidence), weights=counts))
    return Calibration(tuple(confidence.tolist()), tuple(accuracy.tolist()), tuple(counts.tolist()), error)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Find by what logits are to be divided so that probabilities are honest (Guo et al. 2017,
    arXiv:1706.04599)."""
    logits = np.log(np.maximum(probabilities, _LEAST))
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def compare_right(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Compare two models on the same images, by McNemar's exact test (1947)."""
    gained, lost = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if not gained + lost:
        return 0, 0, 1.0
    return gained, lost, float(binomtest(gained, gained + lost).pvalue)
