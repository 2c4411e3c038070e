"""The models that `fit` trained or `load_run` loaded in this process, with their classes and images."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np

from transfer.cases.decisions import find_decision, record_decision
from transfer.common.errors import InputError
from transfer.common.tasks import ORDINAL, SINGLE
from transfer.frozen.extraction import input_size
from transfer.images.datasets import ImageData, as_text, check_data, load_test
from transfer.images.decoding import RESIZES
from transfer.images.pixel_range import PixelRange
from transfer.networks.arguments import check_classifier


@dataclass(frozen=True)
class TrainedModel:
    """A model with the properties of the training data that its predictions need."""

    model: keras.Model
    class_names: tuple[str, ...]
    # Height and width in pixels.
    image_size: tuple[int, int]
    # How images are resized: one of `decoding.RESIZES`.
    resize: str
    # The range of images with more than 8 bits per channel.
    pixel_range: PixelRange | None
    # Returns the digests of the training and validation images; reading those of a large run takes seconds.
    read_digests: Callable[[], frozenset[str]]
    # Returns the data that `fit` got, if they are still in memory.
    find_data: Callable[[], ImageData | None] = lambda: None
    # The rule that decides ordered classes, of a run or of predictions without the training images; None if unknown.
    rule: str | None = None
    # What the labels are: one of `tasks.TASKS`, except "auto".
    task: str = SINGLE
    # Threshold of each label above which it is predicted, for the task "multi"; None if unknown.
    thresholds: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(self.model.name)

    def data(self, source: Any = None) -> ImageData:
        """Return the data that `fit` got, or other images as a test set; raise if there are none."""
        if source is not None:
            return load_test(
                source,
                self.class_names,
                image_size=self.image_size,
                resize=self.resize,
                pixel_range=self.pixel_range,
                task=self.task,
            )
        data = self.find_data()
        if data is None:
            raise InputError(
                f"The images of the model {self.name!r} are no longer in memory. Pass them: data=data."
            )
        return data


_TRAINED: weakref.WeakKeyDictionary[keras.Model, dict[str, Any]] = weakref.WeakKeyDictionary()


def record_data(model: keras.Model, data: ImageData, thresholds: Sequence[float] = ()) -> None:
    """Record the class names, the task and the images that a model is trained on, and the thresholds of labels."""
    digests = frozenset([*data.train.digests, *data.val.digests])
    size, form = input_size(model, data), (data.train.resize, data.train.pixel_range)
    # The registry does not keep the images in memory.
    known = np.array(thresholds) if len(thresholds) else None
    options: dict[str, Any] = {"task": data.task, "thresholds": known}
    record(TrainedModel(model, data.class_names, size, *form, lambda: digests, weakref.ref(data), **options))


def record(trained: TrainedModel) -> None:
    """Record a model with the properties of its training data."""
    # A value that refers to its key would keep the model in memory.
    values = {field.name: getattr(trained, field.name) for field in fields(trained)}
    _TRAINED[values.pop("model")] = values


def record_rule(model: keras.Model, rule: str | None) -> None:
    """Record the rule that decides the ordered classes of a recorded model."""
    _TRAINED[model]["rule"] = rule


def find_trained(model: keras.Model) -> TrainedModel | None:
    """Return a model with its class names, or None if they are unknown."""
    return TrainedModel(model, **_TRAINED[model]) if model in _TRAINED else None


@contextlib.contextmanager
def unrecorded(model: keras.Model) -> Iterator[None]:
    """Forget a training of this model that takes place within a `with` block."""
    before, decision = _TRAINED.get(model), find_decision(model)
    try:
        yield
    finally:
        if before is None:
            _TRAINED.pop(model, None)
        else:
            _TRAINED[model] = before
        if decision is not None:
            record_decision(model, decision)


def trained_model(
    model: keras.Model, class_names: Sequence[str] | None = None, *, call: str = "predict(model, images"
) -> TrainedModel:
    """Return a model with its class names; raise an error if they are unknown, or if others are given."""
    trained = find_trained(model)
    if trained is not None:
        if class_names is not None:
            check_same_names(class_names, trained.class_names)
        return trained
    if class_names is None:
        raise InputError(
            "Expected a run, or a model that fit trained or load_run loaded in this process. Received the model "
            f"{model.name!r}, whose class names are unknown. Load the run that holds it: transfer.load_run(folder). Or "
            f"give the class names in the order of its outputs: {call}, class_names=[...])."
        )
    check_classifier(model, f"{call})")
    names, (height, width) = checked_names(class_names, model.output_shape[-1]), model.input_shape[1:3]
    if height is None or width is None:
        raise InputError(
            f"Expected a model with a fixed image size. Received: {model.name!r}, which takes any size. Give it an "
            "input of one size, such as keras.Input((224, 224, 3))."
        )
    return TrainedModel(model, names, (height, width), RESIZES[0], None, frozenset)


def checked_names(class_names: Any, count: int) -> tuple[str, ...]:
    """Return the class names that a user gives for a model with `count` outputs."""
    is_list = isinstance(class_names, Iterable) and not isinstance(class_names, str | bytes | Mapping | Set)
    names = tuple(class_names) if is_list else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"Expected class names as a list, such as ['cat', 'dog']. Received: {class_names!r}. List them in the "
            "order of the outputs of the model."
        )
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or len(names) != count:
        received = f"{twice[0]!r} more than once" if twice else f"{len(names)}"
        raise InputError(
            f"Expected {count} different class names, one per output of the model. Received: {received}."
        )
    return tuple(map(str, names))


def check_same_names(class_names: Any, known: tuple[str, ...]) -> None:
    """Raise if a user gives class names that are not those of the training."""
    if checked_names(class_names, len(known)) != known:
        raise InputError(
            f"Expected the class names of the training: {', '.join(known)}. Received: {', '.join(class_names)}. Leave "
            "out class_names: the model has its own."
        )


def count_seen(model: keras.Model, data: ImageData) -> int:
    """Return how many test images `fit` trained the model on, in other splits; raise if the classes differ."""
    trained = find_trained(model)
    if trained is None:
        return 0
    if _form(data.task) != _form(trained.task):
        raise InputError(
            f"Expected data with the task {trained.task}, as in the training. Received: the task {data.task}. Load "
            f"them with task={trained.task!r}."
        )
    if data.class_names != trained.class_names:
        raise InputError(
            f"Expected data with the classes of the model: {', '.join(trained.class_names)}. Received: "
            f"{', '.join(data.class_names)}. Pass the images themselves, such as their folder: their classes are found "
            "by name."
        )
    digests = trained.read_digests()
    if digests == {*data.train.digests, *data.val.digests}:  # the report of these data has their duplicates
        return 0
    return sum(digest in digests for digest in data.test.digests)


def _form(task: str) -> str:
    """Return the task, for which ordered classes are single labels."""
    return SINGLE if task == ORDINAL else task


def as_test_data(model: keras.Model, data: Any) -> tuple[ImageData, int]:
    """Load labeled images as the test set of a model; also return how many of them `fit` trained on."""
    trained = find_trained(model)
    if trained is not None:
        loaded = trained.data(data)
        digests = trained.read_digests()
        return loaded, sum(digest in digests for digest in loaded.test.digests)
    if as_text(data) is not None:  # folders and lists hold class names
        check_data(data, "evaluate(model, data)")
    return load_test(data, [str(i) for i in range(model.output_shape[-1])]), 0
