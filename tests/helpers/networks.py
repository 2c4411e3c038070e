"""What the tests of networks share: raw images, calibrated BatchNorm, comparisons that cannot pass on nothing."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def raw_images(count: int = 6, size: int = 32, *, seed: int = 0) -> np.ndarray:
    """Images of one color each with noise, RGB from 0 to 255."""
    rng = np.random.default_rng(seed)
    colors = rng.uniform(0, 255, (count, 1, 1, 3))
    return np.clip(colors + rng.normal(0, 40, (count, size, size, 3)), 0, 255).astype("float32")


def calibrate(model, images) -> None:
    """Set every BatchNorm's statistics from these images, so that a random network tells them apart."""
    import keras

    layers = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value


def infer(model, images) -> np.ndarray:
    """What a model makes of images in inference mode; it must tell them apart."""
    y = np.asarray(model(images, training=False), "float32")
    assert np.isfinite(y).all()
    spread = np.ptp(y, axis=0).max()
    assert spread > 1e-3 * np.abs(y).max(), f"the outputs are all alike, spread {spread}: nothing is compared"
    return y


def soften(model, images) -> np.ndarray:
    """Scale a built model's head so that no softmax is all zeros and ones, as behind a random VGG.

    Gives the features that the head sees.
    """
    from transfer.networks import surgery

    features = infer(surgery.feature_extractor_of(model), images)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel / np.abs(features).max(), bias])
    return features


def assert_same_function(first, second, images, *, tolerance: float = 1e-5) -> None:
    """Two networks give the same, up to rounding, and not the same for every image."""
    a, b = infer(first, images), infer(second, images)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


def snapshot(model) -> list[np.ndarray]:
    """All variables of a model, the states of random generators too."""
    return [variable.numpy().copy() for variable in model.variables]


def flags(model) -> list[bool]:
    """The flags of a model, of its layers, and of theirs."""
    return [layer.trainable for layer in model._flatten_layers()]


def assert_bit_equal(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Two snapshots are equal to the last bit."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def save_legacy(model, path: Path) -> None:
    """Write weights as Keras did before version 3, as those that it downloads still are."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@contextmanager
def policy(name: str):
    """Compute under another dtype policy for a while."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@functools.cache
def two_replicas():
    """One strategy of two CPU devices for all tests: TensorFlow confuses the messages of two that count alike."""
    import tensorflow as tf

    class Apart(tf.distribute.MirroredStrategy):
        _collective_key_base = 1000

    return Apart(["CPU:0", "CPU:1"])


def make_tiny(*, image_size: int = 32, classes: int = 5, seed: int = 0, top: bool = True):
    """A network of three blocks with BatchNorm, a skip connection and a classifier; it builds in no time.

    Its BatchNorm statistics are calibrated on noise: a random network in inference mode with the statistics
    that it is born with shrinks every input to the same output, and comparisons would compare nothing.
    """
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
