"""Where only the last layers train: the frozen part runs once, and only the tail behind it in each epoch."""

from __future__ import annotations

import functools
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.strategies import replicas_of, scope_of
from transfer.frozen.extraction import Features
from transfer.frozen.feature_cache import FeatureCache
from transfer.images import pipeline
from transfer.images.pipeline import Position
from transfer.networks import frozen_boundary
from transfer.training.phases import TrainingLog, TrainingSettings

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of the cache's limit, or of what is free on its disk, that the frozen part's output may take."""


def boundary_of(model: keras.Model) -> tuple[keras.Model, keras.Model] | None:
    """Split a model where its frozen part ends, as far as that saves anything."""
    if None in model.input_shape[1:] or replicas_of(model) > 1:
        return None
    try:
        with scope_of(model):
            extractor, tail = frozen_boundary.split_at_frozen_boundary(model, ignore_noise=True)
    except InputError:  # its first layer trains
        return None
    return (extractor, tail) if any(len(weight.shape) > 1 for weight in extractor.weights) else None


def tail_of(
    run: TrainingSettings, done: TrainingLog
) -> tuple[keras.Model, Callable[[Position], Any], Any] | None:
    """Give the tail, ready to train on what the frozen part gave once, if that is possible."""
    # A user's callback means the whole model; images are mixed before they enter it.
    parts = None if run.callbacks or run.recipe.mix != "none" else boundary_of(run.model)
    if parts is None:
        return None
    extractor, tail = parts
    views = run.views or 1  # more cost a forward pass each, and were worth nothing where it was measured
    size = 2 * frozen_boundary.frozen_bytes(extractor)  # as float32
    if not _has_room(run.cache or FeatureCache(), size * (views * len(run.data.train) + len(run.data.val))):
        return None
    if views == 1 and run.augment != "none":
        log.info(
            "The frozen part sees each image once, as it is, without augmentation, unless you ask for more views."
        )
    start = time.perf_counter()
    # In full precision: what is trained on it is the model that is saved.
    cached = run.extract(extractor, views=views, name="frozen part", precision="float32")
    done.note_features(cached, time.perf_counter() - start)
    done.views = views
    with scope_of(run.model):
        run.compile_alike(tail)
    train_set = functools.partial(_batches, run, cached["train"], run.data.train.labels, views)
    val_set = _batches(run, cached["val"], run.data.val.labels, 1) if "val" in cached else None
    return tail, train_set, val_set


def _has_room(cache: FeatureCache, size: int) -> bool:
    """Say whether so many bytes may be kept; where not, say what happens instead."""
    folder = next(place for place in (cache.folder, *cache.folder.parents) if os.path.exists(place))
    room = SHARE * min(cache.limit, shutil.disk_usage(folder).free)
    if size > room:
        log.warning(
            "The frozen part gives %.1f GB for these images, more than the %.1f GB that may be kept: it runs anew "
            "in each epoch. Fewer views, smaller images or a later layer to train from need less.",
            size / 1e9,
            room / 1e9,
        )
    return size <= room


def _batches(
    run: TrainingSettings, cached: Features, labels: np.ndarray, views: int, position: Position | None = None
) -> Any:
    """Batches of what the tail eats; in training, where there is a position, one view of each image,
    drawn anew each epoch."""
    count = len(labels)
    chosen = np.zeros(count, "int64")

    def take(positions: np.ndarray) -> np.ndarray:
        rows = cached.take(chosen[positions] * count + positions)
        return rows.reshape(len(rows), -1).astype("float32", copy=False)

    def draw(epoch: int) -> None:
        chosen[:] = np.random.default_rng([run.seed, epoch, views]).integers(views, size=count)

    rows = pipeline.batch_rows(
        take,
        labels,
        width=math.prod(cached.shape[1:]),
        batch_size=run.batch_size,
        shuffle_seed=run.seed if position else None,
        each_epoch=draw if position else None,
        position=position,
    )
    apart = functools.partial(_apart, cached.shapes)
    if keras.backend.backend() == "tensorflow":
        return rows.map(apart)
    read = rows.read
    rows.read = lambda positions, keys: apart(*read(positions, keys))
    return rows


def _apart(shapes: tuple[tuple[int, ...], ...], rows: Any, labels: Any) -> tuple[Any, Any]:
    """Give the tail its inputs in their shapes."""
    ops, parts, start = keras.ops, [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        parts.append(ops.reshape(rows[:, start:stop], (-1, *shape)))
        start = stop
    return (tuple(parts) if len(parts) > 1 else parts[0]), labels
