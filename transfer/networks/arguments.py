"""Checks of arguments: models, and what network constructors have in common with those of `keras.applications`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from transfer.common.errors import InputError, unknown
from transfer.common.whole_numbers import at_least

InputShape = tuple[int | None, int | None, int]
Weights = str | os.PathLike[str] | None
Activation = str | Callable | None


@dataclass(frozen=True)
class Top:
    """The end of a network: a classifier, or a pooling of the last feature map."""

    include_top: bool
    pooling: str | None
    classes: int
    activation: Activation

    def check(self, weights: Weights, pretrained: str, num_classes: int) -> None:
        """Raise if an argument is invalid; the weights named `pretrained` have that number of classes."""
        if not self.include_top:
            if self.pooling not in (None, "avg", "max"):
                raise unknown("pooling", self.pooling, ["avg", "max"], hint="None is possible too.")
        elif not at_least(1, self.classes):
            raise InputError(f"Expected classes as a whole number of at least 1. Received: {self.classes!r}.")
        elif weights == pretrained and self.classes != num_classes:
            raise InputError(
                f"The classifier of weights={pretrained!r} has {num_classes} classes. Received: "
                f"classes={self.classes}. Leave classes out, or set include_top=False and attach your own head."
            )

    def pooled(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Pool the last feature map of a network without a classifier."""
        if self.pooling is None:
            return x
        pool = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}[
            self.pooling
        ]
        return pool(name=f"{self.pooling}_pool")(x)


def check_input_shape(shape: Any, smallest: int, *, open_sizes: bool, channels: int | None = None) -> None:
    """Raise unless a shape is (height, width, channels); `open_sizes` allows None as height and width."""
    fits = isinstance(shape, tuple | list) and len(shape) == 3
    fits = fits and all(open_sizes if n is None else at_least(smallest, n) for n in shape[:2])
    if not fits or not at_least(1, shape[2]) or channels not in (None, shape[2]):
        raise InputError(
            f"Expected input_shape=(height, width, channels) with height and width of at least {smallest} pixels"
            f"{' or None' if open_sizes else ', and None only if include_top=False'}"
            f"{f', and {channels} channels' if channels else ''}. Received: {shape!r}. Enlarge small images, or leave "
            "input_shape out."
        )


def check_data_format() -> None:
    """Raise unless Keras puts the channels of images last."""
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            "Expected the image data format 'channels_last'. Received: 'channels_first'. "
            "Call keras.config.set_image_data_format('channels_last') first, or change it in keras.json."
        )


def check_network(base: Any) -> None:
    """Raise unless a base network is a Keras model."""
    if not isinstance(base, keras.Model):
        raise InputError(
            f"Expected a keras.Model as base. Received: {type(base).__name__}. Load one with load_backbone(name)."
        )


def check_classifier(model: Any, call: str) -> None:
    """Raise unless a model takes color images and returns a value per class; `call` shows the order of arguments."""
    if not isinstance(model, keras.Model):
        if isinstance(getattr(model, "model", None), keras.Model):
            advice = "Pass its model: run.model."
        elif isinstance(model, str | os.PathLike):
            advice = "Load it first: transfer.load_run(path).model."
        else:
            advice = "Build a model first, such as by transfer.small_similar(base, num_classes)."
        received = (
            "None" if model is None else f"{model!r}" if isinstance(model, str) else type(model).__name__
        )
        raise InputError(
            f"Expected a Keras model as the first argument of {call}. Received: {received}. {advice}"
        )
    try:
        taken, returned = model.input_shape, model.output_shape
    except (AttributeError, ValueError):
        raise InputError(
            f"Expected a model with a known input shape. Received: {model.name!r}, which has none. Add a keras.Input "
            "as its first layer, or write it with the functional API."
        ) from None
    images = isinstance(taken, tuple) and len(taken) == 4 and taken[-1] == 3
    if not images or not isinstance(returned, tuple) or len(returned) != 2:
        raise InputError(
            f"Expected a model from images of shape (batch, height, width, 3) to probabilities of shape (batch, "
            f"classes). Received: {model.name!r}, from {taken} to {returned}. Build one with transfer.build."
        )
