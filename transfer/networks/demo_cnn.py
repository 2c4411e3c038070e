"""The demonstration network: three convolutional and three fully connected layers.

It is small enough to be trained, cut and fine-tuned in seconds without a GPU. Its weights were pre-trained on images of
artificial shapes (see `lesson/shapes.py`) and come with this package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
from keras import layers

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, one_line
from transfer.common.files import replacing
from transfer.networks import weight_files
from transfer.networks.arguments import (
    Activation,
    InputShape,
    Top,
    Weights,
    check_data_format,
    check_input_shape,
)

WEIGHTS = Path(__file__).parent / "weights" / "demo_cnn.npz"
"""The file of `weights="shapes"`."""

IMAGE_SIZE = 48
"""Height and width in pixels of the images that the weights were pre-trained on."""

NUM_SHAPES = 40
"""Number of classes that the weights were pre-trained on (`transfer.SHAPES`)."""

SEES = {
    "conv1": "edges",
    "conv2": "shapes",
    "conv3": "higher-level features",
    "fc1": "",
    "fc2": "",
    "predictions": "classes",
}
"""Layers in order, and the kind of features that each responds to."""

_SMALLEST = 16  # pixels; four strides of 2 leave one pixel


@explain_arguments()
def DemoCNN(
    include_top: bool = True,
    weights: Weights = "shapes",
    *,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: InputShape | None = None,
    pooling: str | None = None,
    classes: int = NUM_SHAPES,
    classifier_activation: Activation = "softmax",
    name: str = "democnn",
) -> keras.Model:
    """Build the demonstration network: `conv1`, `conv2`, `conv3`, `fc1`, `fc2`, `predictions`.

    Each convolution has a ReLU and is followed by max pooling over 3 x 3 pixels with a stride of 2. `conv1` has kernels
    of 7 x 7 pixels and a stride of 2. This is a small version of AlexNet (Krizhevsky et al. 2012). The network expects
    preprocessed images: RGB, 0 to 255, mapped to `x / 127.5 - 1`. The builders add this preprocessing.

    Args:
        include_top: whether the network ends in the fully connected layers and the classifier, or in the last feature
            map.
        weights: `"shapes"`, pre-trained on artificial shapes; None, random weights; or the path of an `.npz` file of
            `save_weights` or of a `.weights.h5` or `.h5` file of Keras. There are no ImageNet weights.
        input_tensor: a Keras tensor to build on, instead of `input_shape`.
        input_shape: (height, width, channels), height and width at least 16. None is `(48, 48, 3)`, and without the top
            `(None, None, 3)`. The weights need 3 channels, and with the top 48 x 48 pixels.
        pooling: pooling of the last feature map, without the top: `"avg"` or `"max"` for a vector of length 128; None
            for the map itself, shape (height / 16, width / 16, 128), rounded up.
        classes: number of classes of the top, at least 1; `NUM_SHAPES` with `weights="shapes"`.
        classifier_activation: activation of the top. None gives the logits.
        name: name of the model.

    Returns:
        A `keras.Model` with 430,000 weights.

    Raises:
        InputError: an argument is invalid, or the weights do not fit.

    Example:
        >>> model = DemoCNN()
        >>> [layer.name for layer in model.layers if layer.weights]
        ['conv1', 'conv2', 'conv3', 'fc1', 'fc2', 'predictions']
    """
    check_data_format()
    if input_tensor is not None:
        input_shape = tuple(input_tensor.shape[1:])
    elif input_shape is None:
        input_shape = (IMAGE_SIZE, IMAGE_SIZE, 3) if include_top else (None, None, 3)
    check_input_shape(input_shape, _SMALLEST, open_sizes=not include_top)
    top = Top(include_top, pooling, classes, classifier_activation)
    top.check(weights, "shapes", NUM_SHAPES)
    x = layers.Input(tuple(input_shape)) if input_tensor is None else input_tensor
    inputs = x if input_tensor is None else keras.utils.get_source_inputs(input_tensor)[0]
    x = _convolutions(x)
    if include_top:
        x = layers.Flatten(name="flat")(x)
        for layer, width in (("fc1", 256), ("fc2", 128)):
            x = layers.Dense(width, "relu", kernel_initializer="he_normal", name=layer)(x)
        x = layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    else:
        x = top.pooled(x)
    model = keras.Model(inputs, x, name=name)
    if weights is not None:
        _load(model, weights)
    return model


def _convolutions(x: keras.KerasTensor) -> keras.KerasTensor:
    """Apply the three convolutions, each followed by its pooling."""
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


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write a network's weights to an `.npz` file, as float16."""
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"Expected a path that ends in .npz. Received: {str(path)!r}.")
    arrays = {
        f"{layer.name}/{weight.name}": keras.ops.convert_to_numpy(weight).astype("float16")
        for layer in model.layers
        for weight in layer.weights
    }
    with replacing(path) as partial, partial.open("wb") as file:  # given a name, numpy would append .npz
        np.savez_compressed(file, **arrays)


def _load(model: keras.Model, weights: str | os.PathLike[str]) -> None:
    """Set a new network's weights from a file."""
    path = WEIGHTS if weights == "shapes" else Path(weights)
    if not path.is_file() or path.suffix not in (".npz", ".h5"):
        raise InputError(
            "Expected weights='shapes', None, or the path of a file that exists and ends in .npz or .h5. Received: "
            f"{str(weights)!r}. DemoCNN has no other weights, and no ImageNet weights."
        )
    problem = weight_files.load(model, path) if path.suffix == ".h5" else _load_arrays(model, path)
    if problem is not None:
        raise InputError(
            f"The weights in '{path}' do not fit {model.name}: {problem} Use weights of the same network, with "
            "the same number of classes, channels and pixels."
        )


def _load_arrays(model: keras.Model, path: Path) -> str | None:
    """Set a network's weights from an `.npz` file; return what is wrong with the file, or None."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _assign(model, arrays)
    except (ValueError, KeyError, OSError, EOFError) as error:
        return one_line(error, most=200)


def _assign(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Set a network's weights; return which array does not fit, or None."""
    for layer in model.layers:
        for weight in layer.weights:
            value = arrays[f"{layer.name}/{weight.name}"]
            if value.shape != tuple(weight.shape):
                shapes = f"of shape {tuple(weight.shape)}, the file one of {value.shape}."
                return f"{layer.name!r} has a {weight.name} {shapes}"
            weight.assign(value.astype("float32"))
    return None
