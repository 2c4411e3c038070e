"""Measure the input pipeline: decoding and augmentation.

    python tests/benchmarks/data.py decode path/to/hymenoptera/train
    python tests/benchmarks/data.py augment

- `decode` reads, decodes and resizes images to 160 pixels, alternating between `transfer` and Keras'
  `image_dataset_from_directory` in one process. It uses the photos of the folder, then synthetic photos of 12
  megapixels. It also prints the CPU time, which other work on the machine changes less.
- `augment` measures each level of augmentation and each mix at 160 pixels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

SIZE = (160, 160)


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    decode_ = commands.add_parser("decode", help="compare with image_dataset_from_directory")
    decode_.add_argument("folder", type=Path, help="folder with JPEGs, one subfolder per class")
    decode_.add_argument("--rounds", type=int, default=7)
    decode_.set_defaults(run=decode)
    augment_ = commands.add_parser("augment", help="measure each level of augmentation and each mix")
    augment_.add_argument("--rounds", type=int, default=5)
    augment_.set_defaults(run=augment)
    options = parser.parse_args()
    options.run(options)


def decode(options: argparse.Namespace) -> None:
    """Compare decoding with that of Keras."""
    compare("photos in the folder", options.folder, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder) / "class", count=24, size=(4000, 3000))
        compare("photos of 12 megapixels", Path(folder), options.rounds)


def compare(name: str, folder: Path, rounds: int) -> None:
    """Read a folder with both in turn; print medians and their ratio."""
    import keras

    from transfer.images.pipeline import make_dataset
    from transfer.images.splitting import Split

    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg"})
    split = Split(files, np.zeros(len(files), "int64"), [str(file) for file in files])
    ours = make_dataset(split, image_size=SIZE, batch_size=32, cache=False)
    theirs = keras.utils.image_dataset_from_directory(
        folder, labels=None, image_size=SIZE, batch_size=32, verbose=False
    )
    figures = in_turn(
        {"transfer": lambda: sum(len(x) for x, _ in ours), "keras": lambda: sum(map(len, theirs))},
        rounds,
    )
    kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1e3
    print(f"{name}: {len(files)} files of {kilobytes:.0f} kB on average")
    show(figures)
    (our_rate, our_cpu), (keras_rate, keras_cpu) = figures["transfer"], figures["keras"]
    print(f"  images/s, transfer / Keras: {our_rate / keras_rate:.2f}")
    print(f"  CPU time, Keras / transfer: {keras_cpu / our_cpu:.2f}")


def augment(options: argparse.Namespace) -> None:
    """Measure each level of augmentation, and each mix, on images in memory."""
    import tensorflow as tf

    from transfer.images.augmentation import AUGMENTATIONS, MIXES, augmentation, mixing

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, *SIZE, 3), "uint8")
    keys = rng.integers(2**31, size=(256, 2)).astype("int32")
    dataset = tf.data.Dataset.from_tensor_slices((images, keys))

    def level(name: str) -> Callable[[], int]:
        batches = dataset.map(augmentation(name), num_parallel_calls=tf.data.AUTOTUNE).batch(32)
        return lambda: sum(len(x) for x in batches)

    def mix(name: str) -> Callable[[], int]:
        change = mixing(name, 2)
        batches = dataset.batch(32).map(
            lambda x, keys: change(x, tf.zeros(len(x), tf.int64), keys[0]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return lambda: sum(len(x) for x, _ in batches)

    passes = {f"augment={name}": level(name) for name in AUGMENTATIONS}
    passes |= {f"mix={name}": mix(name) for name in MIXES}
    show(in_turn(passes, options.rounds))


def in_turn(passes: dict[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median images/s and CPU ms per image of each pass; a pass returns its number of images."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, one_pass in passes.items():
            start, cpu = time.perf_counter(), time.process_time()
            count = one_pass()
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            if number:  # the first round warms up
                measured[name].append((count / wall, 1e3 * cpu / count))
    return {
        name: (statistics.median(r for r, _ in rows), statistics.median(c for _, c in rows))
        for name, rows in measured.items()
    }


def show(figures: dict[str, tuple[float, float]]) -> None:
    """Print a row per pass."""
    for name, (rate, cpu) in figures.items():
        print(f"  {name:20} {rate:7.0f} images/s  {cpu:7.2f} ms of CPU time per image")


def make_photos(folder: Path, *, count: int, size: tuple[int, int]) -> None:
    """Write different JPEGs of smooth noise; `size` is width and height in pixels."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (size[1] // 20, size[0] // 20, 3), "uint8")
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        smooth.save(folder / f"{number:03}.jpg", quality=90)


if __name__ == "__main__":
    main()
