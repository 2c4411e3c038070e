"""Tiny networks, images for them, and comparisons that fail if all outputs are equal."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def raw_images(count: int = 6, size: int = 32, *, seed: int = 0) -> np.ndarray:
    """Return float32 images of one color with noise, RGB from 0 to 255, shape (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    colors = rng.uniform(0, 255, (count, 1, 1, 3))
    return np.clip(colors + rng.normal(0, 40, (count, size, size, 3)), 0, 255).astype("float32")


def calibrate(model, images) -> None:
    """Set the statistics of BatchNormalization from images, so that a random network separates them."""
    import keras

    layers = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value


def infer(model, images) -> np.ndarray:
    """Return a model's float32 outputs in inference mode; raise an error if they are the same for all images."""
    y = np.asarray(model(images, training=False), "float32")
    assert np.isfinite(y).all()
    spread = np.ptp(y, axis=0).max()
    assert spread > 1e-3 * np.abs(y).max(), (
        f"all outputs are equal (spread {spread}), so there is nothing to compare"
    )
    return y


def soften(model, images) -> np.ndarray:
    """Scale a model's head so that no softmax is all zeros and ones; return the features before the head."""
    from transfer.networks import surgery

    features = infer(surgery.feature_extractor_of(model), images)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel / np.abs(features).max(), bias])
    return features


def assert_same_function(first, second, images, *, tolerance: float = 1e-5) -> None:
    """Check that two networks have equal outputs up to rounding, which differ between images."""
    a, b = infer(first, images), infer(second, images)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


def snapshot(model) -> list[np.ndarray]:
    """Return copies of all variables of a model, states of random generators included."""
    return [variable.numpy().copy() for variable in model.variables]


def flags(model) -> list[bool]:
    """Return the `trainable` flags of a model and of all layers inside it."""
    return [layer.trainable for layer in model._flatten_layers()]


def assert_bit_equal(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Check that two snapshots are equal to the last bit."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def save_legacy(model, path: Path) -> None:
    """Write weights in the format of Keras 2, which the files that Keras downloads have."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@contextmanager
def policy(name: str):
    """Set a dtype policy within a `with` block."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@functools.cache
def two_replicas():
    """Return one strategy of two CPU devices for all tests: TensorFlow mixes up the messages of several strategies."""
    import tensorflow as tf

    class Apart(tf.distribute.MirroredStrategy):
        _collective_key_base = 1000

    return Apart(["CPU:0", "CPU:1"])


def make_tiny(*, image_size: int = 32, classes: int = 5, seed: int = 0, top: bool = True):
    """Return a network of three blocks with BatchNormalization, skip connections and a classifier."""
    # Its BatchNormalization is calibrated on noise. With its initial statistics a random network in inference mode
    # gives nearly the same output for every image, and no comparison could fail.
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    x = image = keras.Input((image_size, image_size, 3), name="input")
    for number, width in enumerate((8, 12, 16), start=1):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name=f"block{number}_conv")(x)
        x = layers.BatchNormalization(momentum=0.5, name=f"block{number}_bn")(x)
        x = layers.ReLU(name=f"block{number}_relu")(x)
        y = layers.Conv2D(width, 3, padding="same", name=f"block{number}_branch")(x)
        x = layers.Add(name=f"block{number}_add")([x, y])
    if top:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        x = layers.Dense(classes, activation="softmax", name="classes")(x)
    model = keras.Model(image, x, name="tiny")
    noise = np.random.default_rng(seed).uniform(-1, 1, (32, image_size, image_size, 3)).astype("float32")
    for _ in range(8):
        model(noise, training=True)
    return model
