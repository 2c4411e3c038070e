"""How fast a frozen network runs forward.

    python tests/benchmarks/frozen.py engines

`engines` gives the rate of the bare forward pass on prepared arrays at 224 px in batches of 32, of Keras'
`predict` and of each engine, in turn, in one process, and how far each is from Keras. Besides the rates it
gives the seconds of CPU, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

SIZE = 224
BATCH_SIZE = 32


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    engines_ = commands.add_parser("engines", help="bare forward rates of Keras and of each engine")
    engines_.add_argument("--rounds", type=int, default=7)
    engines_.add_argument("--batches", type=int, default=4, help="in each round")
    engines_.set_defaults(run=engines)
    options = parser.parse_args()
    options.run(options)


def engines(options: argparse.Namespace) -> None:
    """Compare rates of the forward pass of two networks."""
    batches = pictures(options.batches * BATCH_SIZE).reshape(options.batches, BATCH_SIZE, SIZE, SIZE, 3)
    for name in ("EfficientNetLite0", "MobileNetV2"):
        model = trunk(name, batches[0])
        ways = forward_passes(model)
        expected = model.predict(batches[0], batch_size=BATCH_SIZE, verbose=0)
        starts, errors = {}, {}
        for way, one_pass in ways.items():
            start = time.perf_counter()
            errors[way] = relative(one_pass(batches[:1])[0], expected)
            starts[way] = time.perf_counter() - start
        print(f"{name}, {SIZE} px, batches of {BATCH_SIZE}, medians of {options.rounds} rounds")
        figures = in_turn(ways, batches, options.rounds)
        first_rate, first_cpu = (
            statistics.median(seen) for seen in zip(*figures["Keras predict"], strict=True)
        )
        for way, seen in figures.items():
            rate, cpu = (statistics.median(column) for column in zip(*seen, strict=True))
            print(
                f"  {way:18} {rate:5.0f} pictures/s, {rate / first_rate:5.2f} times predict; "
                f"{cpu:5.2f} ms of CPU each, {first_cpu / cpu:5.2f} times; "
                f"first batch {starts[way]:.1f} s; error {errors[way]:.0e}"
            )


def pictures(count: int) -> np.ndarray:
    """Make smooth pictures, 0 to 255: on noise a network rounds worse than on what it was trained for."""
    import tensorflow as tf

    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3)).astype("float32")
    return np.clip(tf.image.resize(coarse, (SIZE, SIZE), "bicubic").numpy(), 0, 255)


def trunk(name: str, images: np.ndarray) -> Any:
    """Make a frozen trunk that eats raw pictures, with real weights where these come with the package.

    A random network with the BatchNorm statistics that it is born with shrinks every picture to the same tiny
    numbers, with which arithmetic is not as fast as with ordinary ones: they are taken from pictures.
    """
    import keras

    import transfer
    from transfer import surgery
    from transfer.backbones import preprocessing_of

    keras.utils.set_random_seed(0)
    if name.startswith("EfficientNetLite"):
        whole = transfer.load_backbone(name, image_size=SIZE)
        return surgery.trunk_of(surgery.clone(whole, preprocess=preprocessing_of(whole)))
    base = getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), include_top=False, pooling="avg"
    )
    model = surgery.clone(base, preprocess=preprocessing_of(base))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images[:8], training=True)
    return model


def forward_passes(model: Any) -> dict[str, Callable[[np.ndarray], list[np.ndarray]]]:
    """Give what runs over batches, by name: Keras first, then all engines that there are."""
    from transfer.engines import Engine, make_engine

    def keras_predict(batches: np.ndarray) -> list[np.ndarray]:
        flat = batches.reshape(-1, *batches.shape[2:])
        return [model.predict(flat, batch_size=BATCH_SIZE, verbose=0)]

    def run(name: str) -> Callable[[np.ndarray], list[np.ndarray]]:
        engine = Engine(model, [name], BATCH_SIZE)
        engine._trusted = True  # the errors are in the table
        return lambda batches: [engine(batch) for batch in batches]

    names = [name for name in reversed(make_engine(model)._names) if name != "keras predict"]
    return {"Keras predict": keras_predict, **{name: run(name) for name in names}}


def in_turn(
    ways: dict[str, Callable[[np.ndarray], list[np.ndarray]]], batches: np.ndarray, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Run all of them `rounds` times, in turn; pictures/s and CPU ms per picture of each round.

    Other work on the machine changes the seconds of CPU less than the rate.
    """
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    count = batches.shape[0] * batches.shape[1]
    for _ in range(rounds):
        for name, one_pass in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            one_pass(batches)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            figures[name].append((count / wall, 1e3 * cpu / count))
    return figures


def relative(result: np.ndarray, expected: np.ndarray) -> float:
    """Give the Euclidean length of an error, relative to what was expected."""
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
