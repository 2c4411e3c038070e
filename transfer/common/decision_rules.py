"""Rules that decide the class of an image from its probabilities, for classes with and without an order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MOST_PROBABLE = "most-probable"


def expected_ranks(probabilities: np.ndarray) -> np.ndarray:
    """Return the expected value of the rank of each image; the lowest class has rank 1."""
    return np.asarray(probabilities @ np.arange(1, probabilities.shape[1] + 1))


def _median(probabilities: np.ndarray) -> np.ndarray:
    # Rounding must not move a probability of exactly one half to the next class.
    return np.asarray((probabilities.cumsum(axis=1) >= 0.5 - 1e-9).argmax(axis=1))


def _expected(probabilities: np.ndarray) -> np.ndarray:
    ranks = np.floor(expected_ranks(probabilities) - 0.5 + 1e-9).astype("int64")
    return np.clip(ranks, 0, probabilities.shape[1] - 1)


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    MOST_PROBABLE: lambda probabilities: np.asarray(probabilities.argmax(axis=1)),
    "median": _median,
    "expected": _expected,
}
"""Rules that decide the class of each row of probabilities: the mode, the median, or the rounded expected rank."""


def decide(probabilities: np.ndarray, rule: str | None) -> np.ndarray:
    """Return the class of each row of probabilities; without an order, the most probable one."""
    return RULES[rule or MOST_PROBABLE](probabilities)


def choose_rule(labels: np.ndarray, probabilities: np.ndarray) -> str:
    """Return the rule with the lowest mean absolute error on held-out predictions; the first one of equals."""
    errors = {name: np.abs(rule(probabilities) - labels).sum() for name, rule in RULES.items()}
    return min(errors, key=lambda name: errors[name])
