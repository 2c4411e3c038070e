"""Turn splits into batches: decoded, cached, shuffled, augmented and mixed."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, LostImageError, unknown
from transfer.distributed.batch_order import BatchOrder, BatchPart, Position
from transfer.images.augmentation import MIXES, augmentation, mixing
from transfer.images.decoding import as_size
from transfer.images.reading import readers
from transfer.images.splitting import Split

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

CACHE_BUDGET = 4 * 2**30
"""Largest size in bytes of the decoded images that a split caches in memory, but at most a quarter of the machine's
memory. A larger split is cached on disk."""


DEFAULT_SIZE = (224, 224)
"""Default height and width of batches of image files, in pixels: the size of most pre-trained networks."""


@explain_arguments({"shuffle": "Write training=True: it shuffles in each epoch."})
def make_dataset(
    split: Split,
    *,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
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
    """Turn a split into batches: decode, cache, shuffle, augment, mix and prefetch its images.

    Args:
        split: The images, such as `data.train`.
        image_size: Size of the images in pixels, one number or (height, width). None is the size that `load_data` was
            given, otherwise that of the first image if the images are arrays, otherwise 224.
        batch_size: Images per batch, on all devices together; the last batch may be smaller.
        training: Shuffle in each epoch, augment and mix. Otherwise the images keep the order of the split.
        augment: One of `AUGMENTATIONS`. Each image changes differently in each epoch; ignored unless `training`.
        flip: Whether augmentation may flip images horizontally (see `flips.flip_problem`).
        mix: One of `MIXES`. All but `"none"` make the labels one-hot; images are mixed only with `training`.
        num_classes: Length of one-hot labels; required for a `mix`.
        cache: Keep decoded images for the next epoch; None does so only with `training`.
        cache_budget: Largest size of the cache in memory, in bytes; a larger cache is a temporary file in `TMPDIR`.
            None is `CACHE_BUDGET`, or a quarter of the machine's memory if that is less.
        seed: Random seed of order, augmentation and mixing, 0 or more. The result depends only on it and on the
            number of the epoch, which counts the passes over the data set.
        keys: Random keys of the augmentation, int32 of shape (N, 2), which also augments without `training`. None
            draws new keys in each epoch with `training`.
        position: Epoch and image to start from, read when a pass begins; None counts the passes.
        batch_part: The part of each batch that this process reads, if several replicas train. With a `mix`, the
            process reads whole batches, mixes them and then takes its part.

    Returns:
        A `tf.data.Dataset`, or a `keras.utils.PyDataset` if Keras runs on another backend. Its batches are float32
        images of shape (batch, height, width, 3), 0 to 255, and int64 labels of shape (batch,). With a `mix` and for
        several labels per image, labels are float32 of shape (batch, num_classes). Those of a regression are float32
        of shape (batch,), or (batch, 1) with a `mix`.

    Raises:
        InputError: The first argument is not a split, the augmentation or the mix is unknown, or a mix has too few
            classes.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> data = load_data("emoji")
        >>> images, labels = next(iter(make_dataset(data.val, image_size=(64, 64), batch_size=8)))
        >>> images.shape
        TensorShape([8, 64, 64, 3])
    """
    if not isinstance(split, Split):
        raise InputError(
            f"Expected a split in make_dataset(split), such as data.train. Received: {type(split).__name__}. Load the "
            "images first: data = transfer.load_data(images)."
        )
    image_size = as_size(image_size) or split.image_size or _size_of_arrays(split) or DEFAULT_SIZE
    augmented = augmentation(augment, flip=flip)
    change = augmented if (training or keys is not None) and augment != "none" else None
    num_classes = _checked_classes(split, mix, num_classes)
    finish = mixing(mix if training else "none", num_classes) if mix != "none" else None
    pixels = None
    if training if cache is None else cache:
        pixels = _pixel_cache(
            len(split), image_size, _memory_budget() if cache_budget is None else cache_budget
        )
    mixed_part = batch_part if training and finish is not None else None  # mixing needs whole batches
    read_part = batch_part if mixed_part is None else mixed_part.undivided()
    order = BatchOrder(len(split), batch_size, seed if training else None, keys, position, read_part)
    read = _reader(split, image_size, pixels)
    if _on_tensorflow():
        like = _batch_labels(split.labels[:0])
        options: dict[str, Any] = {"image_size": image_size, "batch_part": mixed_part}
        return _tensorflow_batches(order, read, change, finish, labels_like=like, **options)
    from transfer.images import python_batches

    return python_batches.image_batches(order, read, change, finish, batch_part=mixed_part)


def _size_of_arrays(split: Split) -> tuple[int, int] | None:
    """Return the height and the width of the first image if it is an array."""
    first = split.images[0] if len(split) else None
    return (first.shape[0], first.shape[1]) if isinstance(first, np.ndarray) else None


_INPUT_ERROR = re.compile(r"(InputError|LostImageError): (.+?)\s*\nTraceback ", re.DOTALL)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the `InputError` of an image as it is: `tf.data` wraps it in an error of its own."""
    try:
        yield
    except Exception as error:
        found = _INPUT_ERROR.search(str(error))
        if found is None or isinstance(error, InputError):
            raise
        raise (LostImageError if found[1] == "LostImageError" else InputError)(found[2]) from None


