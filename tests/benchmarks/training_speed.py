"""Compare the training time of `transfer.fit` with plain Keras, on a network as a whole and on its last third.

    python tests/benchmarks/training_speed.py

Plain Keras is a network of keras.applications with frozen BatchNormalization, pooling and a Dense layer, trained by
`model.fit` from images in memory, with the same augmentation as layers of the model. Both train with Adam and batches
of 32. The weights are random, since they do not change the time.

Each round trains each method for some epochs in one process. The first epoch, which compiles and runs the frozen
layers, does not count. The table shows the fastest epoch: milliseconds per image, CPU time per image, and their ratios
to plain Keras that trains the same layers, and to plain Keras that trains all layers.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

CLASSES = 10
LAST_THIRD = {"MobileNetV2": "block_11", "EfficientNetLite0": "block6a"}
"""The first block of the last third, by network."""


def main() -> None:
    """Measure all methods in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=[*LAST_THIRD], choices=[*LAST_THIRD])
    parser.add_argument("--images", type=int, default=640, help="number of training images")
    parser.add_argument("--size", type=int, default=128, help="height and width of the images in pixels")
    parser.add_argument(
        "--epochs", type=int, default=4, help="epochs per round; the first one does not count"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--augment", default="light", choices=["none", "light"])
    options = parser.parse_args()

    from transfer.common.allocator import kept_memory
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    with kept_memory():
        for network in options.networks:
            methods = _methods(network, options)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
            for _ in range(options.rounds):
                for name, method in methods.items():
                    times[name] += [(wall / options.images, cpu / options.images) for wall, cpu in method()]
            show(network, times)


def show(network: str, times: dict[str, list[tuple[float, float]]]) -> None:
    """Print the fastest epoch of each method, and its ratios to plain Keras."""
    print(f"\n{network:24}{'ms':>8}{'cpu ms':>8}{'ratio':>8}{'cpu':>6}{'to all':>8}{'cpu':>6}")
    best = {name: np.min(rows, axis=0) for name, rows in times.items()}
    for name, row in best.items():
        same, whole = row / best[f"plain Keras, {name.split(', ')[1]}"], row / best["plain Keras, all layers"]
        cells = f"{1000 * row[0]:8.2f}{1000 * row[1]:8.2f}{same[0]:8.2f}{same[1]:6.2f}{whole[0]:8.2f}{whole[1]:6.2f}"
        print(f"{name:24}{cells}", flush=True)


def _methods(network: str, options: argparse.Namespace) -> dict[str, Callable[[], list[tuple[float, float]]]]:
    """Return functions that train, and return the elapsed and the CPU seconds of each epoch but the first."""
    shape = (options.images, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    labels = np.arange(options.images) % CLASSES
    kinds = {"all layers": None, "last third": LAST_THIRD[network]}
    ways = {"plain Keras": _plain, "transfer": _fitted}
    return {
        f"{way}, {kind}": functools.partial(train, network, first, images, labels, options)
        for kind, first in kinds.items()
        for way, train in ways.items()
    }


def _base(network: str, size: int) -> Any:
    """Build a network with random weights and without its classifier."""
    import keras

    import transfer

    build = {"MobileNetV2": keras.applications.MobileNetV2, "EfficientNetLite0": transfer.EfficientNetLite0}
    return build[network](weights=None, include_top=False, input_shape=(size, size, 3))


def _plain(network: str, first: str | None, images: Any, labels: Any, options: argparse.Namespace) -> Any:
    """Train with Keras alone."""
    import keras
    import tensorflow as tf

    base, trains = _base(network, options.size), first is None
    for layer in base.layers:
        trains = trains or layer.name.startswith(f"{first}_")
        layer.trainable = trains and not isinstance(layer, keras.layers.BatchNormalization)
    image = keras.Input(images.shape[1:])
    x = image
    if options.augment == "light":
        x = keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")(x)
        x = keras.layers.RandomFlip("horizontal")(x)
    x = base(keras.layers.Rescaling(1 / 127.5, offset=-1)(x), training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(CLASSES, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images)).batch(32).prefetch(2)
    timer = _timer()
    model.fit(batches, epochs=options.epochs, verbose=0, callbacks=[timer])
    return timer.seconds[1:]


def _fitted(network: str, first: str | None, images: Any, labels: Any, options: argparse.Namespace) -> Any:
    """Train with `transfer.fit`."""
    import transfer

    test = (255 - images[:CLASSES], labels[:CLASSES])
    data = transfer.load_data({"train": (images, labels), "test": test}, near_duplicates=False)
    data = data.__class__(**{**vars(data), "val": data.val.take([])})
    build = (
        transfer.large_similar
        if first is None
        else functools.partial(transfer.small_similar, unfreeze_from=first)
    )
    model = build(_base(network, options.size), CLASSES)
    timer = _timer()
    arguments = {"augment": options.augment, "flip": True, "initial_head": "keep"}
    transfer.fit(model, data, epochs=options.epochs, verbose=0, callbacks=[timer], **arguments)
    return timer.seconds[1:]


def _timer() -> Any:
    """Return a callback that measures the elapsed and the CPU seconds of each epoch."""
    import keras

    class Timer(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.seconds: list[tuple[float, float]] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))

    return Timer()


if __name__ == "__main__":
    main()
