"""What the device at hand does: images per second forward and in fine-tuning, and how much of it that is.

    python tests/benchmarks/accelerator.py
    KERAS_BACKEND=jax python tests/benchmarks/accelerator.py --peak 989

For ResNet50 and MobileNetV2 with random weights, in float32 and in mixed bfloat16: images per second, 10^12
multiplications and additions per second, and their share of the card's peak where `--peak` gives it (in the same unit,
from its maker's data sheet). The same for a matrix product of the same precision, which is what the card gives in
practice. A network near it is bound by arithmetic; one far below, at low work per byte (`flop_per_byte`: work over the
weights and activations that are read and written once), by memory; one that grows with the batch, by being started.
Images are on the device already: reading is measured elsewhere.
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
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", type=float, help="10^12 operations per second in bfloat16")
    options = parser.parse_args()
    rows = [("what", "precision", "images/s", "10^12 op/s", "share of peak", "flop_per_byte")]
    for precision in PRECISIONS:
        seconds, work = product(precision, options.steps)
        rows.append(row("matrix product", precision, None, work / seconds, options.peak, None))
        for name in NETWORKS:
            for what, seconds, times in (
                ("forward", *forward(name, precision, options)),
                ("fine-tuning", *tuning(name, precision, options)),
            ):
                work, moved = cost(name, options.image_size, precision)
                per_second = options.batch_size / seconds
                rate = per_second * work * times
                rows.append(row(f"{name} {what}", precision, per_second, rate, options.peak, work / moved))
    for cells in rows:
        sys.stdout.write("".join(f"{cell:>24}" for cell in cells) + "\n")


def row(
    what: str, precision: str, per_second: float | None, rate: float, peak: float | None, dense: float | None
) -> tuple[str, ...]:
    """The cells of a line."""
    share = f"{rate / 1e12 / peak:.1%}" if peak else ""
    images = f"{per_second:.1f}" if per_second is not None else ""
    return what, precision, images, f"{rate / 1e12:.3f}", share, f"{dense:.0f}" if dense is not None else ""


def clocked(step: Callable[[], Any], steps: int) -> float:
    """Median seconds of a step, what is done once not counted."""
    for _ in range(2):
        np.asarray(step())
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        np.asarray(step())  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


def product(precision: str, steps: int) -> tuple[float, float]:
    """Seconds of a product of two large matrices, and its multiplications and additions."""
    dtype = "bfloat16" if "bfloat16" in precision else "float32"
    size = 8192 if accelerated() else 1024
    a = keras.ops.ones((size, size), dtype)
    model = keras.Sequential(
        [keras.Input((size,), dtype=dtype), keras.layers.Dense(size, use_bias=False, dtype=dtype)]
    )
    model.compile(jit_compile=keras.backend.backend() == "jax")
    seconds = clocked(lambda: model.predict_on_batch(a)[0, 0], steps)
    return seconds, 2.0 * size**3


def accelerated() -> bool:
    """Whether there is a GPU or TPU."""
    from transfer.frozen.engines import on_accelerator

    return on_accelerator()


def network(name: str, precision: str, size: int) -> keras.Model:
    """A classifier of ten classes on a network with random weights."""
    import transfer

    base = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    return transfer.large_similar(base, 10, precision=precision)


def forward(name: str, precision: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds per batch, and how often its work is done."""
    model = network(name, precision, options.image_size)
    images = keras.ops.ones((options.batch_size, options.image_size, options.image_size, 3))
    return clocked(lambda: model.predict_on_batch(images), options.steps), 1.0


def tuning(name: str, precision: str, options: argparse.Namespace) -> tuple[float, float]:
    """The same of a step of fine-tuning: once forward, twice as much backward."""
    model = network(name, precision, options.image_size)
    images = np.ones((options.batch_size, options.image_size, options.image_size, 3), "float32")
    labels = np.zeros(options.batch_size, "int64")
    return clocked(lambda: model.train_on_batch(images, labels)[0], options.steps), 3.0


def cost(name: str, size: int, precision: str) -> tuple[float, float]:
    """Multiplications and additions of an image, and bytes of weights and activations, each moved once."""
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    work, numbers = 0.0, float(model.count_params())
    for layer in model.layers:
        shape = layer.output.shape[1:]
        numbers += 2 * np.prod(shape)
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
            places = np.prod(shape[:-1]) if len(shape) > 1 else 1
            work += 2.0 * places * np.prod(layer.kernel.shape)
    return work, numbers * (2 if "bfloat16" in precision else 4)


if __name__ == "__main__":
    main()
