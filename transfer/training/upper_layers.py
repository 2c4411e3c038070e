"""Train only the layers after a frozen part, on outputs of the frozen part that are computed once."""

from __future__ import annotations

import functools
import logging
import math
import shutil
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.strategies import on_tensorflow, replicas_of, scope_of
from transfer.frozen.extraction import Features
from transfer.frozen.feature_cache import FeatureCache
from transfer.images import pipeline
from transfer.images.pipeline import Position
from transfer.networks import frozen_boundary
from transfer.networks.folding import fold_batchnorm
from transfer.networks.low_rank import has_low_rank
from transfer.training.phases import Trainee, TrainingSettings

logger = logging.getLogger(__name__)

MAX_CACHE_FRACTION = 0.5
"""Largest fraction of the cache's limit, or of the free disk space, for the outputs of the frozen part."""


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model] | None:
    """Split a model into its frozen part and its upper layers; return None if that would save nothing."""
    if None in model.input_shape[1:] or replicas_of(model) > 1:
        return None
    try:
        with scope_of(model):
            frozen, upper = frozen_boundary.split_at_frozen_boundary(model, ignore_noise=True)
    except InputError:  # the first layer trains
        return None
    return (frozen, upper) if any(len(weight.shape) > 1 for weight in frozen.weights) else None


def parts_to_train(settings: TrainingSettings) -> tuple[keras.Model, keras.Model] | None:
    """Return the frozen part, which can run once, and the upper layers; None to train the whole model."""
    # MixUp and CutMix mix the images before they enter the frozen part. With LoRA, only the embedding of patches is
    # frozen, which takes little time; running it once would rule out augmentation.
    if settings.recipe.mix != "none" or has_low_rank(settings.model):
        return None
    if (parts := split_model(settings.model)) is None:
        return None
    # Each further view costs a forward pass per image; none improved the accuracy (benchmarks/fine_tuning.py views).
    images = (settings.views or 1) * len(settings.data.train) + len(settings.data.val)
    size = 2 * frozen_boundary.frozen_bytes(parts[0]) * images  # as float32
    return parts if _has_room(settings.cache or FeatureCache(), size) else None


def upper_layers_of(settings: TrainingSettings) -> Trainee | None:
    """Return the layers after the frozen part, ready to train on its outputs, or None to train the whole model."""
    if (parts := parts_to_train(settings)) is None:
        return None
    frozen, upper = parts
    data, views = settings.data, settings.views or 1
    if views == 1 and settings.augment != "none":
        logger.info(
            "The frozen layers process each image once, without augmentation. Set views to 2 or more to train on "
            "augmented images."
        )
    # Extract in full precision, as the saved model computes the frozen part.
    engine = settings.make_engine(frozen, "float32")
    features, log = settings.extract(frozen, engine=engine, views=views, name="frozen layers")
    with scope_of(settings.model):
        upper = folded(upper)
        settings.compile_like_model(upper)
    batches = functools.partial(
        _batches, settings, features["train"], settings.labels_for_training(data.train), views
    )
    val_labels = settings.labels_for_training(data.val)
    val_batches = _batches(settings, features["val"], val_labels, 1) if "val" in features else None
    return Trainee(upper, batches, val_batches, log=log)


def folded(model: keras.Model) -> keras.Model:
    """Return a model whose frozen BatchNormalization is folded, if that saves time; otherwise the model itself."""
    # JAX fuses the normalization itself.
    one_input = len(model.inputs) == 1
    return fold_batchnorm(model) if on_tensorflow() and one_input and replicas_of(model) == 1 else model


def _has_room(cache: FeatureCache, size: int) -> bool:
    """Return whether the cache may take this many bytes; warn if not."""
    folder = next(place for place in (cache.folder, *cache.folder.parents) if place.exists())
    room = MAX_CACHE_FRACTION * min(cache.limit, shutil.disk_usage(folder).free)
    if size > room:
        logger.warning(
            "The outputs of the frozen layers need %.1f GB; the cache has room for %.1f GB. The frozen layers run in "
            "every epoch instead. To avoid that, use fewer views, smaller images, or train fewer layers.",
            size / 1e9,
            room / 1e9,
        )
    return size <= room


def _batches(
    settings: TrainingSettings,
    features: Features,
    labels: np.ndarray,
    views: int,
    position: Position | None = None,
) -> Any:
    """Return batches of features; with a position, shuffled and with a random view of each image per epoch."""
    count = len(labels)
    chosen_views = np.zeros(count, "int64")

    def take(positions: np.ndarray) -> np.ndarray:
        rows = features.take(chosen_views[positions] * count + positions)
        return rows.reshape(len(rows), -1).astype("float32", copy=False)

    def choose_views(epoch: int) -> None:
        random = np.random.default_rng([settings.seed, epoch, views])
        chosen_views[:] = random.integers(views, size=count)

    batches = pipeline.batch_rows(
        take,
        labels,
        width=math.prod(features.shape[1:]),
        batch_size=settings.batch_size,
        shuffle_seed=settings.seed if position else None,
        each_epoch=choose_views if position else None,
        position=position,
    )
    split = functools.partial(_split_inputs, features.shapes)
    if keras.backend.backend() == "tensorflow":
        return batches.map(split)
    read = batches.read
    batches.read = lambda positions, keys: split(*read(positions, keys))
    return batches


def _split_inputs(shapes: tuple[tuple[int, ...], ...], rows: Any, labels: Any) -> tuple[Any, Any]:
    """Split flat rows into the inputs of the upper layers, in their shapes."""
    ops, parts, start = keras.ops, [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        parts.append(ops.reshape(rows[:, start:stop], (-1, *shape)))
        start = stop
    return (tuple(parts) if len(parts) > 1 else parts[0]), labels
