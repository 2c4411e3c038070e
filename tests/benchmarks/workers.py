"""Measure distributed work: the overhead of `tf.distribute`, and the forward pass shared by two processes.

    python tests/benchmarks/workers.py overhead
    python tests/benchmarks/workers.py pass

- `overhead` fine-tunes the same network on the same images without a strategy, with a MirroredStrategy of one device,
  and with a MultiWorkerMirroredStrategy of one worker, in turn. It compares the time per image after the first epoch.
- `pass` runs a frozen network over images in one process with two threads, and in two processes with one thread each.
- `one-method` and `one-pass` are started by these commands.

The images are random. Each method prints a row with its time and its ratio to the first method.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from helpers import worker_processes

if TYPE_CHECKING:
    import keras

    from transfer import ImageData

SIZE = 96
METHODS = ("no strategy", "mirrored, one device", "one worker")


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("overhead", "pass", "one-method", "one-pass"))
    parser.add_argument("--method", choices=METHODS, help="of one-method")
    parser.add_argument("--count", type=int, help="images (default: 800 for overhead, 3000 for pass)")
    options = parser.parse_args()
    commands = {"overhead": overhead, "pass": shared_pass, "one-method": one_method, "one-pass": one_pass}
    commands[options.command](options)


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images and labels of four classes."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype("uint8"), np.arange(count) % 4


def run(arguments: list[str], count: int, **options: object) -> list[dict]:
    """Run this script in several processes; return the JSON in the last line of each."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = worker_processes.run([__file__, *arguments], count, Path(folder), timeout=900, **options)
    return [json.loads(text.strip().splitlines()[-1]) for text in outputs]


def overhead(options: argparse.Namespace) -> None:
    """Compare the strategies in turn."""
    count = str(options.count or 800)
    measured: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(2):
        for method in METHODS:
            row = run(["one-method", "--method", method, "--count", count], 1)[0]
            measured[method].append(row["seconds"])
    for method, seconds in measured.items():
        ratio = round(min(seconds) / min(measured["no strategy"]), 3)
        print(json.dumps({"method": method, "ms_per_image": round(1000 * min(seconds), 2), "ratio": ratio}))


def one_method(options: argparse.Namespace) -> None:
    """Train with one strategy, and print the seconds per image."""
    if options.method == "one worker":
        port = worker_processes.free_ports(1)[0]
        cluster = {"cluster": {"worker": [f"localhost:{port}"]}, "task": {"type": "worker", "index": 0}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
    from transfer.distributed import strategies

    strategies.start_quietly()
    names = {"no strategy": "default", "mirrored, one device": "mirrored", "one worker": "multiworker"}
    strategy = strategies.get_strategy(names[options.method])
    import transfer
    from transfer.networks.backbones import load_backbone

    data = transfer.load_data(images(options.count), val=0, test=0.05, near_duplicates=False)
    base = load_backbone("EfficientNetLite0", image_size=SIZE)
    model = transfer.large_similar(base, 4, strategy=strategy)
    print(json.dumps({"method": options.method, "seconds": seconds_per_image(model, data)}))


def seconds_per_image(model: keras.Model, data: ImageData, epochs: int = 4) -> float:
    """Train; return the seconds per image of the fastest epoch after the first."""
    import keras

    import transfer

    ends: list[float] = []
    timer = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    transfer.fit(model, data, epochs=epochs, verbose=0, callbacks=[timer])
    return float(min(np.diff(ends))) / len(data.train)


def shared_pass(options: argparse.Namespace) -> None:
    """Compare one process with two threads and two processes with one thread each."""
    count = str(options.count or 3000)
    methods = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
    measured: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(2):
        for method, (processes, threads) in methods.items():
            rows = run(["one-pass", "--count", count], processes, threads=threads)
            measured[method].append(max(row["seconds"] for row in rows))
    first = min(measured["one process, two threads"])
    for method, seconds in measured.items():
        ratio = round(min(seconds) / first, 3)
        print(json.dumps({"method": method, "seconds": round(min(seconds), 2), "ratio": ratio}))


def one_pass(options: argparse.Namespace) -> None:
    """Run the network over the images of this worker, exchange the features, and print the seconds."""
    from transfer.distributed import process_group, strategies

    strategies.start_quietly()
    strategies.get_strategy("auto", patience=120)
    import transfer
    from transfer.frozen.engines import make_engine
    from transfer.frozen.extraction import extract
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.networks import surgery
    from transfer.networks.backbones import load_backbone

    data = transfer.load_data(images(options.count), val=0, test=0.01, near_duplicates=False)
    base = load_backbone("EfficientNetLite0", image_size=SIZE)
    extractor = surgery.feature_extractor_of(transfer.small_similar(base, 4, strategy="default"))
    engine = make_engine(extractor, engine="keras")
    engine(np.zeros((32, SIZE, SIZE, 3), "uint8"))  # traces the network before the time starts
    cache = FeatureCache(Path(tempfile.mkdtemp()))
    process_group.current_group().gather_bytes(b"ready")
    start = time.perf_counter()
    extract(extractor, data.train, image_size=(SIZE, SIZE), engine=engine, cache=cache)
    print(json.dumps({"seconds": time.perf_counter() - start}))
    process_group.current_group().leave_together()


if __name__ == "__main__":
    main()
