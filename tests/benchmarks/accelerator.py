"""Measure this device: images per second in inference and fine-tuning, and the fraction of its peak performance.

    python tests/benchmarks/accelerator.py
    KERAS_BACKEND=jax python tests/benchmarks/accelerator.py --peak 989

The networks are ResNet50 and MobileNetV2 with random weights, in float32 and mixed bfloat16. The columns are images per
second, TFLOP/s (10^12 multiplications and additions per second), and the fraction of `--peak`. A matrix product of the
same precision shows the peak that the device reaches in practice.

How to read the table:

- A network near the rate of the matrix product is limited by arithmetic.
- A network far below it with few FLOP per byte is limited by memory. The bytes are those of weights and activations,
  each read and written once.
- A network that gets faster with a larger batch is limited by the start of its operations.

The images are on the device already, so that reading is not measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

NETWORKS = ("ResNet50", "MobileNetV2")
PRECISIONS = ("float32", "mixed_bfloat16")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: 64)")
    parser.add_argument(
        "--image-size", type=int, default=224, help="width and height in pixels (default: 224)"
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each measurement (default: 10)")
    parser.add_argument("--peak", type=float, help="peak of the device in TFLOP/s, from its data sheet")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = [
        ("operation", "precision", "images/s", "TFLOP/s", "fraction of peak", "FLOP per byte")
    ]
    for precision in PRECISIONS:
        seconds, work = product(precision, options.steps)
        rows.append(row("matrix product", precision, None, work / seconds, options.peak, None))
        for name in NETWORKS:
            work, moved = cost(name, options.image_size, precision)
            for operation, seconds, passes in (
                ("inference", forward(name, precision, options), 1.0),
                # The backward pass takes twice the operations of the forward pass.
                ("fine-tuning", fine_tuning(name, precision, options), 3.0),
            ):
                per_second = options.batch_size / seconds
                rate = per_second * work * passes
                rows.append(
                    row(f"{name} {operation}", precision, per_second, rate, options.peak, work / moved)
                )
    for cells in rows:
        sys.stdout.write("".join(f"{cell:>24}" for cell in cells) + "\n")


def row(
    operation: str,
    precision: str,
    images_per_second: float | None,
    rate: float,
    peak: float | None,
    intensity: float | None,
) -> tuple[str, ...]:
    """Format a row of the table."""
    return (
        operation,
        precision,
        "" if images_per_second is None else f"{images_per_second:.1f}",
        f"{rate / 1e12:.3f}",
        f"{rate / 1e12 / peak:.1%}" if peak else "",
        "" if intensity is None else f"{intensity:.0f}",
    )


def median_seconds(step: Callable[[], Any], steps: int) -> float:
    """Return the median seconds of a step, after two steps that compile and allocate memory."""
    for _ in range(2):
        np.asarray(step())
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        np.asarray(step())  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


def product(precision: str, steps: int) -> tuple[float, float]:
    """Return the seconds of a product of two large matrices, and its multiplications and additions."""
    dtype = "bfloat16" if "bfloat16" in precision else "float32"
    size = 8192 if accelerated() else 1024
    a = keras.ops.ones((size, size), dtype)
    model = keras.Sequential(
        [keras.Input((size,), dtype=dtype), keras.layers.Dense(size, use_bias=False, dtype=dtype)]
    )
    model.compile(jit_compile=keras.backend.backend() == "jax")
    seconds = median_seconds(lambda: model.predict_on_batch(a)[0, 0], steps)
    return seconds, 2.0 * size**3


def accelerated() -> bool:
    """Return whether there is a GPU or TPU."""
    from transfer.frozen.engines import on_accelerator

    return on_accelerator()


def network(name: str, precision: str, size: int) -> keras.Model:
    """Build a classifier of ten classes with random weights."""
    import transfer

    base = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    return transfer.large_similar(base, 10, precision=precision)


def forward(name: str, precision: str, options: argparse.Namespace) -> float:
    """Return the seconds of the forward pass of a batch."""
    model = network(name, precision, options.image_size)
    images = keras.ops.ones((options.batch_size, options.image_size, options.image_size, 3))
    return median_seconds(lambda: model.predict_on_batch(images), options.steps)


def fine_tuning(name: str, precision: str, options: argparse.Namespace) -> float:
    """Return the seconds of a step of fine-tuning."""
    model = network(name, precision, options.image_size)
    images = np.ones((options.batch_size, options.image_size, options.image_size, 3), "float32")
    labels = np.zeros(options.batch_size, "int64")
    return median_seconds(lambda: model.train_on_batch(images, labels)[0], options.steps)


def cost(name: str, size: int, precision: str) -> tuple[float, float]:
    """Return the operations of the forward pass of an image, and the bytes of all weights and activations."""
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    work, numbers = 0.0, float(model.count_params())
    for layer in model.layers:
        shape = layer.output.shape[1:]
        numbers += 2 * np.prod(shape)
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
            positions = np.prod(shape[:-1]) if len(shape) > 1 else 1
            work += 2.0 * positions * np.prod(layer.kernel.shape)
    return work, numbers * (2 if "bfloat16" in precision else 4)


if __name__ == "__main__":
    main()
