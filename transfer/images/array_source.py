"""Read images in memory: arrays, and `tf.data.Dataset`s of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Protocol, SupportsInt, runtime_checkable
from unicodedata import normalize

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.streams import progress_bar
from transfer.common.tasks import MULTI, REGRESSION, SINGLE
from transfer.images.array_pixels import batch_problem, scale_problem, shape_problem, value_problem
from transfer.images.image_sequences import TemporaryImages
from transfer.images.label_forms import VALUE
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
    images, labels = {}, {}
    for split, part in given.items():
        read = _read_dataset(part, task) if isinstance(part, Dataset) else _checked(*part, task)
        x, labels[split], highest = read
        if problem := scale_problem(highest):
            raise InputError(f"Expected pixels from 0 to 255. Received {problem}.")
        images[split] = x
    found = _task_of(labels)
    names, numbers = _number(labels, class_names) if found == SINGLE else _named(labels, class_names, found)
    parts = {}
    for split, x in images.items():
        prefix = f"{split}/" if len(given) > 1 else ""
        parts[split] = Split(x, numbers[split], [f"{prefix}{i}" for i in range(len(numbers[split]))])
    return SourceData(parts, names, task=found)


def _task_of(labels: Mapping[str, np.ndarray]) -> str:
    """Return the task of labels; raise if it differs between splits."""
    found = {
        split: MULTI if part.ndim == 2 else REGRESSION if part.dtype.kind == "f" else SINGLE
        for split, part in labels.items()
    }
    if len({*found.values()}) > 1:
        received = ", ".join(f"{task} in {split}" for split, task in found.items())
        raise InputError(
            f"Expected the same kind of labels in every split. Received: {received}. State the task, such as "
            'task="multi".'
        )
    return next(iter(found.values()))


def _named(
    labels: Mapping[str, np.ndarray], class_names: Sequence[str] | None, task: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of several labels, or of the number of a regression, and the labels as they are."""
    counts = {split: part.shape[1] if task == MULTI else 1 for split, part in labels.items()}
    count = next(iter(counts.values()))
    names = (
        [VALUE] if class_names is None and task == REGRESSION else [*map(str, class_names or range(count))]
    )
    if {*counts.values()} != {len(names)} or len({*names}) < len(names):
        received = ", ".join(f"{number} in {split}" for split, number in counts.items())
        raise InputError(
            f"Expected a different name for each of the labels. Received: {len(names)} names, and labels: {received}. "
            "Pass one name per column of the labels."
        )
    return names, dict(labels)


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
    try:
        if isinstance(images, (list, tuple)) and len({np.shape(image) for image in images}) > 1:
            return [np.asarray(image) for image in images], np.asarray(labels)
        return np.asarray(images), np.asarray(labels)
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


