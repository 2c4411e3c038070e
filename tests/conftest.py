"""Fixtures of many tests: images drawn at run time, and tiny networks."""

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
from helpers.images import COLORS, STRANGE, write_image
from helpers.networks import make_tiny

# The tests use a cache of their own, and not the one of the user.
os.environ["TRANSFER_CACHE"] = tempfile.mkdtemp(prefix="transfer-tests-")
atexit.register(shutil.rmtree, os.environ["TRANSFER_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def two_devices():
    """Split the CPU into two devices before its first use, so that replicas can be tested on any machine."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True)
def fresh_log():
    """Start each test without the log level and handlers that an earlier command has set."""
    log = logging.getLogger("transfer")
    log.setLevel(logging.NOTSET)
    log.handlers[:] = []


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory) -> Path:
    """Three classes of 30 images, each of one color, so that every working classifier separates them."""
    folder = tmp_path_factory.mktemp("colors") / "colors"
    for number, (name, color) in enumerate(COLORS.items()):
        for i in range(30):
            write_image(folder / name / f"{i:02}.png", color, seed=100 * number + i)
    return folder


@pytest.fixture(scope="session")
def shuffled_folder(color_folder, tmp_path_factory) -> Path:
    """The same images with labels that have nothing to do with their colors."""
    folder = tmp_path_factory.mktemp("shuffled") / "shuffled"
    files = sorted(color_folder.rglob("*.png"))
    order = np.random.default_rng(0).permutation(len(files))
    for place, i in enumerate(order):
        target = folder / "abc"[place % 3] / f"{place:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[i].read_bytes())
    return folder


@pytest.fixture
def tiny():
    """A tiny network with calibrated BatchNormalization and five classes; its preprocessing is `tf`."""
    return make_tiny()


@pytest.fixture
def cache(tmp_path):
    """An empty feature cache."""
    from transfer.frozen.feature_cache import FeatureCache

    return FeatureCache(tmp_path / "cache")


@pytest.fixture(scope="session")
def colors(color_folder):
    """The data of `color_folder`."""
    from transfer.images.datasets import load_data

    return load_data(color_folder)


@pytest.fixture(scope="session")
def strange_folder(tmp_path_factory) -> Path:
    """Three colors, some images mislabeled; names of classes and files look like HTML, formulas or commands."""
    folder = tmp_path_factory.mktemp("strange") / "strange <i>data"
    for number, (name, color) in enumerate(zip(STRANGE, COLORS.values(), strict=True)):
        for i in range(30):
            other = list(COLORS.values())[(number + 1) % 3]
            file = f"<img src=x onerror=alert({i})>.png" if i % 5 == 0 else f"=1+{i}.png"
            write_image(folder / name / file, other if i % 9 == 4 else color, seed=100 * number + i)
    return folder


@pytest.fixture(scope="session")
def strange_run(strange_folder, tmp_path_factory) -> Path:
    """A run on `strange_folder` with an automatic case; a test that changes it must copy it."""
    from transfer.train import main

    place = tmp_path_factory.mktemp("runs") / "strange"
    quick = ["--image-size", "32", "--strategy", "default", "--test", "0.4", "--solver", "exact"]
    assert main(["--data", str(strange_folder), *quick, "--output", str(place)]) == 0
    return place
