"""Estimate the time and disk space for one million and 100 million images from measurements on this machine.

    python tests/benchmarks/plan.py
    python tests/benchmarks/plan.py --reading 0.4 --forward 0.05 --tuning 0.3

Measures with EfficientNetLite0 at 224 pixels the time per image to read a synthetic JPEG of 500 x 375 pixels, to run
the frozen network, to train the whole network, and to train a head on stored features. Options replace measurements,
for example by those of another device. Then prints hours and bytes for each case on 1, 8 and 64 devices.

The estimates assume that distributed work scales linearly. This was measured for two processes only (workers.py and
beam.py).
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np

SIZE, WIDTH = 224, 1280
COUNTS = (10**6, 10**8)
DEVICES = (1, 8, 64)
HEAD_EPOCHS = 30


def main() -> None:
    """Measure the times that no option sets, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags = {
        "--reading": "to read and decode an image",
        "--forward": "of the frozen network",
        "--tuning": "to train the whole network",
        "--rows": "to train a head on stored features",
    }
    for flag, text in flags.items():
        parser.add_argument(flag, type=float, metavar="MS", help=f"milliseconds per image {text}")
    options = parser.parse_args()
    measures = {"reading": reading, "forward": forward, "tuning": tuning, "rows": rows}
    cost = {
        name: 1000 * measure() if getattr(options, name) is None else getattr(options, name)
        for name, measure in measures.items()
    }
    say("milliseconds per image: " + ", ".join(f"{name} {value:.3f}" for name, value in cost.items()))
    for count in COUNTS:
        heads = "".join(f"{f'{n} device' + 's' * (n > 1):>12}" for n in DEVICES)
        say(f"\n{f'{count:,} images':40}{heads}{'on disk':>12}")
        for case, (distributed, single, size) in hours(count, cost).items():
            cells = "".join(f"{distributed / n + single:10.1f} h" for n in DEVICES)
            say(f"{case:40}{cells}{size / 1e9:9,.0f} GB")


def hours(count: int, cost: dict[str, float]) -> dict[str, tuple[float, float, int]]:
    """Return distributed hours, hours on a single device, and bytes on disk for each case."""
    from transfer.training.schedules import epochs_for

    hour = count / 1000 / 3600
    size = 4 * WIDTH * count  # float32 features
    one_pass = hour * max(cost["reading"], cost["forward"])  # both run at the same time
    head = 0.0 if size <= 2 * 2**30 else hour * HEAD_EPOCHS * cost["rows"]  # 2 GB in memory: solved exactly
    epochs = {init: epochs_for(count, 32, init=init) for init in ("pretrained", "random")}
    train = {init: hour * n * max(cost["reading"], cost["tuning"]) for init, n in epochs.items()}
    return {
        "cases 1 and 2: one pass and a head": (one_pass, head, size),
        f"case 3: head, then {epochs['pretrained']} epochs": (one_pass + train["pretrained"], head, size),
        f"case 4: {epochs['random']} epochs, random weights": (train["random"], 0.0, 0),
    }


def jpeg() -> bytes:
    """Return a synthetic photo: smooth shapes with some noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype("uint8")).resize((500, 375), 3)
    noisy = np.clip(np.asarray(small).astype("int16") + rng.integers(-8, 9, (375, 500, 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(noisy.astype("uint8")).save(file, "JPEG", quality=90)
    return file.getvalue()


def sample(count: int) -> Any:
    """Return random images of four classes."""
    import transfer

    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3)).astype("uint8")
    return transfer.load_data((images, np.arange(count) % 4), val=0, test=0.05, near_duplicates=False)


def reading(count: int = 400) -> float:
    """Return the seconds per image to decode and resize, on all threads."""
    from transfer.images.pipeline import make_dataset
    from transfer.images.splitting import Split

    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            (Path(folder) / f"{i}.jpg").write_bytes(jpeg() + bytes([i % 256]))
        paths = [str(Path(folder) / f"{i}.jpg") for i in range(count)]
        split = Split(paths, np.zeros(count, "int64"), names=[Path(path).name for path in paths])
        dataset = make_dataset(split, image_size=(SIZE, SIZE), batch_size=32)
        for _ in dataset.take(2):
            pass
        start = time.perf_counter()
        for _ in dataset:
            pass
        return (time.perf_counter() - start) / count


def forward(count: int = 640) -> float:
    """Return the seconds per image of the frozen network, with the fastest installed engine."""
    from transfer.cases.builders import small_similar
    from transfer.frozen.engines import make_engine
    from transfer.networks.backbones import load_backbone
    from transfer.networks.surgery import feature_extractor_of

    engine = make_engine(
        feature_extractor_of(small_similar(load_backbone("EfficientNetLite0", image_size=SIZE), 4))
    )
    images = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3)).astype("uint8")
    engine(images)
    start = time.perf_counter()
    for _ in range(count // 32):
        engine(images)
    return (time.perf_counter() - start) / (count // 32 * 32)


def tuning() -> float:
    """Return the seconds per image to train the whole network, without the first epoch."""
    import keras

    import transfer
    from transfer.networks.backbones import load_backbone

    data, ends = sample(340), []
    model = transfer.large_similar(load_backbone("EfficientNetLite0", image_size=SIZE), 4)
    timer = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    transfer.fit(model, data, epochs=3, verbose=0, callbacks=[timer])
    return float(min(np.diff(ends))) / len(data.train)


def rows(count: int = 60000) -> float:
    """Return the seconds per image and epoch to train a head on features from disk."""
    import keras

    from transfer.frozen.sampling import Sampler
    from transfer.images.pipeline import batch_rows

    with tempfile.TemporaryFile() as file:
        features = np.memmap(file, "float32", "w+", shape=(count, WIDTH))
        sampler = Sampler(lambda positions: np.asarray(features[positions]), np.arange(count), seed=0)
        labels = np.arange(count) % 4
        options: dict[str, Any] = {"shuffle_seed": 0, "arrange": sampler.order}
        dataset = batch_rows(sampler.take, labels, width=WIDTH, batch_size=256, **options)
        head = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(4, activation="softmax")])
        head.compile("adam", "sparse_categorical_crossentropy")
        head.fit(dataset, verbose=0)
        start = time.perf_counter()
        head.fit(dataset, verbose=0)
        return (time.perf_counter() - start) / count


def say(text: str) -> None:
    """Print a line without buffering."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