def _tensorflow_batches(
    order: BatchOrder,
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    change: Callable[[Any, Any], Any] | None,
    finish: Callable[[Any, Any, Any], Any] | None,
    *,
    labels_like: np.ndarray,
    image_size: tuple[int, int],
    batch_part: BatchPart | None,
) -> tf.data.Dataset:
    """Return batches as a `tf.data.Dataset`, like `python_batches.image_batches` for other backends."""
    import tensorflow as tf

    def read_batch(positions: Any, keys: Any) -> Any:
        images, labels = tf.numpy_function(read, [positions], (tf.uint8, labels_like.dtype))
        labels = tf.ensure_shape(labels, (None, *labels_like.shape[1:]))
        return tf.ensure_shape(images, (None, *image_size, 3)), labels, keys

    def finish_batch(images: Any, labels: Any, keys: Any) -> Any:
        return finish(images, labels, keys[0]) if finish else (tf.cast(images, tf.float32), labels)

    dataset = _positions(order).map(read_batch, num_parallel_calls=tf.data.AUTOTUNE)
    if change is not None:

        def change_batch(images: Any, labels: Any, keys: Any) -> Any:
            changed = tf.map_fn(lambda one: change(*one), (images, keys), fn_output_signature=tf.float32)
            return tf.ensure_shape(changed, images.shape), labels, keys

        dataset = dataset.map(change_batch, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.map(finish_batch, num_parallel_calls=tf.data.AUTOTUNE)
    if batch_part is not None:
        dataset = dataset.flat_map(functools.partial(_parts, batch_part))
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(order) * batch_part.replicas))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _parts(batch_part: BatchPart, images: Any, labels: Any) -> tf.data.Dataset:
    """Split a mixed batch as `BatchPart.split_batch` splits positions."""
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
    """Return batches of rows, such as cached features, which `take` reads by their positions."""
    order = BatchOrder(
        len(labels), batch_size, shuffle_seed, position=position, begin=each_epoch, arrange=arrange
    )
    if not _on_tensorflow():
        from transfer.images import python_batches

        return python_batches.Batches(order, lambda positions, keys: (take(positions), labels[positions]))
    import tensorflow as tf

    def read(positions: Any, keys: Any) -> Any:
        x = tf.numpy_function(take, [positions], tf.float32)
        return tf.ensure_shape(x, (None, width)), tf.gather(labels, positions)

    return _positions(order).map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def class_weights(labels: np.ndarray, num_classes: int) -> dict[int, float]:
    """Return class weights that give all classes the same total weight: N / (K n) for a class of n images.

    This is the formula of scikit-learn's `compute_class_weight("balanced")`.

    Args:
        labels: Labels of the training images, int of shape (N,).
        num_classes: Number of classes, K.

    Returns:
        Weight by class, for the argument `class_weight` of Keras' `fit`. The mean weight of the images is 1, so the
        learning rate need not change.

    Raises:
        InputError: A class has no images.

    Example:
        >>> class_weights(np.array([0, 0, 0, 1]), 2)
        {0: 0.6666666666666666, 1: 2.0}
    """
    counts = np.bincount(labels, minlength=num_classes)
    if len(counts) != num_classes or not counts.all():
        raise InputError(
            f"Expected labels of each of {num_classes} classes, for class weights. Received: {len(labels)} labels, "
            f"by class {counts.tolist()}. Remove the empty classes, or train without class weights."
        )
    return {label: len(labels) / (num_classes * int(n)) for label, n in enumerate(counts)}


