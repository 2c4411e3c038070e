"""Read images in threads, ahead of their use."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transfer.images.splitting import Split

AHEAD = 16
"""Number of batches that are read ahead, also while a network is compiled: 77 MB for 32 images of 224 pixels each."""


@functools.cache
def readers() -> ThreadPoolExecutor:
    """Return the threads that read images; decoders release the GIL."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")


def batches_ahead(split: Split, *, image_size: tuple[int, int], batch_size: int) -> Iterator[np.ndarray]:
    """Yield the images of a split in batches as uint8 of shape (batch, height, width, 3)."""
    starts = iter(range(0, len(split), batch_size))

    def read(start: int) -> np.ndarray:
        positions = range(start, min(start + batch_size, len(split)))
        return np.stack([split.image(position, image_size) for position in positions])

    waiting = deque(readers().submit(read, start) for start in itertools.islice(starts, AHEAD))
    try:
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(readers().submit(read, start) for start in itertools.islice(starts, 1))
            yield batch
    finally:  # stop reading after an error or an interrupt
        for future in waiting:
            future.cancel()
