"""Random order with few disk reads: shuffle blocks of neighboring rows, then rows within windows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 256
"""Neighboring rows that are read together: about a megabyte, which takes a disk about as long as a seek."""

MIXED = 32
"""Random blocks per window, whose rows are mixed. A window takes 42 MB at 1,280 features per row."""

_HELD = 2  # windows in memory: a batch may span two


def windows(
    rows: np.ndarray, *, seed: int, epoch: int, block: int = BLOCK, mixed: int = MIXED
) -> Iterator[np.ndarray]:
    """Yield the positions of an epoch in windows; `rows` says where each position is on disk."""
    rng = np.random.default_rng([seed, epoch])
    count, size = len(rows), block * mixed
    if count <= size:
        yield rng.permutation(np.arange(count))
        return
    on_disk = np.argsort(rows, kind="stable")
    starts = np.concatenate([[0], np.arange(int(rng.integers(1, block + 1)), count, block), [count]])
    left = np.zeros(0, "int64")
    for number in rng.permutation(len(starts) - 1).tolist():
        left = np.concatenate([left, on_disk[starts[number] : starts[number + 1]]])
        if len(left) >= size:
            yield rng.permutation(left[:size])
            left = left[size:]
    if len(left):
        yield rng.permutation(left)


def order(rows: np.ndarray, *, seed: int, epoch: int, block: int = BLOCK, mixed: int = MIXED) -> np.ndarray:
    """Return the positions of an epoch in the order of `windows`."""
    return np.concatenate(list(windows(rows, seed=seed, epoch=epoch, block=block, mixed=mixed)))


def count_runs(rows: np.ndarray) -> int:
    """Return the number of disk reads for some rows: neighbors are read together."""
    return int((np.diff(np.sort(rows)) > 1).sum()) + 1 if len(rows) else 0


class Sampler:
    """Batches of rows in the order of `order`; each window is read once and kept while batches need it."""

    def __init__(
        self,
        take: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray,
        *,
        seed: int,
        block: int = BLOCK,
        mixed: int = MIXED,
    ) -> None:
        self._take, self._rows, self._seed = take, np.asarray(rows), seed
        self._block, self._mixed = block, mixed
        self._lock = threading.Lock()
        self._windows: list[np.ndarray] = []
        self._window_of = np.zeros(0, "int32")
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()

    def order(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch in order, and read by its windows from now on."""
        positions = order(self._rows, seed=self._seed, epoch=epoch, block=self._block, mixed=self._mixed)
        size = self._block * self._mixed
        with self._lock:
            self._windows = [np.sort(positions[i : i + size]) for i in range(0, len(positions), size)]
            self._window_of = np.empty(len(positions), "int32")
            self._window_of[positions] = np.arange(len(positions)) // size
            self._held.clear()
        return positions

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the rows at some positions."""
        positions = np.asarray(positions, "int64")
        with self._lock:
            if not self._windows or not len(positions):
                return self._take(positions)
            numbers = self._window_of[positions]
            parts, places = [], []
            for number in np.unique(numbers).tolist():
                places.append(np.flatnonzero(numbers == number))
                within = np.searchsorted(self._windows[number], positions[places[-1]])
                parts.append(self._read_window(number)[within])
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]

    def _read_window(self, number: int) -> np.ndarray:
        if number not in self._held:
            self._held[number] = self._take(self._windows[number])
            if len(self._held) > _HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]
