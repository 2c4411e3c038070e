"""Splits of pictures become batches: cached decoded, then shuffled, augmented, batched, prefetched."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.augmentation import AUGMENTATIONS, light
from transfer.errors import unknown
from transfer.splitting import Split

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

CACHE_BUDGET = 4 * 2**30
"""Bytes of decoded pictures to hold in memory at most; a larger set is cached on disk."""

SHUFFLE_BUDGET = 2**30
"""Bytes of decoded pictures to draw the next one from while training."""


def make_dataset(
    split: Split,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    training: bool = False,
    augment: str = "none",
    flip: bool = True,
    seed: int = 0,
) -> tf.data.Dataset:
    """Turn a split into batches: decoded and cached, then shuffled, augmented, batched, prefetched.

    Args:
        split: the pictures.
        image_size: height and width in pixels.
        batch_size: pictures per batch, over all devices together; the last batch may be smaller.
        training: shuffle, anew each epoch, and augment. Otherwise the order is the split's.
        augment: `"none"` or `"light"` (flips left-right and shifts of up to 10%, each picture and each
            epoch differently). Ignored unless `training`.
        flip: whether augmentation may flip (see `flips_are_safe`).
        seed: of order and augmentation; the same seed gives the same batches, as long as TensorFlow's global
            seed (`keras.utils.set_random_seed`) is the same too.

    Returns:
        A `tf.data.Dataset` of float32 images (batch, height, width, 3), 0 to 255, and int64 labels.

    Raises:
        InputError: unknown augmentation.

    Example:
        >>> data = load_data("emoji")
        >>> images, labels = next(iter(make_dataset(data.val, image_size=(64, 64), batch_size=8)))
        >>> images.shape
        TensorShape([8, 64, 64, 3])
    """
    import tensorflow as tf

    if augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    height, width = image_size

    def read_one(position: Any) -> np.ndarray:
        return split.picture(int(position), image_size)

    def read(position: Any) -> Any:
        image = tf.numpy_function(read_one, [position], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (height, width, 3))

    order = np.arange(len(split))
    if training:  # cached in random order, so that a buffer smaller than the data still shuffles well
        order = np.random.default_rng(seed).permutation(order)
    images = tf.data.Dataset.from_tensor_slices(order).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = tf.data.Dataset.zip((images, tf.data.Dataset.from_tensor_slices(split.labels[order])))
    if training:
        dataset = dataset.cache(_cache_place(len(split), image_size))
        buffer = min(len(split), SHUFFLE_BUDGET // (height * width * 3))
        dataset = dataset.shuffle(max(1, buffer), seed=seed, reshuffle_each_iteration=True)
        if augment != "none":
            dataset = _augmented(dataset, seed, flip)
    dataset = dataset.batch(batch_size)
    dataset = dataset.map(lambda x, y: (tf.cast(x, tf.float32), y), num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def batch_arrays(
    x: np.ndarray, y: np.ndarray, *, batch_size: int, shuffle_seed: int | None = None
) -> tf.data.Dataset:
    """Turn arrays that fit in memory, such as cached features, into batches.

    Args:
        x: array of shape (N, ...).
        y: labels of shape (N,).
        batch_size: rows per batch; the last may be smaller.
        shuffle_seed: shuffle by it, anew each epoch; None keeps the order.

    Returns:
        A `tf.data.Dataset` of (x, y) batches.

    Example:
        >>> [len(y) for _, y in batch_arrays(np.zeros((5, 2)), np.arange(5), batch_size=3)]
        [3, 2]
    """
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).cache()
    if shuffle_seed is not None:
        dataset = dataset.shuffle(max(1, len(y)), seed=shuffle_seed, reshuffle_each_iteration=True)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def _cache_place(count: int, image_size: tuple[int, int]) -> str:
    """Memory (an empty name) while the decoded pictures fit the budget, a temporary file past it."""
    needed = count * image_size[0] * image_size[1] * 3
    if needed <= CACHE_BUDGET:
        return ""
    folder = tempfile.mkdtemp(prefix="transfer-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.info("Caching %.1f GB of decoded pictures in %s.", needed / 1e9, folder)
    return str(Path(folder) / "pictures")


def _augmented(dataset: tf.data.Dataset, seed: int, flip: bool) -> tf.data.Dataset:
    """Change every picture a little, by a seed of its own that is new each epoch."""
    import tensorflow as tf

    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
    change = light(flip=flip)

    def change_one(pair: Any, key: Any) -> Any:
        return change(pair[0], tf.cast(key, tf.int32)), pair[1]

    return tf.data.Dataset.zip((dataset, seeds)).map(change_one, num_parallel_calls=tf.data.AUTOTUNE)
