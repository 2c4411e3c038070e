"""The order in which images are read, the part of each batch that a process reads, and the position to resume from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class BatchPart:
    """The part of each batch that a process reads for its replicas of a model."""

    first: int  # number of the process's first replica
    replicas: int  # number of replicas of this process
    total: int  # number of replicas of all processes
    padded: bool = False  # all batches have one size: the last one is padded with images of weight zero

    def undivided(self) -> BatchPart | None:
        """Return the part that is the whole batch, or None if batches are not padded."""
        return replace(self, first=0, total=1) if self.padded else None

    def split_padded(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's rows of a padded batch."""
        size = len(rows) // self.total
        return rows[self.first * size : (self.first + 1) * size]

    def split_batch(self, positions: np.ndarray) -> list[np.ndarray]:
        """Split a training batch into nearly equal parts, one for each replica of this process."""
        if len(positions) < self.total:
            # Every replica reads the whole batch, so no replica lacks images, and the mean over replicas is the same.
            return [positions] * self.replicas
        return np.array_split(positions, self.total)[self.first : self.first + self.replicas]

    def split_evenly(self, positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Split the images of an evaluation: each is read once, in the same number of batches on each replica."""
        parts = np.array_split(positions, self.total)
        steps = -(-len(parts[0]) // batch_size)
        own = [np.array_split(part, steps) for part in parts[self.first : self.first + self.replicas]]
        return [part for step in zip(*own, strict=True) for part in step]


@dataclass
class Position:
    """The position of a training."""

    epoch: int = 0
    images: int = 0  # number of images read in this epoch


@dataclass
class BatchOrder:
    """The images of each batch, and two int32 random keys per image; shuffled in each epoch if there is a seed."""

    count: int
    batch_size: int
    seed: int | None
    keys: np.ndarray | None = None  # fixed keys, shape (count, 2), int32
    position: Position | None = None  # read when a pass begins
    batch_part: BatchPart | None = None
    begin: Callable[[int], None] | None = None  # called with the epoch when a pass begins
    arrange: Callable[[int], np.ndarray] | None = (
        None  # returns the order of an epoch, in place of a permutation
    )

    def __post_init__(self) -> None:
        self._passes = itertools.count()

    @property
    def _first(self) -> int:
        return self.position.images if self.position is not None else 0

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the positions and keys of each batch of one epoch, from the current position on."""
        epoch, first = next(self._passes) if self.position is None else self.position.epoch, self._first
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
        batches = [order[i : i + self.batch_size] for i in range(first, len(order), self.batch_size)]
        part = self.batch_part
        if part is None:
            return batches
        if part.padded:
            padded = [np.concatenate([b, np.resize(order, self.batch_size - len(b))]) for b in batches]
            return [part.split_padded(batch) for batch in padded]
        if self.seed is None:
            return part.split_evenly(order[first:], self.batch_size)
        return [own for batch in batches for own in part.split_batch(batch)]

    def weights(self, number: int) -> np.ndarray | None:
        """Return the float32 weight of each image in a batch that may be padded, or None if all weights are equal."""
        if self.batch_part is None or not self.batch_part.padded:
            return None
        real = min(self.batch_size, self.count - self._first - number * self.batch_size)
        weights = np.where(np.arange(self.batch_size) < real, self.batch_size / real, 0.0)
        return self.batch_part.split_padded(weights.astype("float32"))

    def __len__(self) -> int:
        return len(self._split(np.arange(self.count), self._first))
