"""Accuracy of held-out predictions: its standard error, and the accuracy of the best of several options."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

ERROR_EXPONENT = 0.45
"""Exponent of the number of images per class by which the errors of heads fall. Measured on eleven tuning sets with
50 samples of 2 to 120 images per class; with each set left out, it is 0.40 to 0.50."""


def unit_numbers(count: int, groups: Sequence[Hashable] | np.ndarray = ()) -> np.ndarray:
    """Number the independent units of some images: their groups, or without groups the images themselves."""
    if not len(groups):
        return np.arange(count)
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups])


def standard_error(correct: np.ndarray, groups: Sequence[Hashable] | np.ndarray = ()) -> float:
    """Return the standard error of an accuracy, with groups as the independent units."""
    sums = np.bincount(unit_numbers(len(correct), groups), weights=correct - correct.mean())
    units = len(sums)
    return float(np.sqrt(np.sum(np.square(sums)) * units / max(1, units - 1)) / len(correct))


def debiased_accuracy(
    correct: np.ndarray,
    *,
    losses: np.ndarray | None = None,
    groups: Sequence[Hashable] | np.ndarray = (),
    draws: int = 50,
    seed: int = 0,
) -> float:
    """Estimate the accuracy of the best row of `correct`, shape (options, N), without selection bias."""
    # Choose the best option on a random half of the images and measure it on the other half, many times. On the same
    # images, the best of many options is partly the luckiest. With losses, the best is that of the lowest loss.
    correct = np.asarray(correct, bool)
    merit = correct if losses is None else -np.asarray(losses)
    unit = unit_numbers(correct.shape[1], groups)
    options, count = len(correct), int(unit.max()) + 1
    if options == 1 or count < 4:
        return float(correct[_last_best(merit)].mean())
    rng, accuracies = np.random.default_rng(seed), []
    for _ in range(draws):
        half = (rng.permutation(count) < count // 2)[unit]
        accuracies.append(correct[_last_best(merit[:, half]), ~half].mean())
    return float(np.mean(accuracies))


def known_fractions(labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the fraction of the images of each image's class that are in other folds."""
    counts = np.zeros((int(folds.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (folds, labels), 1)
    return np.asarray(1 - counts[folds, labels] / counts.sum(axis=0)[labels])


def errors_with_all(fractions: np.ndarray) -> float:
    """Return the expected errors of a head with all images, as a fraction of those with `known_fractions` of them."""
    # Errors fall with a power of the number of images (Hestness et al., 2017, arXiv:1712.00409).
    return float(np.mean(fractions**ERROR_EXPONENT)) if len(fractions) else 1.0


def _last_best(merit: np.ndarray) -> int:
    """Return the row with the largest mean, among equals the last."""
    return len(merit) - 1 - int(merit[::-1].mean(axis=1).argmax())
