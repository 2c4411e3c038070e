"""Images that a program has already: arrays, and `tf.data.Dataset`s of (image, label)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from transfer.common.errors import InputError, unknown
from transfer.images.splitting import SourceData, Split
from transfer.images.tables import SPLITS
from transfer.images.temporary_store import TemporaryStore

_FORMS = (
    "(images, labels), a tf.data.Dataset of (image, label), a pair of either for train and test, or a dict of them "
    "by 'train', 'val' and 'test'"
)
_INFINITE = -1  # tf.data.INFINITE_CARDINALITY; TensorFlow is not imported here


def read_arrays(source: Any, class_names: Sequence[str] | None = None) -> SourceData:
    """Check images and labels in memory, or read data sets of them once."""
    given = _by_split(source)
    if class_names is None:
        class_names = _own_names(given)
    for part in filter(_is_dataset, given.values()):
        _refuse_dataset(part)  # before the first is read
    parts = {}
    for split, part in given.items():
        prefix = f"{split}/" if len(given) > 1 else ""
        parts[split] = _dataset_split(part, prefix) if _is_dataset(part) else _array_split(part, prefix)
    return SourceData(parts, _class_names(parts, class_names))


def _is_dataset(source: Any) -> bool:
    return hasattr(source, "element_spec") and hasattr(source, "as_numpy_iterator")


def _by_split(source: Any) -> dict[str, Any]:
    """Sort out which images are for which split: data sets as they are, arrays as pairs of arrays."""
    if isinstance(source, Mapping):
        for name in source:
            if name not in SPLITS:
                raise unknown("split", name, SPLITS, hint=f"Expected {_FORMS}.")
        if "train" not in source:
            listed = ", ".join(map(repr, source)) or "none"
            raise InputError(f"Expected images for 'train'. Received: {listed}. Name those to train on.")
        given = {name: source[name] for name in SPLITS if name in source}
    elif _is_dataset(source):
        given = {"train": source}
    else:
        given = _pair(source)
    return {name: part if _is_dataset(part) else _as_arrays(part) for name, part in given.items()}


def _pair(source: Any) -> dict[str, Any]:
    """Tell (train, test) from (images, labels)."""
    try:
        first, second = source
    except (TypeError, ValueError):
        raise _strange(source) from None
    # ((x, y), (x, y)) holds arrays where (images, labels) holds numbers.
    nested = isinstance(second, (tuple, list)) and len(second) == 2 and np.ndim(second[0]) > 0
    if nested or _is_dataset(first) or _is_dataset(second):
        return {"train": first, "test": second}
    return {"train": source}


def _as_arrays(pair: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        images, labels = pair
        return np.asarray(images), np.asarray(labels)
    except (TypeError, ValueError):
        raise _strange(pair) from None


def _strange(source: Any) -> InputError:
    return InputError(
        f"Expected a folder, 'tfds:NAME', {_FORMS}. Received: {type(source).__name__}. Images of different sizes "
        "fit into no array: use a folder, or a data set."
    )


def _own_names(given: Mapping[str, Any]) -> Sequence[str] | None:
    """Give the names that data sets carry; the same label must not mean different classes."""
    carried = {
        split: list(part.class_names) for split, part in given.items() if getattr(part, "class_names", None)
    }
    names = next(iter(carried.values()), None)
    for split, others in carried.items():
        if others != names:
            raise InputError(
                f"Expected the same class names in every split. Received: {', '.join(names or ())} in "
                f"{next(iter(carried))} and {', '.join(others)} in {split}. Make both with the "
                "same class_names."
            )
    return names


def _class_names(parts: Mapping[str, Split], class_names: Sequence[str] | None) -> list[str]:
    highest = max(int(part.labels.max()) for part in parts.values())
    if class_names is not None:
        names = [str(n) for n in class_names]
    else:  # no more than there are images, since a stray label may be huge
        names = [str(n) for n in range(min(highest + 1, len(parts["train"])))]
    if len(set(names)) < len(names):
        raise InputError(f"Expected a different name for each class. Received: {', '.join(names)}.")
    if highest >= len(names):
        raise InputError(
            f"Expected labels from 0 to {len(names) - 1}, each with images to train on. Received a label "
            f"{highest}. Number the classes from 0 on, without gaps."
        )
    return names


def _array_split(pair: tuple[np.ndarray, np.ndarray], prefix: str) -> Split:
    x, labels, high = _checked(*pair)
    _refuse_dark(high)
    return Split(x, labels, [f"{prefix}{i}" for i in range(len(x))])


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Give images, labels as int64 of shape (N,), and the highest pixel, where all are what they should
    be."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # as keras.datasets.cifar10 gives them
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)) or not x.size:
        raise InputError(
            "Expected images of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), at least one. "
            f"Received: {x.shape}."
        )
    if y.shape != (len(x),):
        raise InputError(
            f"Expected one label per image. Received: images of shape {x.shape} with labels of shape {y.shape}. "
            "Turn one-hot labels into numbers by argmax(axis=-1)."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        least = "" if not np.issubdtype(y.dtype, np.number) else f", the least of them {y.min()}"
        raise InputError(
            f"Expected labels as whole numbers (int64) from 0. Received: {y.dtype}{least}. Number the classes "
            "from 0 on."
        )
    if not (np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating) or x.dtype == bool):
        raise InputError(f"Expected pixels as numbers from 0 to 255. Received: {x.dtype}.")
    low, high = x.min(), x.max()
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise InputError(
            f"Expected pixels from 0 to 255, all finite. Received: {low} to {high}. Rescale them."
        )
    return x, y.astype("int64"), high


def _refuse_dark(high: Any) -> None:
    if high <= 1:
        raise InputError(
            f"Expected pixels from 0 to 255. Received values up to {high} at most: multiply by 255 first."
        )


def _dataset_split(dataset: Any, prefix: str) -> Split:
    """Read a data set once, into a file."""
    images, labels, highest = TemporaryStore(), array("q"), 0
    with tqdm(desc="reading", unit=" images", delay=2) as bar:
        for batch in dataset.as_numpy_iterator():
            x, y, high = _checked(*_as_batch(*map(np.asarray, batch)))
            for image in x if x.dtype == np.uint8 else np.rint(x).astype("uint8"):
                images.append(image)
            labels.extend(y.tolist())
            highest = max(highest, high)
            bar.update(len(y))
    if not labels:
        raise InputError("Expected a data set with at least one image. Received: an empty one.")
    _refuse_dark(highest)
    return Split(images, np.frombuffer(labels, "int64"), [f"{prefix}{i}" for i in range(len(labels))])


def _refuse_dataset(dataset: Any) -> None:
    spec = dataset.element_spec
    plain = isinstance(spec, tuple) and len(spec) == 2 and all(type(s).__name__ == "TensorSpec" for s in spec)
    if not plain:
        raise InputError(
            f"Expected a data set of (image, label), batched or not. Received elements {spec}. Bring them to that "
            "form by dataset.map."
        )
    if int(dataset.cardinality()) == _INFINITE:
        raise InputError(
            "Expected a data set that ends. Received an infinite one. Take away its .repeat(), or end it by "
            ".take(N)."
        )


def _as_batch(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make a batch of one from an image on its own, whose label may be of shape (1,) as in cifar10."""
    alone = y.ndim == 0 or (y.shape == (1,) and x.ndim in (2, 3) and len(x) != 1)
    return (x[None], y.reshape(1)) if alone else (x, y)