def _number(
    labels: Mapping[str, np.ndarray], class_names: Sequence[str] | None
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the class names and the labels as positions in them. Without names, the labels are the names."""
    if len({part.dtype.kind for part in labels.values()}) > 1:
        raise InputError(
            "Expected the same kind of labels in every split. Received numbers and names. Use one kind."
        )
    values = np.unique(np.concatenate([*labels.values()]))
    texts = [str(value) for value in values.tolist()]
    if class_names is None:
        return texts, {split: np.searchsorted(values, part) for split, part in labels.items()}
    if isinstance(class_names, (Mapping, Set)):  # a set has no order
        advice = "Pass its values." if isinstance(class_names, Mapping) else "Pass a list."
        raise InputError(
            "Expected class_names as a list, in the order of the labels. Received: a "
            f"{type(class_names).__name__}. {advice}"
        )
    names = [str(name) for name in class_names]
    if len(set(names)) < len(names):
        raise InputError(f"Expected a different name for each class. Received: {', '.join(names)}.")
    if values.dtype.kind == "U":
        if unknown_names := [text for text in texts if text not in names]:
            raise unknown(
                "class", unknown_names[0], names, hint="It is in the labels but not in class_names."
            )
        positions = np.array([names.index(text) for text in texts], "int64")
        return names, {split: positions[np.searchsorted(values, part)] for split, part in labels.items()}
    if values[-1] >= len(names):
        raise InputError(
            f"Expected labels from 0 to {len(names) - 1}, one per class name. Received a label {values[-1]}. "
            "Number the classes from 0 on, without gaps."
        )
    return names, dict(labels)


def labels_as_names(labels: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Return the class name that each label of arrays means: the label itself, or the name at its position."""
    are_positions = all(text.isdecimal() and int(text) < len(class_names) for text in labels)
    at_position = [class_names[int(text)] for text in labels] if are_positions else [*labels]
    if are_positions and set(labels) <= {*class_names} and at_position != [*labels]:
        raise InputError(
            f"Expected labels with one meaning. Received: {', '.join(labels)}, which may be class names or positions "
            f"in {', '.join(class_names)}. Use a folder or a list, which hold names."
        )
    return at_position


def _checked(x: Any, y: np.ndarray, task: str) -> tuple[Any, np.ndarray, float]:
    """Return images, labels of a task and the highest pixel value; raise if any is invalid."""
    return x, _as_labels(y, len(x), task), _highest(x)


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


def _as_labels(y: np.ndarray, count: int, task: str = "auto") -> np.ndarray:
    """Return class numbers as int64 or text, several labels as int8 of shape (N, K), or numbers as float64."""
    if y.ndim == 2 and y.shape[1] == 1 and task != MULTI:  # as keras.datasets.cifar10 returns them
        y = y[:, 0]
    if y.ndim == 2 and len(y) == count and y.dtype.kind in "buif":
        one_hot = np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()
        if task == MULTI or (task == "auto" and not one_hot):
            return _as_columns(y)
        if not one_hot:
            raise InputError(
                "Expected one label per image, or one-hot labels with a single 1 in each row. Received: labels of "
                f"shape {y.shape} with other values. Choose one class per image, such as by argmax(axis=-1). For "
                'several labels per image, use task="multi".'
            )
        y = y.argmax(axis=1)
    if y.shape != (count,):
        raise InputError(
            f"Expected one label per image. Received: {count} images with labels of shape {y.shape}."
        )
    if task == REGRESSION and y.dtype.kind in "buif":
        return _as_numbers(y)
    if y.dtype.kind in "OSU":
        return _as_names(y.tolist())
    if y.dtype.kind not in "buif" or not (y >= 0).all() or (y != np.floor(y)).any():
        lowest = f" with a minimum of {y.min()}" if y.dtype.kind in "if" else ""
        raise InputError(
            f"Expected labels as whole numbers from 0, or as class names. Received: {y.dtype}{lowest}. Number the "
            'classes from 0 on. For numbers such as ages or weights, use task="regression".'
        )
    return y.astype("int64")


def _as_columns(y: np.ndarray) -> np.ndarray:
    """Return several labels per image, 0 or 1, as int8 of shape (N, K)."""
    if not np.isin(y, (0, 1)).all():
        raise InputError(
            "Expected 0 or 1 in each column of labels. Received other values, from "
            f"{np.nanmin(y):g} to {np.nanmax(y):g}. Write 1 for each label that an image has."
        )
    return y.astype("int8")


def _as_numbers(y: np.ndarray) -> np.ndarray:
    """Return the numbers of a regression as float64."""
    if not np.isfinite(y).all():
        raise InputError(
            f"Expected a finite number as the label of each image. Received NaN or infinity in "
            f"{np.count_nonzero(~np.isfinite(y))} of {len(y)} labels. Leave these images out."
        )
    return y.astype("float64")


def _as_names(labels: list[Any]) -> np.ndarray:
    """Return labels as text, or as int64 if all are numbers; raise for missing ones, and for both kinds at once."""
    texts = [label.decode("utf-8", "replace") if isinstance(label, bytes) else label for label in labels]
    if all(type(text) is int for text in texts):
        return _as_labels(np.array(texts, "int64"), len(texts))
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"Expected a class name as the label of each image. Received: {text!r} among the labels. Correct it."
            )
    return np.array([normalize("NFC", text.strip()) for text in texts])


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
    return images, _as_labels(np.concatenate(labels), len(images), task), highest


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