def _checked_classes(split: Split, mix: str, num_classes: int | None) -> int:
    """Return the number of classes; raise an error if it is too small for a mix."""
    if mix not in MIXES:
        raise unknown("mix", mix, MIXES)
    needed = split.labels.shape[1] if split.labels.ndim == 2 else int(split.labels.max(initial=-1)) + 1
    needed = 1 if split.labels.dtype.kind == "f" else needed
    if mix != "none" and (num_classes is None or num_classes < needed):
        raise InputError(
            f"Expected num_classes of {needed} or more for the one-hot labels of mix={mix!r}. Received: "
            f"num_classes={num_classes}. Pass the number of classes."
        )
    return num_classes or needed


def _on_tensorflow() -> bool:
    """Return whether Keras runs on TensorFlow, whose `tf.data` reads and changes images in many threads."""
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def _positions(order: BatchOrder) -> tf.data.Dataset:
    """Return the positions and keys of each batch as a `tf.data.Dataset`."""
    import tensorflow as tf

    signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 2), tf.int32))
    dataset = tf.data.Dataset.from_generator(order.batches, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(order)))


def _reader(
    split: Split, size: tuple[int, int], pixels: _MemoryCache | _FileCache | None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function from positions to images (uint8) and labels."""
    cached = np.zeros(len(split), bool)

    def image(position: int) -> np.ndarray:
        if pixels is not None and cached[position]:
            return pixels.load(position)
        decoded = split.image(position, size)
        if pixels is not None:
            cached[position] = pixels.save(position, decoded)
        return decoded

    def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        apply = map if cached[positions].all() else readers().map
        return np.stack([*apply(image, positions.tolist())]), _batch_labels(split.labels[positions])

    return read


def _batch_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels in their data type in batches: int64 for classes, float32 for several labels and for numbers."""
    return labels.astype("int64" if labels.ndim == 1 and labels.dtype.kind != "f" else "float32")


class _MemoryCache:
    """Decoded images in memory, for several threads at once."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.pixels = np.empty((count, *size, 3), "uint8")

    def save(self, position: int, pixels: np.ndarray) -> bool:
        self.pixels[position] = pixels
        return True  # False means that the image was not saved

    def load(self, position: int) -> np.ndarray:
        return self.pixels[position]


class _FileCache:
    """Decoded images in a temporary file without a name, which disappears with the process."""

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
                if not self.full:  # several threads may find the disk full; one of them warns
                    log.warning("Stopped caching decoded images; each epoch reads the rest again: %s.", error)
                self.full = True
                return False

    def load(self, position: int) -> np.ndarray:
        pixels = np.empty(self.shape, "uint8")
        with self.lock:
            self.file.seek(position * self.bytes)
            self.file.readinto(pixels.data)
        return pixels


def _pixel_cache(count: int, size: tuple[int, int], budget: int) -> _MemoryCache | _FileCache | None:
    """Return a cache in memory, a larger one on disk, or None if the disk is too small."""
    needed = count * size[0] * size[1] * 3
    if needed <= budget:
        return _MemoryCache(count, size)
    folder = tempfile.gettempdir()  # raises if no folder is writable
    free = shutil.disk_usage(folder).free
    if needed <= free:
        log.info("Caching %.1f GB of decoded images in %s.", needed / 1e9, folder)
        return _FileCache(size)
    log.warning(
        "Decoded images are not cached, so each epoch reads the files again: %.1f GB do not fit into %.1f GB of memory "
        "or %.1f GB of disk in %s. Set TMPDIR to a folder on a larger disk.",
        needed / 1e9, budget / 1e9, free / 1e9, folder,
    )  # fmt: skip
    return None


def _memory_budget() -> int:
    """Return the limit of a cache in memory, in bytes."""
    if not hasattr(os, "sysconf"):  # Windows
        return CACHE_BUDGET
    return min(CACHE_BUDGET, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
