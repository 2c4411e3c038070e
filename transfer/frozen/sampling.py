"""Rows on disk in random order without a jump of the disk for each: blocks of neighbours shuffled, mixed in windows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 256
"""Rows that are read at one go: a megabyte or so, which takes a disk about as long as to get there."""

MIXED = 32
"""Blocks in a window: of so many places on disk the rows come that are mixed. Together 42 MB at 1,280 numbers a row."""

_HELD = 2  # windows: a batch may lie across two


def windows(
    rows: np.ndarray, *, seed: int, epoch: int, block: int = BLOCK, mixed: int = MIXED
) -> Iterator[np.ndarray]:
    """Give an epoch's order of rows on disk, a window at a time."""
    draw = np.random.default_rng([seed, epoch])
    count, size = len(rows), block * mixed
    if count <= size:
        yield draw.permutation(np.arange(count))
        return
    on_disk = np.argsort(rows, kind="stable")
    starts = np.concatenate([[0], np.arange(int(draw.integers(1, block + 1)), count, block), [count]])
    left = np.zeros(0, "int64")
    for number in draw.permutation(len(starts) - 1).tolist():
        left = np.concatenate([left, on_disk[starts[number] : starts[number + 1]]])
        if len(left) >= size:
            yield draw.permutation(left[:size])
            left = left[size:]
    if len(left):
        yield draw.permutation(left)


def order(rows: np.ndarray, *, seed: int, epoch: int, block: int = BLOCK, mixed: int = MIXED) -> np.ndarray:
    """Give an epoch's order of rows on disk: the windows of `windows`, one after the other."""
    return np.concatenate(list(windows(rows, seed=seed, epoch=epoch, block=block, mixed=mixed)))


def count_runs(rows: np.ndarray) -> int:
    """Say how many reads it takes to read rows: neighbours are read at one go."""
    return int((np.diff(np.sort(rows)) > 1).sum()) + 1 if len(rows) else 0


class Sampler:
    """Rows on disk in the order of `order`, read a window at a time: neighbours at one go, whatever a batch
    asks for."""

    def __init__(
        self,
        take: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray,
        *,
        seed: int,
        block: int = BLOCK,
        mixed: int = MIXED,
    ) -> None:
        self._take, self._rows = take, np.asarray(rows)
        self._seed, self._block, self._mixed = seed, block, mixed
        self._lock = threading.Lock()
        self._windows: list[np.ndarray] = []
        self._window_of = np.zeros(0, "int32")
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()

    def order(self, epoch: int) -> np.ndarray:
        """Give an epoch's order, and read by its windows from now on."""
        options = {"seed": self._seed, "epoch": epoch, "block": self._block, "mixed": self._mixed}
        found = order(self._rows, **options)
        size = self._block * self._mixed
        with self._lock:
            self._windows = [np.sort(found[i : i + size]) for i in range(0, len(found), size)]
            self._window_of = np.empty(len(found), "int32")
            for number, window in enumerate(self._windows):
                self._window_of[window] = number
            self._held.clear()
        return found

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Give rows."""
        positions = np.asarray(positions, "int64")
        with self._lock:
            if not self._windows or not len(positions):
                return self._take(positions)
            numbers = self._window_of[positions]
            parts, places = [], []
            for number in np.unique(numbers).tolist():
                own = np.flatnonzero(numbers == number)
                found = np.searchsorted(self._windows[number], positions[own])
                parts.append(self._window(number)[found])
                places.append(own)
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]

    def _window(self, number: int) -> np.ndarray:
        if number not in self._held:
            self._held[number] = self._take(self._windows[number])
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]
