"""The models that `fit` trained or `load_run` loaded in this process, with their classes and images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import keras

from transfer.cases.decisions import find_decision, record_decision
from transfer.common.errors import InputError
from transfer.frozen.extraction import input_size
from transfer.images.datasets import ImageData, as_text, check_data, load_test
from transfer.images.pixel_range import PixelRange


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


_TRAINED: WeakKeyDictionary[keras.Model, dict[str, Any]] = WeakKeyDictionary()


def record_data(model: keras.Model, data: ImageData) -> None:
    """Record the class names and the images that a model is trained on."""
    digests = frozenset([*data.train.digests, *data.val.digests])
    size, form = input_size(model, data), (data.train.resize, data.train.pixel_range)
    record(TrainedModel(model, data.class_names, size, *form, lambda: digests))


def record(trained: TrainedModel) -> None:
    """Record a model with the properties of its training data."""
    # A value that refers to its key would keep the model in memory.
    values = {field.name: getattr(trained, field.name) for field in fields(trained)}
    _TRAINED[values.pop("model")] = values


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


def trained_model(model: keras.Model) -> TrainedModel:
    """Return a model with its class names; raise an error if they are unknown."""
    trained = find_trained(model)
    if trained is None:
        raise InputError(
            "Expected a run, or a model that fit trained or load_run loaded in this process. Received the model "
            f"{model.name!r}, whose class names are unknown. Load the run that holds it: transfer.load_run(folder)."
        )
    return trained


def count_seen(model: keras.Model, data: ImageData) -> int:
    """Return how many test images `fit` trained the model on, in other splits; raise if the classes differ."""
    trained = find_trained(model)
    if trained is None:
        return 0
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


def as_test_data(model: keras.Model, data: Any) -> tuple[ImageData, int]:
    """Load labeled images as the test set of a model; also return how many of them `fit` trained on."""
    trained = find_trained(model)
    if trained is not None:
        loaded = load_test(
            data,
            trained.class_names,
            image_size=trained.image_size,
            resize=trained.resize,
            pixel_range=trained.pixel_range,
        )
        digests = trained.read_digests()
        return loaded, sum(digest in digests for digest in loaded.test.digests)
    if as_text(data) is not None:  # folders and lists hold class names
        check_data(data, "evaluate(model, data)")
    return load_test(data, [str(i) for i in range(model.output_shape[-1])]), 0
