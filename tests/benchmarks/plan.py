"""What a million and a hundred million images would cost, from what one machine does with a few.

    python tests/benchmarks/plan.py
    python tests/benchmarks/plan.py --reading 0.4 --forward 0.05 --tuning 0.3

Measures, for EfficientNetLite0 at 224 pixels: milliseconds of reading an image (a made-up JPEG of 500 x 375), of
running the frozen network over it, of training everything on it, and of reading its features again; or takes what is
given, of another device, say. Then prints hours and bytes for each case on 1, 8 and 64 such devices, as if they shared
evenly what can be shared: two were measured to (see workers.py and beam.py), more were not.
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
    """Measure what is not given, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("reading", "forward", "tuning", "rows"):
        parser.add_argument(f"--{name}", type=float, help="milliseconds per image")
    given = parser.parse_args()
    measures = {"reading": reading, "forward": forward, "tuning": tuning, "rows": rows}
    cost = {name: getattr(given, name) or 1000 * measure() for name, measure in measures.items()}
    say("ms per image: " + ", ".join(f"{name} {value:.3f}" for name, value in cost.items()))
    for count in COUNTS:
        say(
            f"\n{count:,} images{'':24}"
            + "".join(f"{n:>3} device{'s' * (n > 1):1}" for n in DEVICES)
            + "   on disk"
        )
        for case, parts in hours(count, cost).items():
            cells = [shared / n + alone for n in DEVICES for shared, alone in [parts["hours"]]]
            say(
                f"{case:40}"
                + "".join(f"{cell:10.1f} h" for cell in cells)
                + f"   {parts['bytes'] / 1e9:,.0f} GB"
            )


def hours(count: int, cost: dict[str, float]) -> dict[str, dict[str, Any]]:
    """For each case: hours that devices share, hours that they do not, and bytes of what is kept."""
    from transfer.training.schedules import epochs_for

    hour = count / 1000 / 3600
    fits = 4 * WIDTH * count <= 2 * 2**30
    one_pass = hour * max(cost["reading"], cost["forward"])  # each waits for the other
    head = 0.0 if fits else hour * HEAD_EPOCHS * cost["rows"]
    epochs = {init: epochs_for(count, 32, init=init) for init in ("pretrained", "random")}
    train = {init: hour * n * max(cost["reading"], cost["tuning"]) for init, n in epochs.items()}
    kept = 4 * WIDTH * count
    found = {
        "cases 1, 2: one pass, a head": {"hours": (one_pass, head), "bytes": kept},
        f"case 3: head, then {epochs['pretrained']} epochs": {
            "hours": (one_pass + train["pretrained"], head),
            "bytes": kept,
        },
        f"case 4, random: {epochs['random']} epochs": {"hours": (train["random"], 0.0), "bytes": 0},
    }
    return found


def jpeg() -> bytes:
    """A made-up photograph: smooth shapes and a little noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype("uint8")).resize((500, 375), 3)
    noisy = np.clip(np.asarray(small).astype("int16") + rng.integers(-8, 9, (375, 500, 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(noisy.astype("uint8")).save(file, "JPEG", quality=90)
    return file.getvalue()


def sample(count: int) -> Any:
    """Made-up images of four classes."""
    import transfer

    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3)).astype("uint8")
    return transfer.load_data((images, np.arange(count) % 4), val=0, test=0.05, near_duplicates=False)


def reading(count: int = 400) -> float:
    """Seconds of decoding and resizing an image, on all threads."""
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
        begun = time.perf_counter()
        for _ in dataset:
            pass
        return (time.perf_counter() - begun) / count


def forward(count: int = 640) -> float:
    """Seconds of the frozen network, by the fastest engine that is installed."""
    from transfer.cases.builders import small_similar
    from transfer.frozen.engines import make_engine
    from transfer.networks.backbones import load_backbone
    from transfer.networks.surgery import feature_extractor_of

    engine = make_engine(
        feature_extractor_of(small_similar(load_backbone("EfficientNetLite0", image_size=SIZE), 4))
    )
    images = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3)).astype("uint8")
    engine(images)
    begun = time.perf_counter()
    for _ in range(count // 32):
        engine(images)
    return (time.perf_counter() - begun) / (count // 32 * 32)


def tuning() -> float:
    """Seconds of training everything, after the first epoch."""
    import keras

    import transfer
    from transfer.networks.backbones import load_backbone

    data, ends = sample(340), []
    model = transfer.large_similar(load_backbone("EfficientNetLite0", image_size=SIZE), 4)
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    transfer.fit(model, data, epochs=3, verbose=0, callbacks=[note])
    return float(min(np.diff(ends))) / len(data.train)


def rows(count: int = 60000) -> float:
    """Seconds of an epoch of a head in epochs, for each row of features that are read from disk."""
    import keras

    from transfer.frozen.sampling import Sampler
    from transfer.images.pipeline import batch_rows

    with tempfile.TemporaryFile() as file:
        kept = np.memmap(file, "float32", "w+", shape=(count, WIDTH))
        sampler = Sampler(lambda positions: np.asarray(kept[positions]), np.arange(count), seed=0)
        labels = np.arange(count) % 4
        options: dict[str, Any] = {"shuffle_seed": 0, "arrange": sampler.order}
        dataset = batch_rows(sampler.take, labels, width=WIDTH, batch_size=256, **options)
        head = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(4, activation="softmax")])
        head.compile("adam", "sparse_categorical_crossentropy")
        head.fit(dataset, verbose=0)
        begun = time.perf_counter()
        head.fit(dataset, verbose=0)
        return (time.perf_counter() - begun) / count


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
