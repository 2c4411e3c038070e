"""Quantize frozen networks to int8 with NNCF; training images set the quantization ranges."""

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
from transfer.frozen.openvino_engine import INT8, compile_network, padded, run_parts, without_telemetry
from transfer.frozen.store_keys import digests_of
from transfer.images.reading import batches_ahead
from transfer.images.splitting import Split

if TYPE_CHECKING:
    from openvino import CompiledModel, Model

log = logging.getLogger(__name__)

CALIBRATED = 128
"""Maximum number of training images that set the quantization ranges."""

CHECKED = 32
"""Maximum number of other training images that measure the error of int8."""

IN_FLOAT = (0, 4)
"""How many of the first convolutions stay in float32; later values are tried if the error is too large."""
# Measured with EfficientNet-Lite0 on emoji at 128 pixels: the error falls from 30% with 0 to 11% with 4 and 10% with 7.

_CONVOLUTIONS = ("Convolution", "GroupConvolution")


@dataclass(frozen=True)
class Calibration:
    """Training images that set the quantization ranges, and others that measure the error of int8."""

    ranges: Split
    checks: Split
    image_size: tuple[int, int]

    @functools.cached_property
    def key(self) -> str:
        """A hash of the images and of the options that read them."""
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


def quantize(network: Model, calibration: Calibration, *, chunk: int, tolerance: float) -> CompiledModel:
    """Compile a network in int8. If the error exceeds the tolerance, the first convolutions stay in float32."""
    checks = calibration.check_images().astype("float32")

    def run(compiled: CompiledModel) -> np.ndarray:
        return run_parts([compiled], chunk=chunk, batch_size=len(checks))(checks)

    expected = run(compile_network(network, precision="float32"))
    for in_float in IN_FLOAT:
        compiled = compile_network(_quantized(network, calibration, chunk, in_float), precision="int8")
        error = relative_error(run(compiled), expected)
        log.debug("int8 with %d convolutions in float32: error %.3f.", in_float, error)
        if error <= tolerance:
            break
    return compiled


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Return |result - expected| / |expected| (Euclidean norms), or infinity if the result is not finite."""
    # One norm over all values: the relative error of a single value means nothing where ReLU returns zeros, and the
    # maximum grows with the number of values.
    if not np.isfinite(result).all():
        return float("inf")
    length = np.linalg.norm(expected.astype("float64"))
    error = np.linalg.norm(result.astype("float64") - expected)
    return float(error / length) if length else float("inf" if error else 0)


def _quantized(network: Model, calibration: Calibration, chunk: int, in_float: int) -> Model:
    """Return a network in int8, except for its first convolutions; its input has `chunk` images."""
    images = _read(calibration.ranges, calibration.image_size).astype("float32")
    batches = [padded(images[start : start + chunk], chunk) for start in range(0, len(images), chunk)]
    with _quiet_nncf() as nncf:
        found = [op for op in network.get_ordered_ops() if op.get_type_name() in _CONVOLUTIONS]
        names = [op.get_friendly_name() for op in found[:in_float]]
        ignored = nncf.IgnoredScope(names=names) if names else None
        return nncf.quantize(network, nncf.Dataset(batches), subset_size=len(batches), ignored_scope=ignored)


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[ModuleType]:
    """Import NNCF without its telemetry, and hide its messages and progress bars."""
    logger_class = logging.getLoggerClass()
    with without_telemetry():
        import nncf
        import rich

        logging.setLoggerClass(logger_class)  # NNCF sets its own for all loggers
        console, logger = rich.get_console(), nncf.nncf_logger
        quiet, level = console.quiet, logger.level
        console.quiet = True
        logger.setLevel(logging.ERROR)
        try:
            yield nncf
        finally:
            console.quiet = quiet
            logger.setLevel(level)


def _read(split: Split, image_size: tuple[int, int]) -> np.ndarray:
    """Read all images of a split."""
    return np.concatenate(list(batches_ahead(split, image_size=image_size, batch_size=CHECKED)))
