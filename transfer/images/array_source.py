"""Read images in memory: arrays, and `tf.data.Dataset`s of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsInt, runtime_checkable

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.streams import progress_bar
from transfer.images.array_labels import as_labels, as_sets, named_labels, sets_as_columns, task_of_labels
from transfer.images.array_pixels import batch_problem, scale_problem, shape_problem, value_problem
from transfer.images.image_sequences import TemporaryImages
from transfer.images.split_words import SPLITS
from transfer.images.splitting import SourceData, Split

_FORMS = (
    "(images, labels), a tf.data.Dataset of (image, label), a pair of either for train and test, or a dict of them "
    "with keys from 'train', 'val' and 'test'"
)
_INFINITE = -1  # tf.data.INFINITE_CARDINALITY


@runtime_checkable
class Dataset(Protocol):
    """The parts of `tf.data.Dataset` that this package uses without importing TensorFlow."""

    element_spec: object

    def as_numpy_iterator(self) -> Iterable[Any]:
        """Return an iterator over the elements as arrays."""

    def cardinality(self) -> SupportsInt:
        """Return the number of elements."""


_Arrays = tuple[Any, Any]


def read_arrays(source: object, class_names: Sequence[str] | None = None, task: str = "auto") -> SourceData:
    """Check arrays of images and labels, or read data sets of them once into a temporary file."""
    given = _by_split(source)
    if class_names is None:
        class_names = _dataset_class_names(given)
    for part in given.values():
        if isinstance(part, Dataset):
            _refuse_dataset(part)  # every data set, before the first is read
    given, class_names = sets_as_columns(given, class_names, task)
    images, labels = {}, {}
    for split, part in given.items():
        read = _read_dataset(part, task) if isinstance(part, Dataset) else _checked(*part, task)
        x, labels[split], highest = read
        if problem := scale_problem(highest):
            raise InputError(f"Expected pixels from 0 to 255. Received {problem}.")
        images[split] = x
    found = task_of_labels(labels)
    names, numbers = named_labels(labels, class_names, found)
    parts = {}
    for split, x in images.items():
        prefix = f"{split}/" if len(given) > 1 else ""
        parts[split] = Split(x, numbers[split], [f"{prefix}{i}" for i in range(len(numbers[split]))])
    return SourceData(parts, names, task=found)


def _by_split(source: object) -> dict[str, Dataset | _Arrays]:
    """Return the data set, or the images and labels, of each split."""
    if isinstance(source, Mapping):
        for name in source:
            if name not in SPLITS:
                raise unknown("split", name, SPLITS, hint=f"Expected {_FORMS}.")
        if "train" not in source:
            names = ", ".join(map(repr, source)) or "none"
            raise InputError(f"Expected images for 'train'. Received: {names}. Add the training images.")
        given = {name: source[name] for name in SPLITS if name in source}
    elif isinstance(source, Dataset):
        given = {"train": source}
    else:
        given = _from_pair(source)
    return {name: part if isinstance(part, Dataset) else _as_pair(part) for name, part in given.items()}


def _from_pair(source: Any) -> dict[str, Any]:
    """Return (train, test) or (images, labels) by split."""
    items = source if isinstance(source, (tuple, list)) else ()
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        raise InputError(
            "Expected a folder, or (images, labels). Received a list of paths. Pass one folder, with train and test in "
            "it. Or write the paths and labels of images to a CSV file with the columns path and label, and pass its "
            "path."
        )
    if len(items) == 4 and sorted(map(rank_of, items))[-2] > 2:
        raise InputError(
            "Expected ((x_train, y_train), (x_test, y_test)). Received the four arrays one by one. Group them in pairs."
        )
    if len(items) != 2:
        raise _unsupported(source)
    first, second = items
    # In ((x, y), (x, y)) the second item holds arrays; in (images, labels) it holds numbers or words.
    nested = isinstance(second, (tuple, list)) and len(second) == 2 and rank_of(second[0]) > 2
    if nested or isinstance(first, Dataset) or isinstance(second, Dataset):
        return {"train": first, "test": second}
    if 0 < rank_of(first) <= 2 < rank_of(second):
        raise InputError("Expected (images, labels). Received the labels first. Swap them.")
    return {"train": source}


def rank_of(value: Any) -> int:
    """Return the number of dimensions of an array, a tensor or nested lists."""
    if isinstance(value, (list, tuple)):
        return 1 + rank_of(value[0]) if len(value) else 1
    return len(getattr(value, "shape", ()))


def _as_pair(pair: Any) -> _Arrays:
    """Return images and labels as arrays; images of different sizes become a list of arrays."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise _unsupported(pair)
    images, labels = pair
    if isinstance(images, np.ndarray) and images.dtype.kind == "O" and images.ndim == 1:  # of different sizes
        images = list(images)
    if isinstance(images, (list, tuple)) and (
        kinds := {type(image).__name__ for image in images if not rank_of(image)}
    ):
        raise InputError(
            f"Expected arrays of pixels. Received a list of {', '.join(sorted(kinds))}. Write the paths and labels of "
            "the files to a CSV file with the columns path and label, and pass the path of that file."
        )
    sets = as_sets(labels)
    try:
        if isinstance(images, (list, tuple)) and len({np.shape(image) for image in images}) > 1:
            images = [np.asarray(image) for image in images]
        else:
            images = np.asarray(images)
        return images, sets or np.asarray(labels)
    except (TypeError, ValueError):
        raise _unsupported(pair) from None


