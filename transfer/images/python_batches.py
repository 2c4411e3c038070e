"""Batches without TensorFlow, for other Keras backends: the same order and the same augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from transfer.distributed.batch_order import BatchOrder, BatchPart

Read = Callable[[np.ndarray, np.ndarray], tuple[Any, ...]]
"""A function from positions and keys to the images and labels of a batch."""


class Batches(keras.utils.PyDataset):
    """Batches in a given order; a thread reads the next batch during each training step."""

    def __init__(
        self,
        order: BatchOrder,
        read: Read,
        batch_part: BatchPart | None = None,
        class_weights: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.order, self.read, self.batch_part, self.class_weights = order, read, batch_part, class_weights
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._next: tuple[int, Future[tuple[Any, ...]]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def weighted(self, class_weights: np.ndarray) -> Batches:
        """Return the same batches with a weight for the images of each class, shape (classes,)."""
        return Batches(self.order, self.read, self.batch_part, class_weights)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if index == 0:  # an epoch begins
            self._parts, self._next = [*self.order.batches()], None
        ahead = self._next if self._next is not None and self._next[0] == index else None
        batch = ahead[1].result() if ahead is not None else self._read(index)
        if index + 1 < len(self._parts):
            self._next = index + 1, self._pool.submit(self._read, index + 1)
        return batch

    def _read(self, index: int) -> tuple[Any, ...]:
        x, y = self.read(*self._parts[index])
        weights = self.order.weights(index)
        if weights is None:
            return x, y
        if self.class_weights is not None:
            numbers = np.asarray(y).argmax(axis=1) if np.ndim(y) > 1 else y
            weights = weights * self.class_weights[numbers]
        batch = (x, y, weights)
        return (
            batch if self.batch_part is None else tuple(self.batch_part.split_padded(part) for part in batch)
        )

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[i] for i in range(len(self)))

    def repeat(self) -> Iterator[tuple[Any, ...]]:
        """Yield batches endlessly."""
        while True:
            yield from self


def image_batches(
    order: BatchOrder,
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    change: Callable[[Any, Any], Any] | None,
    finish: Callable[[Any, Any, Any], Any] | None,
    *,
    batch_part: BatchPart | None = None,
) -> Batches:
    """Return batches of images that are read, augmented one by one, and mixed."""
    change_all = (
        compiled(lambda images, keys: keras.ops.map(lambda one: change(*one), (images, keys)))
        if change
        else None
    )
    mix = compiled(finish) if finish else None

    def make(positions: np.ndarray, keys: np.ndarray) -> tuple[Any, ...]:
        images, labels = read(positions)
        x: Any = images.astype("float32")
        if change_all is not None:
            x = change_all(x, keys.astype("uint32"))
        return (x, labels) if mix is None else mix(x, labels, keys[0].astype("uint32"))

    return Batches(order, make, batch_part)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of arrays if the backend is JAX."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)
