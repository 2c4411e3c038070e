"""Read images in memory: arrays, and `tf.data.Dataset`s of (image, label)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsInt, runtime_checkable

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.streams import progress_bar
from transfer.images.image_sequences import TemporaryImages
from transfer.images.split_words import SPLITS
from transfer.images.splitting import SourceData, Split

_FORMS = (
    "(images, labels), a tf.data.Dataset of (image, label), a pair of either for train and test, or a dict of them "
    "with keys from 'train', 'val' and 'test'"
)
_INFINITE = -1  # tf.data.INFINITE_CARDINALITY


@runtime_checkable
class _Dataset(Protocol):
    """The parts of `tf.data.Dataset` that this module uses without importing TensorFlow."""

    element_spec: object

    def as_numpy_iterator(self) -> Iterable[tuple[np.ndarray, np.ndarray]]: ...
    def cardinality(self) -> SupportsInt: ...


_Arrays = tuple[np.ndarray, np.ndarray]


def read_arrays(source: object, class_names: Sequence[str] | None = None) -> SourceData:
    """Check arrays of images and labels, or read data sets of them once into a temporary file."""
    given = _by_split(source)
    if class_names is None:
        class_names = _dataset_class_names(given)
    for part in given.values():
        if isinstance(part, _Dataset):
            _refuse_dataset(part)  # every data set, before the first is read
    parts = {}
    for split, part in given.items():
        x, labels, high = _read_dataset(part) if isinstance(part, _Dataset) else _validate(*part)
        if high <= 1:
            raise InputError(
                f"Expected pixels from 0 to 255. Received a maximum of {high}. Multiply by 255 first."
            )
        prefix = f"{split}/" if len(given) > 1 else ""
        parts[split] = Split(x, labels, [f"{prefix}{i}" for i in range(len(labels))])
    return SourceData(parts, _class_names(parts, class_names))


def _by_split(source: object) -> dict[str, _Dataset | _Arrays]:
    """Return the data set, or the images and labels, of each split."""
    if isinstance(source, Mapping):
        for name in source:
            if name not in SPLITS:
                raise unknown("split", name, SPLITS, hint=f"Expected {_FORMS}.")
        if "train" not in source:
            names = ", ".join(map(repr, source)) or "none"
            raise InputError(f"Expected images for 'train'. Received: {names}. Add the training images.")
        given = {name: source[name] for name in SPLITS if name in source}
    elif isinstance(source, _Dataset):
        given = {"train": source}
    else:
        given = _from_pair(source)
    return {name: part if isinstance(part, _Dataset) else _as_arrays(part) for name, part in given.items()}


def _from_pair(source: Any) -> dict[str, Any]:
    """Return (train, test) or (images, labels) by split."""
    try:
        first, second = source
    except (TypeError, ValueError):
        raise _unsupported(source) from None
    # In ((x, y), (x, y)) the second item holds arrays; in (images, labels) it holds numbers.
    nested = isinstance(second, (tuple, list)) and len(second) == 2 and np.ndim(second[0]) > 0
    if nested or isinstance(first, _Dataset) or isinstance(second, _Dataset):
        return {"train": first, "test": second}
    return {"train": source}


def _as_arrays(pair: Any) -> _Arrays:
    try:
        images, labels = pair
        return np.asarray(images), np.asarray(labels)
    except (TypeError, ValueError):
        raise _unsupported(pair) from None


def _unsupported(source: object) -> InputError:
    return InputError(
        f"Expected a folder, 'tfds:NAME', {_FORMS}. Received: {type(source).__name__}. If your images differ in size, "
        "no array can hold them: use a folder or a data set."
    )


def _dataset_class_names(given: Mapping[str, _Dataset | _Arrays]) -> Sequence[str] | None:
    """Return the class names that Keras attached to data sets; they must be equal in every split."""
    named = {
        split: list(names) for split, part in given.items() if (names := getattr(part, "class_names", None))
    }
    first = next(iter(named), "")
    for split, names in named.items():
        if names != named[first]:
            raise InputError(
                f"Expected the same class names in every split. Received: {', '.join(named[first])} in {first} and "
                f"{', '.join(names)} in {split}. Create both data sets with the same class_names."
            )
    return named.get(first)


def _class_names(parts: Mapping[str, Split], class_names: Sequence[str] | None) -> list[str]:
    highest = max(int(part.labels.max()) for part in parts.values())
    if class_names is None:  # at most one class per image, since a wrong label may be huge
        class_names = [str(n) for n in range(min(highest + 1, len(parts["train"])))]
    names = [str(name) for name in class_names]
    if len(set(names)) < len(names):
        raise InputError(f"Expected a different name for each class. Received: {', '.join(names)}.")
    if highest >= len(names):
        raise InputError(
            f"Expected labels from 0 to {len(names) - 1}, each with training images. Received a label {highest}. "
            "Number the classes from 0 on, without gaps."
        )
    return names


def _validate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return images, int64 labels of shape (N,) and the highest pixel value; raise if any is invalid."""
    if y.ndim == 2 and y.shape[1] == 1:  # as keras.datasets.cifar10 returns them
        y = y[:, 0]
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
        lowest = f" with a minimum of {y.min()}" if np.issubdtype(y.dtype, np.number) else ""
        raise InputError(
            f"Expected labels as whole numbers (int64) from 0. Received: {y.dtype}{lowest}. Number the classes "
            "from 0 on."
        )
    if not (np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating) or x.dtype == bool):
        raise InputError(f"Expected pixels as numbers from 0 to 255. Received: {x.dtype}.")
    low, high = x.min(), x.max()
    if not (low >= 0 and high <= 255):  # true for NaN, too
        raise InputError(
            f"Expected pixels from 0 to 255, all finite. Received: {low} to {high}. Rescale them."
        )
    return x, y.astype("int64"), high


def _read_dataset(dataset: _Dataset) -> tuple[TemporaryImages, np.ndarray, float]:
    """Read a data set once into a temporary file; return the same as `_validate`."""
    images, labels = TemporaryImages(), array("q")
    highest: float = 0
    with progress_bar(desc="reading", unit=" images", delay=2) as bar:
        for batch in dataset.as_numpy_iterator():
            x, y, high = _validate(*_as_batch(*map(np.asarray, batch)))
            for image in x if x.dtype == np.uint8 else np.rint(x).astype("uint8"):
                images.append(image)
            labels.extend(y.tolist())
            highest = max(highest, high)
            bar.update(len(y))
    if not labels:
        raise InputError("Expected a data set with at least one image. Received: an empty one.")
    return images, np.frombuffer(labels, "int64"), highest


def _refuse_dataset(dataset: _Dataset) -> None:
    """Raise if a data set does not hold pairs of (image, label), or does not end."""
    spec = dataset.element_spec
    if not (isinstance(spec, tuple) and [type(s).__name__ for s in spec] == ["TensorSpec", "TensorSpec"]):
        raise InputError(
            f"Expected a data set of (image, label), batched or not. Received elements {spec}. Convert them to pairs "
            "with dataset.map."
        )
    if int(dataset.cardinality()) == _INFINITE:
        raise InputError(
            "Expected a data set that ends. Received an infinite one. Remove its .repeat(), or limit it with .take(N)."
        )


def _as_batch(x: np.ndarray, y: np.ndarray) -> _Arrays:
    """Return an element as a batch; an unbatched image becomes a batch of one. Its label may have shape (1,)."""
    single = y.ndim == 0 or (y.shape == (1,) and x.ndim in (2, 3) and len(x) != 1)
    return (x[None], y.reshape(1)) if single else (x, y)
