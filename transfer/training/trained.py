"""The models that `fit` trained in this process, with the class names and the form of their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras

from transfer.common.errors import InputError
from transfer.frozen.extraction import input_size
from transfer.images.datasets import ImageData, as_text, check_data, load_test
from transfer.images.pixel_range import PixelRange
from transfer.images.splitting import Split


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
    # Digests of the training and validation images.
    digests: frozenset[str]


_TRAINED: WeakKeyDictionary[keras.Model, dict[str, Any]] = WeakKeyDictionary()


def record_data(model: keras.Model, data: ImageData) -> None:
    """Record the class names and the images that a model is trained on."""
    # A value that refers to its key would keep the model in memory.
    _TRAINED[model] = {
        "class_names": data.class_names,
        "image_size": input_size(model, data),
        "resize": data.train.resize,
        "pixel_range": data.train.pixel_range,
        "digests": frozenset([*data.train.digests, *data.val.digests]),
    }


def find_trained(model: keras.Model) -> TrainedModel | None:
    """Return a model with its class names, or None if `fit` did not train it in this process."""
    return TrainedModel(model, **_TRAINED[model]) if model in _TRAINED else None


def trained_model(model: keras.Model) -> TrainedModel:
    """Return a model with its class names; raise an error if `fit` did not train it in this process."""
    trained = find_trained(model)
    if trained is None:
        raise InputError(
            f"Expected a run, or a model that fit trained in this process. Received the model {model.name!r}, whose "
            "class names are unknown. Load the run that holds it: transfer.load_run(folder)."
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
    if trained.digests == {
        *data.train.digests,
        *data.val.digests,
    }:  # the report of these data has their duplicates
        return 0
    return sum(digest in trained.digests for digest in data.test.digests)


def as_test_data(model: keras.Model, data: Any) -> tuple[ImageData, int]:
    """Load labeled images as the test set of a model; also return how many of them `fit` trained on."""
    if isinstance(data, Split):
        check_data(data, "evaluate(model, data)")
    trained = find_trained(model)
    if trained is not None:
        loaded = load_test(
            data,
            trained.class_names,
            image_size=trained.image_size,
            resize=trained.resize,
            pixel_range=trained.pixel_range,
        )
        return loaded, sum(digest in trained.digests for digest in loaded.test.digests)
    if as_text(data) is not None:  # folders and lists hold class names
        check_data(data, "evaluate(model, data)")
    return load_test(data, [str(i) for i in range(model.output_shape[-1])]), 0
