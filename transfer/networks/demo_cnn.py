"""The demonstration network: three convolutional and three fully connected layers, as lessons draw them.

It is small enough to be trained, cut and retrained in seconds without a GPU. Its weights were pre-trained on made-up
shapes (see `shapes`) and come with this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from transfer.common.errors import InputError, one_line, unknown
from transfer.common.files import replacing

WEIGHTS = Path(__file__).parent / "weights" / "demo_cnn.npz"
"""What `weights="shapes"` loads."""

IMAGE_SIZE = 48
"""Height and width in pixels of the images that the weights were pre-trained on."""

NUM_SHAPES = 40
"""Classes that the weights were pre-trained on (`transfer.SHAPES`)."""

SEES = {
    "conv1": "edges",
    "conv2": "shapes",
    "conv3": "higher-level features",
    "fc1": "",
    "fc2": "",
    "predictions": "classes",
}
"""Layer -> what the lesson says that it sees, in order."""

_SMALLEST = 16  # three strides of two, and a map that is left


def DemoCNN(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "shapes",
    *,
    input_tensor: Any = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    pooling: str | None = None,
    classes: int = NUM_SHAPES,
    classifier_activation: str | Callable | None = "softmax",
    name: str = "democnn",
) -> keras.Model:
    """Build the demonstration network: `conv1`, `conv2`, `conv3`, `fc1`, `fc2`, `predictions`.

    The convolutions end in ReLU, each is followed by a maximum over 3 x 3 pixels at every second one, and `conv1` looks
    at 7 x 7 pixels at every second one: the manner of AlexNet (Krizhevsky et al. 2012), in small. Expects images that
    are preprocessed already: RGB from 0 to 255 mapped to `x / 127.5 - 1`; the builders put that in front.

    Args:
        include_top: whether to end in the fully connected layers and the classifier, or in the last map.
        weights: `"shapes"`, pre-trained on made-up shapes, the only ones that there are; `None` for random ones; or the
            path of an `.npz` file of `save_weights` or a `.weights.h5` or `.h5` file of Keras.
        input_tensor: a Keras tensor to build on, instead of `input_shape`.
        input_shape: `(height, width, channels)`, height and width at least 16; by default `(48, 48, 3)`, without the
            top `(None, None, 3)`. The weights take 3 channels, and with the top 48 x 48 pixels.
        pooling: without the top, what follows the last map, whose shape is `(height / 16, width / 16, 128)`, rounded
            up: `None`, or `"avg"` or `"max"` for a vector of 128.
        classes: how many classes the top has, at least 1; `NUM_SHAPES` with `weights="shapes"`.
        classifier_activation: the activation of the top; `None` gives the logits.
        name: the model's name.

    Returns:
        A `keras.Model` of 430,000 weights.

    Raises:
        InputError: an argument is out of range, or the weights do not fit.

    Example:
        >>> model = DemoCNN()
        >>> [layer.name for layer in model.layers if layer.weights]
        ['conv1', 'conv2', 'conv3', 'fc1', 'fc2', 'predictions']
    """
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            "Expected the image data format 'channels_last'. Received: 'channels_first'. "
            "Call keras.config.set_image_data_format('channels_last') first."
        )
    if input_tensor is not None:
        input_shape = tuple(input_tensor.shape[1:])
    elif input_shape is None:
        input_shape = (IMAGE_SIZE, IMAGE_SIZE, 3) if include_top else (None, None, 3)
    _check_shape(input_shape, include_top)
    _check_top(include_top, pooling, classes, weights)
    x = layers.Input(tuple(input_shape)) if input_tensor is None else input_tensor
    inputs = x if input_tensor is None else keras.utils.get_source_inputs(input_tensor)[0]
    x = _convolutions(x)
    if include_top:
        x = layers.Flatten(name="flat")(x)
        for layer, width in (("fc1", 256), ("fc2", 128)):
            x = layers.Dense(width, "relu", kernel_initializer="he_normal", name=layer)(x)
        x = layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    model = keras.Model(inputs, x, name=name)
    if weights is not None:
        _load(model, weights)
    return model


def _convolutions(x: keras.KerasTensor) -> keras.KerasTensor:
    """Put the three convolutions on `x`, each with its pooling behind it."""
    for number, (filters, size, stride) in enumerate(((32, 7, 2), (64, 3, 1), (128, 3, 1)), start=1):
        x = layers.Conv2D(
            filters,
            size,
            strides=stride,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"conv{number}",
        )(x)
        x = layers.MaxPooling2D(3, 2, padding="same", name=f"pool{number}")(x)
    return x


def _check_shape(shape: Any, include_top: bool) -> None:
    """Refuse input shapes that are no shape, too small, or open where the top flattens a map."""
    fits = isinstance(shape, (tuple, list)) and len(shape) == 3
    whole = (int, np.integer)
    fits = fits and all(
        (n is None and not include_top) or (isinstance(n, whole) and n >= _SMALLEST) for n in shape[:2]
    )
    if not fits or not isinstance(shape[2], whole) or shape[2] < 1:
        raise InputError(
            f"Expected input_shape=(height, width, channels), height and width of at least {_SMALLEST} pixels, or None "
            f"where include_top=False. Received: {shape!r}. Enlarge small images."
        )


def _check_top(include_top: bool, pooling: str | None, classes: int, weights: Any) -> None:
    """Refuse an end that does not exist or that the weights do not have."""
    if not include_top:
        if pooling not in (None, "avg", "max"):
            raise unknown("pooling", pooling, ["avg", "max"], hint="None is possible too.")
    elif isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
        raise InputError(f"Expected classes as a whole number of at least 1. Received: {classes!r}.")
    elif weights == "shapes" and classes != NUM_SHAPES:
        raise InputError(
            f"The top of weights='shapes' has {NUM_SHAPES} classes. Received: classes={classes}. Leave classes out, "
            "or let a builder put a head of your own on it."
        )


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write a network's weights to a small file: half precision, no code in it."""
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"Expected a path that ends in .npz. Received: {str(path)!r}.")
    arrays = {
        f"{layer.name}/{weight.name}": keras.ops.convert_to_numpy(weight).astype("float16")
        for layer in model.layers
        for weight in layer.weights
    }
    with replacing(path) as partial, partial.open("wb") as file:  # a name would get another .npz
        np.savez_compressed(file, **arrays)


def _load(model: keras.Model, weights: str | os.PathLike[str]) -> None:
    """Set a new network's weights from a file."""
    path = WEIGHTS if weights == "shapes" else Path(weights)
    if not path.is_file() or path.suffix not in (".npz", ".h5"):
        raise InputError(
            "Expected weights='shapes', None, or the path of a file that exists and ends in .npz or .h5. Received: "
            f"{str(weights)!r}. DemoCNN has no other weights, those of ImageNet neither."
        )
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                _assign(model, arrays)
        else:
            model.load_weights(path)
    except (ValueError, KeyError, OSError, EOFError) as error:
        why = one_line(error, most=200)
        raise InputError(
            f"The weights in '{path}' do not fit {model.name}: {why} Expected those of the same network, with as many "
            "classes, channels and pixels."
        ) from error


def _assign(model: keras.Model, arrays: Any) -> None:
    for layer in model.layers:
        for weight in layer.weights:
            value = arrays[f"{layer.name}/{weight.name}"]
            if value.shape != tuple(weight.shape):
                raise ValueError(
                    f"{layer.name!r} has a {weight.name} of shape {tuple(weight.shape)}, the file one of {value.shape}."
                )
            weight.assign(value.astype("float32"))
