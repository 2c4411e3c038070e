"""Splits of images become batches: cached decoded, shuffled, augmented, batched, prefetched."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.distributed.batch_order import BatchOrder, BatchPart, Position
from transfer.images.augmentation import AUGMENTATIONS, MIXES, augmentation, mixing
from transfer.images.splitting import Split

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

CACHE_BUDGET = 4 * 2**30
"""Bytes of decoded images to hold in memory at most, and never more than a quarter of the machine's; a larger
split is cached on disk."""


def make_dataset(
    split: Split,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    training: bool = False,
    augment: str = "none",
    flip: bool = True,
    mix: str = "none",
    num_classes: int | None = None,
    cache: bool | None = None,
    cache_budget: int | None = None,
    seed: int = 0,
    keys: np.ndarray | None = None,
    position: Position | None = None,
    batch_part: BatchPart | None = None,
) -> tf.data.Dataset:
    """Turn a split into batches: cached decoded, then shuffled, augmented, batched, mixed, prefetched.

    Args:
        split: the images.
        image_size: height and width in pixels.
        batch_size: images per batch, over all devices together; the last batch may be smaller.
        training: shuffle, anew each epoch, and augment and mix. Otherwise the order is the split's.
        augment: one of `AUGMENTATIONS`; each image changes differently, and differently each epoch. Ignored
            unless `training`.
        flip: whether augmentation may flip (see `flips_are_safe`).
        mix: one of `MIXES`. All but `"none"` make the labels one-hot, for a loss that takes such; without
            `training` that is all they do.
        num_classes: of the one-hot labels, where there is a `mix`.
        cache: keep the decoded images for the next epoch; None does so for `training` alone.
        cache_budget: bytes to keep in memory at most, past which they go to a temporary file (in `TMPDIR`);
            None is `CACHE_BUDGET`, or a quarter of the machine's memory where that is less.
        seed: of order, augmentation and mixing, 0 or more. They depend on it and on the number of the epoch
            alone: how often the data set has been gone through.
        keys: seeds of the augmentation, int32 of shape (N, 2): each image changes by its own, without
            `training` too. None draws them, for `training`.
        position: its epoch is looked at when a pass begins; None counts the passes.
        share: of one process among several replicas: a batch of the data set is a part of each batch then. With a
            `mix`, whose images come from the whole batch, all of it is read, and then split.

    Returns:
        A `tf.data.Dataset`, or with another backend than TensorFlow a `keras.utils.PyDataset`, of float32 images
        (batch, height, width, 3), 0 to 255, and int64 labels (batch,), or
        float32 ones (batch, num_classes) where there is a `mix`.

    Raises:
        InputError: unknown augmentation or mix, or a mix without the number of classes.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> data = load_data("emoji")
        >>> images, labels = next(iter(make_dataset(data.val, image_size=(64, 64), batch_size=8)))
        >>> images.shape
        TensorShape([8, 64, 64, 3])
    """
    if augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    finish = mixing(mix if training else "none", _checked_classes(split, mix, num_classes))
    change = augmentation(augment, flip=flip)
    store = None
    if training if cache is None else cache:
        store = _store(len(split), image_size, _budget() if cache_budget is None else cache_budget)
    after = batch_part if training and mix != "none" else None  # who mixes reads all of a batch
    before = batch_part if after is None else after.undivided()
    order = BatchOrder(len(split), batch_size, seed if training else None, keys, position, before)
    changes = (training or keys is not None) and augment != "none"
    if not _tensorflow():
        from transfer.images import python_batches

        read = _reader(split, image_size, store)
        own = finish if mix != "none" else None
        return python_batches.image_batches(order, read, change if changes else None, own, batch_part=after)
    import tensorflow as tf

    def change_all(images: Any, labels: Any, keys: Any) -> Any:
        changed = tf.map_fn(lambda one: change(*one), (images, keys), fn_output_signature=tf.float32)
        return tf.ensure_shape(changed, images.shape), labels, keys

    def finish_batch(images: Any, labels: Any, keys: Any) -> Any:
        if mix == "none":
            return tf.cast(images, tf.float32), labels
        return finish(images, labels, keys[0])

    dataset = _positions(order).map(_reading(split, image_size, store), num_parallel_calls=tf.data.AUTOTUNE)
    if changes:
        dataset = dataset.map(change_all, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.map(finish_batch, num_parallel_calls=tf.data.AUTOTUNE)
    if after is not None:
        dataset = dataset.flat_map(functools.partial(_parts, after))
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(order) * after.replicas))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _parts(batch_part: BatchPart, images: Any, labels: Any) -> tf.data.Dataset:
    """A mixed batch, split as `BatchPart.split_batch` splits positions."""
    import tensorflow as tf

    def split(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = batch_part.split_batch(positions)
        return np.concatenate(parts), np.array([len(part) for part in parts])

    positions, sizes = tf.numpy_function(split, [tf.range(len(images), dtype=tf.int64)], (tf.int64, tf.int64))
    parts = tf.RaggedTensor.from_row_lengths(
        tf.ensure_shape(positions, (None,)), tf.ensure_shape(sizes, (None,))
    )
    chosen = tf.data.Dataset.range(batch_part.replicas).map(lambda number: parts[number])
    return chosen.map(lambda rows: (tf.gather(images, rows), tf.gather(labels, rows)))


def batch_rows(
    take: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    *,
    width: int,
    batch_size: int,
    shuffle_seed: int | None = None,
    each_epoch: Callable[[int], None] | None = None,
    arrange: Callable[[int], np.ndarray] | None = None,
    position: Position | None = None,
) -> tf.data.Dataset:
    """Turn rows that are read when they are wanted, such as features on disk, into batches."""
    order = BatchOrder(
        len(labels), batch_size, shuffle_seed, position=position, begin=each_epoch, arrange=arrange
    )
    if not _tensorflow():
        from transfer.images import python_batches

        return python_batches.Batches(order, lambda positions, keys: (take(positions), labels[positions]))
    import tensorflow as tf

    def read(positions: Any, keys: Any) -> Any:
        x = tf.numpy_function(take, [positions], tf.float32)
        return tf.ensure_shape(x, (None, width)), tf.gather(labels, positions)

    return _positions(order).map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def class_weights(labels: np.ndarray, num_classes: int) -> dict[int, float]:
    """Say how much an image of each class must count for all classes to count the same: N / (K n).

    Args:
        labels: int array of shape (N,), of the images to train on.
        num_classes: K.

    Returns:
        Weight by class, as Keras' `fit(class_weight=...)` takes them. Their mean over the images is 1, so that
        the learning rate needs no change.

    Raises:
        InputError: a class has no image.

    Example:
        >>> class_weights(np.array([0, 0, 0, 1]), 2)
        {0: 0.6666666666666666, 1: 2.0}
    """
    counts = np.bincount(labels, minlength=num_classes)
    if len(counts) != num_classes or not counts.all():
        raise InputError(
            f"Expected labels of {num_classes} classes, each with an image or more, for class weights. Received: "
            f"{len(labels)} images, by class {counts.tolist()}. Leave out the empty classes, or the weights."
        )
    return {label: len(labels) / (num_classes * int(n)) for label, n in enumerate(counts)}


def _checked_classes(split: Split, mix: str, num_classes: int | None) -> int:
    if mix not in MIXES:
        raise unknown("mix", mix, MIXES)
    needed = int(split.labels.max(initial=-1)) + 1
    if mix != "none" and (num_classes is None or num_classes < needed):
        raise InputError(
            f"Expected the number of classes, {needed} or more, for the labels that mix={mix!r} makes. Received: "
            f"num_classes={num_classes}."
        )
    return num_classes or needed


def _tensorflow() -> bool:
    """Whether Keras runs on TensorFlow, which reads and changes images on many threads then."""
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def _positions(order: BatchOrder) -> tf.data.Dataset:
    import tensorflow as tf

    signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 2), tf.int32))
    dataset = tf.data.Dataset.from_generator(order.batches, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(order)))


def _reading(split: Split, size: tuple[int, int], store: _Store | None) -> Callable[[Any, Any], Any]:
    """The function that turns positions into images and labels, for `tf.data`."""
    import tensorflow as tf

    read_all = _reader(split, size, store)

    def read(positions: Any, keys: Any) -> Any:
        images, labels = tf.numpy_function(read_all, [positions], (tf.uint8, tf.int64))
        return tf.ensure_shape(images, (None, *size, 3)), tf.ensure_shape(labels, (None,)), keys

    return read


def _reader(
    split: Split, size: tuple[int, int], store: _Store | None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The function that turns positions into images, uint8, and labels, int64."""
    kept = np.zeros(len(split), bool)

    def image(position: int) -> np.ndarray:
        if store is None:
            return split.image(position, size)
        if kept[position]:
            return store.load(position)
        pixels = split.image(position, size)
        kept[position] = store.save(position, pixels)
        return pixels

    def read_all(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        read = map if kept[positions].all() else _readers().map  # decoding leaves Python to other threads
        return np.stack([*read(image, positions.tolist())]), split.labels[positions].astype("int64")

    return read_all


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")


class _Store(Protocol):
    """Where decoded images are kept; several threads use it at once."""

    def save(self, position: int, pixels: np.ndarray) -> bool:
        """Keep an image; False where that failed."""

    def load(self, position: int) -> np.ndarray:
        """Give an image that was kept."""


class _Memory:
    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.pixels = np.empty((count, *size, 3), "uint8")

    def save(self, position: int, pixels: np.ndarray) -> bool:
        self.pixels[position] = pixels
        return True

    def load(self, position: int) -> np.ndarray:
        return self.pixels[position]


class _File:
    """A temporary file without a name: it is gone when the process is, however that ends."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.shape = (*size, 3)
        self.bytes = int(np.prod(self.shape))
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with this object)
        self.lock = threading.Lock()
        self.full = False

    def save(self, position: int, pixels: np.ndarray) -> bool:
        with self.lock:
            try:
                self.file.seek(position * self.bytes)
                return self.file.write(np.ascontiguousarray(pixels).data) == self.bytes
            except OSError as error:
                if not self.full:  # under the lock: several threads meet the full disk at once
                    log.warning("Decoded images are no longer cached, but read anew each epoch: %s.", error)
                self.full = True
                return False

    def load(self, position: int) -> np.ndarray:
        pixels = np.empty(self.shape, "uint8")
        with self.lock:
            self.file.seek(position * self.bytes)
            self.file.readinto(pixels.data)
        return pixels


def _store(count: int, size: tuple[int, int], budget: int) -> _Store | None:
    """Memory while the decoded images fit the budget, a temporary file past it, nothing past the disk."""
    needed, folder = count * size[0] * size[1] * 3, tempfile.gettempdir()
    if needed <= budget:
        return _Memory(count, size)
    free = shutil.disk_usage(folder).free
    if needed <= free:
        log.info("Caching %.1f GB of decoded images in %s.", needed / 1e9, folder)
        return _File(size)
    log.warning(
        "Decoded images are not cached, but read anew each epoch: they take %.1f GB, more than the %.1f GB of "
        "memory and the %.1f GB of disk in %s. Set TMPDIR to a folder with more room.",
        needed / 1e9, budget / 1e9, free / 1e9, folder,
    )  # fmt: skip
    return None


def _budget() -> int:
    if not hasattr(os, "sysconf"):  # Windows
        return CACHE_BUDGET
    return min(CACHE_BUDGET, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
