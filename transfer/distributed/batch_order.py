"""The order in which images are seen, and from where it goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from transfer.distributed.process_group import BatchPart


@dataclass
class Position:
    """Where training is, for data sets that go on there."""

    epoch: int = 0
    done: int = 0


@dataclass
class Order:
    """Which images come when, a batch at a time, with a key for each (two int32): shuffled anew each
    epoch where there is a seed."""

    count: int
    batch_size: int
    # Of the order.
    seed: int | None
    keys: np.ndarray | None = None
    # Its epoch is looked at when a pass begins.
    position: Position | None = None
    # Of one process among several replicas.
    batch_part: BatchPart | None = None
    # Is called with the number of the epoch when a pass begins.
    begin: Callable[[int], None] | None = None
    arrange: Callable[[int], np.ndarray] | None = None

    def __post_init__(self) -> None:
        self._passes = itertools.count()

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give one pass over all, or over what is left of it."""
        epoch, first = (
            (next(self._passes), 0) if self.position is None else (self.position.epoch, self.position.done)
        )
        if self.begin is not None:
            self.begin(epoch)
        order, keys = np.arange(self.count), np.zeros((self.count, 2), "int32")
        if self.seed is not None:
            draw = np.random.default_rng([self.seed, epoch])
            order = draw.permutation(order) if self.arrange is None else self.arrange(epoch)
            keys[order] = draw.integers(2**31, size=(self.count, 2)).astype("int32")
        if self.keys is not None:
            keys = self.keys
        for part in self._split(order, first):
            yield part, keys[part]

    def _split(self, order: np.ndarray, first: int) -> list[np.ndarray]:
        whole = [order[i : i + self.batch_size] for i in range(first, len(order), self.batch_size)]
        if self.batch_part is None:
            return whole
        if self.batch_part.whole:
            filled = [np.concatenate([b, np.resize(order, self.batch_size - len(b))]) for b in whole]
            return [self.batch_part.of_filled(batch) for batch in filled]
        if self.seed is None:
            return self.batch_part.of_all(order[first:], self.batch_size)
        return [part for batch in whole for part in self.batch_part.of_batch(batch)]

    def weights(self, number: int) -> np.ndarray | None:
        """Say how much each image of a batch counts, where the last one is filled up; None is all the
        same."""
        if self.batch_part is None or not self.batch_part.whole:
            return None
        first = self.position.done if self.position is not None else 0
        real = min(self.batch_size, self.count - first - number * self.batch_size)
        weights = np.where(np.arange(self.batch_size) < real, self.batch_size / real, 0.0)
        return self.batch_part.of_filled(weights.astype("float32"))

    def __len__(self) -> int:
        first = self.position.done if self.position is not None else 0
        return len(self._split(np.arange(self.count), first))
