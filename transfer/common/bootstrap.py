"""Bootstrap intervals and standard errors of scores that are not fractions of images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from transfer.common.accuracies import unit_numbers

RESAMPLES = 2000
"""Bootstrap resamples. The ends of a 95% interval move by less than a tenth of its width between seeds."""

_AT_ONCE = 2**22  # largest number of weights in memory
_FEWEST = 200
# Limit of resamples * images * cost, so that large data sets take seconds, not minutes.
_STEPS = 2**28

Score = Callable[[np.ndarray], np.ndarray]
"""Returns a score for each row of weights, shape (resamples, images); a weight counts an image that often."""


def score_interval(
    score: Score,
    count: int,
    *,
    groups: Sequence[Hashable] = (),
    cost: int = 1,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval (Efron, 1979) of a score, resampling images or groups of images."""
    resamples = int(np.clip(_STEPS // max(1, count * cost), _FEWEST, RESAMPLES))
    scores = _scores(score, count, groups, resamples, seed)
    if not len(scores):
        return np.nan, np.nan
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def score_error(
    score: Score, count: int, *, groups: Sequence[Hashable] | np.ndarray = (), seed: int = 0
) -> float:
    """Return the standard error of a score by the bootstrap, from the fewest resamples that suffice for it."""
    scores = _scores(score, count, groups, _FEWEST, seed)
    return float(scores.std(ddof=1)) if len(scores) > 1 else 0.0


def _scores(
    score: Score, count: int, groups: Sequence[Hashable] | np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """Return the finite scores of the resamples."""
    scores = np.concatenate([score(weights) for weights in _weights(count, groups, resamples, seed)])
    return scores[np.isfinite(scores)]


def _weights(
    count: int, groups: Sequence[Hashable] | np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield how often each image is in each resample, some resamples at a time."""
    unit = unit_numbers(count, groups)
    units, rng = int(unit.max()) + 1, np.random.default_rng(seed)
    at_once = int(np.clip(_AT_ONCE // count, 1, resamples))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)[:, unit]
