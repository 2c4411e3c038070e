"""One forward pass, shared by several workers: each runs over its part of the images, and all get what all gave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np

from transfer.distributed.process_group import current_group
from transfer.frozen.feature_store import FeatureStore
from transfer.networks import surgery

BATCH_SIZE = 32
"""Images per step of the forward pass; more is no faster on a CPU and costs memory."""

CHUNK_BYTES = 16 * 2**20
"""Of features, written to disk at a time: what is lost at most when a run is killed, and what it holds in memory."""


def local_copy(model: keras.Model) -> keras.Model:
    """Give a model that this process can run without the others."""
    values = [variable.value for variable in model.variables[:1]] if current_group().count > 1 else []
    # TensorFlow's have a value for each replica; those of JAX are in part on devices of others.
    shared = any(hasattr(v, "values") or not getattr(v, "is_fully_addressable", True) for v in values)
    return surgery.clone(model) if shared else model


def missing_rows(store: FeatureStore, digests: Sequence[str]) -> np.ndarray:
    """Say which images are not on the store, or not on that of another worker."""
    lacking = (store.find(digests) < 0).astype("int32")
    on_each = current_group().rows(lacking).reshape(current_group().count, -1)
    return first_of_each(digests, on_each.max(axis=0, initial=0) > 0)


def exchange(store: FeatureStore, digests: Sequence[str], parts: Sequence[np.ndarray]) -> None:
    """Give the other workers what this one has computed, and take what they have, a few at a time."""
    if current_group().count == 1:
        return
    step = max(1, CHUNK_BYTES // (4 * math.prod(store.shape)))
    for first in range(0, max(map(len, parts)), step):
        pieces = [part[first : first + step] for part in parts]
        own = [digests[i] for i in pieces[current_group().index]]
        values = current_group().rows(store.take(store.find(own)).astype("float32", copy=False))
        store.refresh()  # where all have the same disk, it is there already
        names = [digests[i] for piece in pieces for i in piece]
        new = np.flatnonzero(store.find(names) < 0)
        store.append([names[i] for i in new], values[new])


def first_of_each(digests: Sequence[str], wanted: np.ndarray) -> np.ndarray:
    """Pick positions to compute: of several images with the same content, one."""
    seen: set[str] = set()
    found = []
    for i in np.flatnonzero(wanted).tolist():
        if digests[i] not in seen:
            seen.add(digests[i])
            found.append(i)
    return np.array(found, "int64")
