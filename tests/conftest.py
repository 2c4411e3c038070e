"""What many tests use: pictures drawn at run time and tiny networks."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# No test reads or fills the cache of whoever runs it.
os.environ["TRANSFER_CACHE"] = tempfile.mkdtemp(prefix="transfer-tests-")
atexit.register(shutil.rmtree, os.environ["TRANSFER_CACHE"], ignore_errors=True)

COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


@pytest.fixture(scope="session", autouse=True)
def two_devices():
    """Split the CPU in two before anything uses it, so that replicas can be tested anywhere."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True)
def own_log():
    """A command sets the level and the handlers of the package's log: each test starts without."""
    log = logging.getLogger("transfer")
    log.setLevel(logging.NOTSET)
    log.handlers[:] = []


def write_picture(path: Path, color: tuple[int, int, int], *, size: int = 40, seed: int = 0) -> None:
    """A picture of one colour with noise, different for every seed."""
    noise = np.random.default_rng(seed).integers(-30, 31, (size, size, 3))
    pixels = np.clip(np.array(color) + noise, 0, 255).astype("uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory) -> Path:
    """Three classes of 30 pictures, each of one colour: anything that learns at all tells them apart."""
    folder = tmp_path_factory.mktemp("colors") / "colors"
    for number, (name, color) in enumerate(COLORS.items()):
        for i in range(30):
            write_picture(folder / name / f"{i:02}.png", color, seed=100 * number + i)
    return folder


@pytest.fixture(scope="session")
def shuffled_folder(color_folder, tmp_path_factory) -> Path:
    """The same pictures under names that have nothing to do with them."""
    folder = tmp_path_factory.mktemp("shuffled") / "shuffled"
    files = sorted(color_folder.rglob("*.png"))
    order = np.random.default_rng(0).permutation(len(files))
    for place, i in enumerate(order):
        target = folder / "abc"[place % 3] / f"{place:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[i].read_bytes())
    return folder


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


@pytest.fixture
def tiny():
    """A calibrated tiny network with a classifier of five classes; its preprocessing is `tf`."""
    return make_tiny()


@pytest.fixture
def cache(tmp_path):
    """An empty cache of features."""
    from transfer.cache import FeatureCache

    return FeatureCache(tmp_path / "cache")


@pytest.fixture(scope="session")
def colors(color_folder):
    """The folder of three colours, loaded."""
    from transfer.datasets import load_data

    return load_data(color_folder)


STRANGE = ('=cmd|" &C calc"!A0', "<b onmouseover=alert(1)>blue", 're\'d & "green"')
"""Names of classes that try to be a formula, markup, and what ends a string."""


@pytest.fixture(scope="session")
def strange_folder(tmp_path_factory) -> Path:
    """Three colours whose classes and files have names that mean something elsewhere, some of them mislabelled."""
    folder = tmp_path_factory.mktemp("strange") / "strange <i>data"
    for number, (name, color) in enumerate(zip(STRANGE, COLORS.values(), strict=True)):
        for i in range(30):
            other = list(COLORS.values())[(number + 1) % 3]
            file = f"<img src=x onerror=alert({i})>.png" if i % 5 == 0 else f"=1+{i}.png"
            write_picture(folder / name / file, other if i % 9 == 4 else color, seed=100 * number + i)
    return folder


@pytest.fixture(scope="session")
def strange_run(strange_folder, tmp_path_factory) -> Path:
    """A run on these, its case measured; tests that change it copy it."""
    from transfer.train import main

    place = tmp_path_factory.mktemp("runs") / "strange"
    quick = ["--image-size", "32", "--strategy", "default", "--test", "0.4", "--solver", "exact"]
    assert main(["--data", str(strange_folder), *quick, "--output", str(place)]) == 0
    return place
