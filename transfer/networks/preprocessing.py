"""Preprocessing of images: one table of its kinds, and the layer that each network needs in front."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.networks.families import family_of

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, divided by 255
_STD = (0.229, 0.224, 0.225)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LAYER = "preprocess_scale"  # a model with a layer of this name takes raw images

PREPROCESSING = {
    "inside": "none, because the network scales raw pixels itself",
    "efficientnet": "none, except the scaling that Keras omits if ImageNet weights come from a file",
    "lite": "(x - 127) / 128",
    "tf": "x / 127.5 - 1",
    "torch": "x / 255, minus ImageNet's mean, divided by its standard deviation",
    "caffe": "RGB to BGR, minus ImageNet's mean",
    "clip": "x / 255, minus CLIP's mean, divided by its standard deviation",
    "unit": "x / 255",
    "none": "none",
}
_HELP = "Possible values: " + "; ".join(f"{key}: {text}" for key, text in PREPROCESSING.items()) + "."


def scaling(scale: Any = None, offset: Any = None) -> keras.layers.Rescaling:
    """Return the layer `x * scale + offset`, by which a network is known to take raw images."""
    return keras.layers.Rescaling(
        1.0 if scale is None else scale, 0.0 if offset is None else offset, dtype="float32", name=_LAYER
    )


def preprocessing_of(model: keras.Model, preprocessing: str | None = None) -> Callable[[Any], Any]:
    """Return the layer or function that turns raw RGB images, 0 to 255, into a network's input."""
    scales_itself = any(layer.name == _LAYER for layer in model.layers)
    key = preprocessing or ("none" if scales_itself else _kind_of(model))
    if key not in PREPROCESSING:
        raise unknown("preprocessing", key, PREPROCESSING, hint=_HELP)
    if scales_itself and key not in ("none", "inside"):
        raise InputError(
            f"{model.name!r} scales raw images itself, in its layer {_LAYER!r}. Leave out preprocessing={key!r}."
        )
    scale = partial(keras.layers.Rescaling, dtype="float32", name=_LAYER)
    if key == "efficientnet" and _lacks_second_scaling(model):
        factor = np.sqrt(1.0 / np.array(_STD))
        offset = 255.0 * np.array(_MEAN) * (1.0 - factor)
        return scale(factor.tolist(), offset.tolist())
    if key == "lite":
        return scale(1 / 128.0, -127 / 128.0)
    if key == "tf":
        return scale(1 / 127.5, -1.0)
    if key == "unit":
        return scale(1 / 255.0)
    if key in ("torch", "clip"):
        means, deviations = (_MEAN, _STD) if key == "torch" else (_CLIP_MEAN, _CLIP_STD)
        mean, variance = [255.0 * m for m in means], [(255.0 * s) ** 2 for s in deviations]
        return keras.layers.Normalization(mean=mean, variance=variance, dtype="float32", name=_LAYER)
    if key == "caffe":
        shift = scale(1.0, [-103.939, -116.779, -123.68])
        return lambda raw: shift(keras.ops.flip(raw, axis=-1))
    return lambda raw: raw


def _kind_of(model: keras.Model) -> str:
    """Return the preprocessing of a network's family; raise if it is unknown or was switched off."""
    family = family_of(model)
    if family is None:
        raise InputError(
            f"The preprocessing of {model.name!r} is unknown, because it is not a known network of Keras Applications "
            f"or KerasHub. Set it by --preprocessing (in Python: preprocessing=...). {_HELP}"
        )
    scaled = any(isinstance(x, keras.layers.Rescaling | keras.layers.Normalization) for x in model.layers)
    if family.preprocessing == "inside" and not scaled:
        raise InputError(
            f"{model.name!r} was built with include_preprocessing=False. Leave that out, or set the preprocessing by "
            f"--preprocessing (in Python: preprocessing=...). {_HELP}"
        )
    return family.preprocessing


def _lacks_second_scaling(model: keras.Model) -> bool:
    """Return whether ImageNet weights came from a file, without the second scaling that Keras adds to its own."""
    scalings = [layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling)]
    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.Normalization)]
    if len(scalings) > 1 or not normalizations:
        return False
    mean = np.ravel(keras.ops.convert_to_numpy(normalizations[0].mean))
    return mean.shape == (3,) and bool(np.allclose(mean, _MEAN, atol=1e-3))
