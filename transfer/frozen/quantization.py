"""Quantize frozen networks to int8 with NNCF; training images set the ranges of the values."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from transfer.common.errors import InputError, install_hint
from transfer.frozen.openvino_engine import INT8, without_telemetry
from transfer.frozen.store_keys import digests_of
from transfer.images.reading import batches_ahead
from transfer.images.splitting import Split

if TYPE_CHECKING:
    import openvino

CALIBRATED = 128
"""Maximum number of training images that set the ranges of int8. 300 do not lower the error."""

CHECKED = 32
"""Maximum number of other training images that measure the error of int8."""

FLOAT_CONVOLUTIONS = 4
"""The first convolutions stay in float32: they cause half of the error."""

_CONVOLUTIONS = ("Convolution", "GroupConvolution")


@dataclass(frozen=True)
class Calibration:
    """Training images that set the ranges of int8, and others that measure its error."""

    ranges: Split
    checks: Split
    image_size: tuple[int, int]

    @functools.cached_property
    def key(self) -> str:
        """A hash of the images and of how they are read."""
        parts = [*digests_of(self.ranges), "and", *digests_of(self.checks)]
        parts += [self.ranges.resize, str(self.ranges.pixel_range), str(self.image_size)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check_images(self) -> np.ndarray:
        """Read the images that measure the error."""
        return _read(self.checks, self.image_size)


def calibration_of(train: Split, image_size: tuple[int, int]) -> Calibration | None:
    """Choose images evenly from a training split; None if it has fewer than two."""
    if len(train) < 2:
        return None
    count = min(len(train), CALIBRATED + CHECKED)
    positions = np.linspace(0, len(train) - 1, count).round().astype("int64")
    checked = np.zeros(count, bool)
    checked[:: -(-count // CHECKED) if count > 4 * CHECKED else 4] = True
    return Calibration(train.take(positions[~checked]), train.take(positions[checked]), image_size)


def check_nncf() -> None:
    """Raise `InputError` if NNCF is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise InputError(
            f"engine={INT8!r} needs NNCF, which is not installed. Install it with {install_hint('int8')}, or use "
            "engine='auto'."
        )


def nncf_version() -> str:
    """Return the version of NNCF, on which quantized networks depend."""
    return version("nncf")


def quantize(
    network: openvino.Model, calibration: Calibration, *, chunk: int, in_float: int = FLOAT_CONVOLUTIONS
) -> openvino.Model:
    """Return a network in int8, except for its first convolutions; its input has `chunk` images."""
    images = _read(calibration.ranges, calibration.image_size).astype("float32")
    images = np.resize(
        images, (-(-len(images) // chunk) * chunk, *images.shape[1:])
    )  # repeats the first ones
    batches = np.split(images, len(images) // chunk)
    with _quiet_nncf() as nncf:
        names = [
            op.get_friendly_name() for op in network.get_ordered_ops() if op.get_type_name() in _CONVOLUTIONS
        ]
        return nncf.quantize(
            network,
            nncf.Dataset(batches),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=names[:in_float]),
        )


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[ModuleType]:
    """Import NNCF without its telemetry, and hide its messages and progress bars."""
    logger_class = logging.getLoggerClass()
    with without_telemetry():
        import nncf
        import rich

        logging.setLoggerClass(logger_class)  # NNCF sets its own for all loggers
        nncf.set_log_level(logging.ERROR)
        console = rich.get_console()
        quiet, console.quiet = console.quiet, True
        try:
            yield nncf
        finally:
            console.quiet = quiet


def _read(split: Split, image_size: tuple[int, int]) -> np.ndarray:
    """Read all images of a split."""
    return np.concatenate(list(batches_ahead(split, image_size=image_size, batch_size=CHECKED)))
