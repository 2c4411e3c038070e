"""Divide the extraction among the workers of a process group; each computes a part and sends it to all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np

from transfer.distributed.process_group import current_group
from transfer.frozen.feature_store import FeatureStore
from transfer.networks import surgery

BATCH_SIZE = 32
"""Images per batch of the extraction. Larger batches are no faster on a CPU and take more memory."""

CHUNK_BYTES = 16 * 2**20
"""Bytes of features per file. At most one such file is in memory, and lost if the run is killed."""


def local_copy(model: keras.Model) -> keras.Model:
    """Return a model that this process can run without the other workers."""
    values = [variable.value for variable in model.variables[:1]] if current_group().count > 1 else []
    # TensorFlow's variables have a value per replica; JAX's may be on devices of other processes.
    shared = any(hasattr(v, "values") or not getattr(v, "is_fully_addressable", True) for v in values)
    return surgery.clone(model) if shared else model


def missing_rows(store: FeatureStore, digests: Sequence[str]) -> np.ndarray:
    """Return the positions of images that the store of at least one worker lacks."""
    lacking = (store.find(digests) < 0).astype("int32")
    by_worker = current_group().gather(lacking).reshape(current_group().count, -1)
    return first_of_each(digests, by_worker.max(axis=0, initial=0) > 0)


def exchange(store: FeatureStore, digests: Sequence[str], parts: Sequence[np.ndarray]) -> None:
    """Send the rows of this worker's part to the others and store theirs, in pieces."""
    if current_group().count == 1:
        return
    step = max(1, CHUNK_BYTES // (4 * math.prod(store.shape)))
    for first in range(0, max(map(len, parts)), step):
        pieces = [part[first : first + step] for part in parts]
        own = [digests[i] for i in pieces[current_group().index]]
        values = current_group().gather(store.take(store.find(own)).astype("float32", copy=False))
        store.refresh()  # on a shared disk, the other workers' rows are already there
        names = [digests[i] for piece in pieces for i in piece]
        new = np.flatnonzero(store.find(names) < 0)
        store.append([names[i] for i in new], values[new])


def first_of_each(digests: Sequence[str], wanted: np.ndarray) -> np.ndarray:
    """Return the wanted positions, only the first of several images with the same content."""
    positions = np.flatnonzero(wanted).tolist()
    firsts = {digests[i]: i for i in reversed(positions)}
    return np.array(sorted(firsts.values()), "int64")
