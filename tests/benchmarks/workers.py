"""What several workers and devices cost: `tf.distribute` on one device, and the forward pass shared by two processes.

    python tests/benchmarks/workers.py overhead
    python tests/benchmarks/workers.py pass

`overhead` fine-tunes the same network on the same images without a strategy, under a MirroredStrategy of one device,
and as the one worker of a MultiWorkerMirroredStrategy, in turns, and compares seconds per image after the first.
`pass` runs a frozen network over images in one process of two threads, and in two processes of one thread that share
them. Images are made up; ratios are of one run. A line per way is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from helpers import worker_processes

SIZE = 96
WAYS = ("no strategy", "mirrored, one device", "one worker")


def main() -> None:
    """Run one of the commands; those in small letters that begin with `one-` are its processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("overhead", "pass", "one-way", "one-pass"))
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    commands = {"overhead": overhead, "pass": shared_pass, "one-way": one_way, "one-pass": one_pass}
    commands[options.command](options)


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, which networks are as slow on as on anything else."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype("uint8"), np.arange(count) % 4


def ask(arguments: list[str], count: int, **options: object) -> list[dict]:
    """Run this file in so many processes, and give the last line of each."""
    with tempfile.TemporaryDirectory() as folder:
        said = worker_processes.run([__file__, *arguments], count, Path(folder), timeout=900, **options)
    return [json.loads(text.strip().splitlines()[-1]) for text in said]


def overhead(options: argparse.Namespace) -> None:
    """Compare ways to train, in turns."""
    count = str(options.count or 800)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(2):
        for way in WAYS:
            found[way].append(ask(["one-way", "--way", way, "--count", count], 1)[0]["seconds"])
    for way, seconds in found.items():
        ratio = min(seconds) / min(found["no strategy"])
        print(
            json.dumps({"way": way, "ms_per_image": round(1000 * min(seconds), 2), "ratio": round(ratio, 3)})
        )


def one_way(options: argparse.Namespace) -> None:
    """Train one way, and print seconds per image."""
    if options.way == "one worker":
        port = worker_processes.free_ports(1)[0]
        cluster = {"cluster": {"worker": [f"localhost:{port}"]}, "task": {"type": "worker", "index": 0}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
    from transfer.distributed import strategies

    strategies.start_quietly()
    names = {"no strategy": "default", "mirrored, one device": "mirrored", "one worker": "multiworker"}
    devices = strategies.get_strategy(names[options.way])
    import transfer
    from transfer.networks.backbones import load_backbone

    data = transfer.load_data(images(options.count), val=0, test=0.05, near_duplicates=False)
    base = load_backbone("EfficientNetLite0", image_size=SIZE)
    model = transfer.large_similar(base, 4, strategy=devices)
    seconds = clocked(model, data)
    print(json.dumps({"way": options.way, "seconds": seconds}))


def clocked(model: object, data: object, epochs: int = 4) -> float:
    """Seconds per image of the fastest epoch but the first."""
    import keras

    import transfer

    ends: list[float] = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    transfer.fit(model, data, epochs=epochs, verbose=0, callbacks=[note])
    return float(min(np.diff(ends))) / len(data.train)


def shared_pass(options: argparse.Namespace) -> None:
    """Compare one process of two threads with two of one."""
    count = str(options.count or 3000)
    ways = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(2):
        for way, (processes, threads) in ways.items():
            done = ask(["one-pass", "--count", count], processes, threads=threads)
            found[way].append(max(row["seconds"] for row in done))
    first = min(found["one process, two threads"])
    for way, seconds in found.items():
        print(
            json.dumps(
                {"way": way, "seconds": round(min(seconds), 2), "ratio": round(min(seconds) / first, 3)}
            )
        )


def one_pass(options: argparse.Namespace) -> None:
    """Run the network over this worker's part, exchange, and print seconds, tracing not counted."""
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
    engine(np.zeros((32, SIZE, SIZE, 3), "uint8"))
    cache = FeatureCache(Path(tempfile.mkdtemp()))
    process_group.current_group().tell(b"ready")
    begun = time.perf_counter()
    extract(extractor, data.train, image_size=(SIZE, SIZE), engine=engine, cache=cache)
    print(json.dumps({"seconds": time.perf_counter() - begun}))
    process_group.current_group().leave_together()


if __name__ == "__main__":
    main()
