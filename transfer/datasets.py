"""Data in, one way: a folder, a tensorflow_datasets name or arrays become `ImageData`.

This room alone checks, splits, caches, shuffles, augments and batches; it knows no model.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.augmentation import AUGMENTATIONS, light
from transfer.errors import InputError, unknown
from transfer.pictures import as_size, check_files
from transfer.sources import embedded_folder as embedded_folder
from transfer.sources import find_folder, read_arrays, read_folder
from transfer.splitting import Split, complete_splits

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

CACHE_BUDGET = 4 * 2**30
"""Bytes of decoded pictures to hold in memory at most; a larger set is cached on disk."""

SHUFFLE_BUDGET = 2**30
"""Bytes of decoded pictures to draw the next one from while training."""


@dataclass(frozen=True)
class ImageData:
    """Labelled pictures in three disjoint splits.

    Attributes:
        name: a short name, for titles and folders.
        class_names: in the order of the labels; it travels with every saved model.
        train: what is learnt from.
        val: what decides when to stop.
        test: what the accuracy is measured on, and nothing else.
        image_size: height and width asked for, or None to take the model's.
        skipped: pictures that could not be read, by name, with the reason.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    image_size: tuple[int, int] | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def load_data(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.2,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
    data_dir: str | Path | None = None,
    download: bool = True,
) -> ImageData:
    """Load labelled pictures and split them into train, val and test.

    The split is stratified by class and depends on the seed and the pictures' names alone, not on the
    file system's order. Exact duplicates always stay on the same side. Splits that the source has
    already are kept, with a warning where they share pictures; where it has `val` but no `test`, its
    `val` becomes the test set and a new validation set is drawn from `train`, so that stopping and
    measuring never use the same pictures.

    A class keeps at least one picture to train on: of two different pictures the other is for the test,
    and a third for validation. A picture that is in several classes, byte for byte, is only trained on.

    Args:
        source: one of: a folder with a sub-folder of pictures per class, with or without `train`
            (`training`), `val` (`valid`, `validation`) and `test` (`testing`) above them, in any letter
            case; hidden ones are passed over; `"emoji"`, the data set that comes along;
            `"tfds:NAME"` for a tensorflow_datasets name; arrays `(images, labels)` or, as
            `keras.datasets` gives them, `((x_train, y_train), (x_test, y_test))`, images of shape
            (N, H, W[, C]), 0 to 255.
        image_size: pixels, one number or (height, width), to stretch to; None takes the model's.
        seed: of the split.
        val: share of the pictures for validation, 0 to 1, where the source has no such split.
        test: the same for the test set.
        class_names: for arrays: one name per label; otherwise numbers are the names.
        strict: stop at unreadable pictures instead of skipping and counting them.
        data_dir: where tensorflow_datasets keeps prepared data.
        download: let tensorflow_datasets download what is not prepared.

    Returns:
        The data; pictures in files are decoded when they are used.

    Raises:
        InputError: there is no such source, or it has fewer than two classes, unreadable pictures under
            `strict`, labels that do not fit, or shares that leave nothing to train on.

    Example:
        >>> data = load_data("emoji", seed=0)
        >>> data.num_classes
        12
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise InputError(
            f"Expected shares of 0 or more, val + test below 1. Received: val={val}, test={test}. Leave some "
            "pictures to train on."
        )
    if seed < 0:
        raise InputError(f"Expected a seed of 0 or more. Received: {seed}. Any other number will do.")
    size = as_size(image_size)
    if isinstance(source, (str, Path)):
        if class_names is not None:
            raise InputError(
                f"Expected class_names with arrays alone. Received them with {str(source)!r}, which has its own. "
                "Leave them out."
            )
        text = str(source)
        if text.startswith("tfds:"):
            from transfer.tfds_source import read_tfds

            name, (parts, names) = text[5:], read_tfds(text[5:], data_dir=data_dir, download=download)
        else:
            folder = find_folder(text)
            name, (parts, names) = folder.name, read_folder(folder)
    else:
        name, (parts, names) = "arrays", read_arrays(source, class_names)
    parts, digests, skipped = _check(parts, strict=strict)
    _refuse_too_few(name, parts["train"], names)
    splits = complete_splits(parts, digests, names, seed=seed, val=val, test=test)
    return ImageData(name, tuple(names), **splits, image_size=size, skipped=skipped)


def _check(
    parts: dict[str, Split], *, strict: bool
) -> tuple[dict[str, Split], dict[str, list[str]], tuple[tuple[str, str], ...]]:
    """Drop what cannot be read, and give every remaining picture's digest."""
    good, digests, skipped = {}, {}, []
    for name, part in parts.items():
        if isinstance(part.pictures, np.ndarray):
            good[name] = part
            digests[name] = [hashlib.sha256(x.tobytes()).hexdigest() for x in part.pictures]
            continue
        checked = check_files(part.pictures)
        keep = [i for i, c in enumerate(checked) if not c.problem]
        skipped += [(part.names[i], c.problem) for i, c in enumerate(checked) if c.problem]
        good[name] = part.take(keep) if len(keep) < len(part) else part
        digests[name] = [checked[i].digest for i in keep]
    if skipped:
        shown = "; ".join(f"{name}: {problem}" for name, problem in skipped[:10])
        more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        if strict:
            raise InputError(
                f"Expected pictures that can be read. Received {len(skipped)} that cannot: {shown}{more}. Mend "
                "them or take them away; without strict they are skipped."
            )
        log.warning("Skipped %d pictures that cannot be read: %s%s.", len(skipped), shown, more)
    return good, digests, tuple(skipped)


def _refuse_too_few(name: str, train: Split, names: Sequence[str]) -> None:
    present = np.unique(train.labels)
    if len(present) < 2:
        have = f"{len(present)}" + (f" ({names[present[0]]})" if len(present) else "")
        raise InputError(
            f"Expected pictures of at least 2 classes in {name!r}. Received: {have}. "
            "Put each class' pictures into a sub-folder of its own."
        )
    missing = [names[i] for i in range(len(names)) if i not in present]
    if missing:
        raise InputError(
            f"Expected pictures of every class in {name!r}. None to train on for: {', '.join(missing)}."
        )


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


def flips_are_safe(class_names: Sequence[str]) -> bool:
    """Say whether mirrored pictures keep their class: not where the classes are letters or digits.

    Args:
        class_names: the names of the classes.

    Returns:
        False when every class is called by one letter or by a number.

    Example:
        >>> flips_are_safe(["0", "1", "2"]), flips_are_safe(["ants", "bees"])
        (False, True)
    """
    return not all(re.fullmatch(r"\d+|\w", name) for name in class_names)