def _unsupported(source: object) -> InputError:
    if hasattr(source, "columns") or isinstance(source, Mapping):
        advice = "Write its columns path and label to a CSV file, and pass the path of that file."
    elif hasattr(source, "shape") or isinstance(source, (list, tuple)):
        advice = "Pass the images together with their labels."
    else:
        advice = "Pass one of these."
    return InputError(
        f"Expected a folder, a list in a CSV file, 'tfds:NAME', {_FORMS}. "
        f"Received: {'None' if source is None else type(source).__name__}. {advice}"
    )


def _dataset_class_names(given: Mapping[str, Dataset | _Arrays]) -> Sequence[str] | None:
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


def _checked(x: Any, y: np.ndarray, task: str) -> tuple[Any, np.ndarray, float]:
    """Return images, labels of a task and the highest pixel value; raise if any is invalid."""
    return x, as_labels(y, len(x), task), _highest(x)


def _highest(x: Any) -> float:
    """Return the highest pixel value of images; raise if they are invalid."""
    if isinstance(x, list):  # of different sizes
        if problem := next(filter(None, (shape_problem(image.shape) for image in x)), ""):
            raise InputError(f"Expected images of shape (H, W) or (H, W, 3). Received {problem}.")
    elif problem := batch_problem(x.shape):
        raise InputError(problem)
    for part in x if isinstance(x, list) else [x]:
        if problem := value_problem(part):
            raise InputError(f"Expected pixels from 0 to 255, all finite. Received {problem}.")
    return float(max(part.max() for part in x) if isinstance(x, list) else x.max())


def _read_dataset(dataset: Dataset, task: str) -> tuple[TemporaryImages, np.ndarray, float]:
    """Read a data set once into a temporary file; return the same as `_checked`."""
    images, labels = TemporaryImages(), []
    highest: float = 0
    with progress_bar(desc="reading", unit=" images", delay=2) as bar:
        for batch in dataset.as_numpy_iterator():
            x, y = _as_batch(*map(np.asarray, batch))
            highest = max(highest, _highest(x))
            for image in x if x.dtype == np.uint8 else np.rint(x).astype("uint8"):
                images.append(image)
            labels.append(y)
            bar.update(len(y))
    if not labels:
        raise InputError("Expected a data set with at least one image. Received: an empty one.")
    # Batches of several labels may look one-hot, so that the labels are checked together.
    return images, as_labels(np.concatenate(labels), len(images), task), highest


def _refuse_dataset(dataset: Dataset) -> None:
    """Raise if a data set does not hold pairs of (image, label), or does not end."""
    spec = dataset.element_spec
    if not (isinstance(spec, tuple) and [type(s).__name__ for s in spec] == ["TensorSpec", "TensorSpec"]):
        raise InputError(
            f"Expected a data set of (image, label), batched or not. Received elements {spec}. Convert them to pairs "
            "with dataset.map."
        )
    refuse_endless(dataset)


def refuse_endless(dataset: Dataset) -> None:
    """Raise if a data set does not end."""
    if int(dataset.cardinality()) == _INFINITE:
        raise InputError(
            "Expected a data set that ends. Received an infinite one. Remove its .repeat(), or limit it with .take(N)."
        )


def _as_batch(x: np.ndarray, y: np.ndarray) -> _Arrays:
    """Return an element as a batch; an unbatched image becomes a batch of one with a label of shape (1, ...)."""
    # A label may be one-hot. A batch of gray images has as many labels as images, and not just 3 or 4 columns.
    single = (
        y.ndim == 0
        or x.ndim == 2
        or (x.ndim == 3 and y.ndim == 1 and (len(y) != len(x) or x.shape[-1] in (3, 4)))
    )
    return (x[None], y[None]) if single else (x, y)
