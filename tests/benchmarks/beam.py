"""Measure the overhead of Apache Beam on one machine, and the reads that sampling by blocks saves.

    python tests/benchmarks/beam.py passes --images 2000 --rounds 3
    python tests/benchmarks/beam.py reads --rows 60000

`passes` computes the features of synthetic JPEGs with EfficientNetLite0 at 96 pixels and Keras. It alternates between
one process with one thread per core, and Beam with one single-threaded process per core. It prints:

- images per second once the workers run;
- images per second of the whole pass, and the seconds spent on the rest: starting workers, loading and tracing the
  network, writing shards;
- CPU time per further image, from the difference to a pass over a quarter of the images. Other work on the machine
  changes this number least.

`reads` reads a feature store of rows with 1,280 numbers in batches of 32: in a random order, and in the order of
`transfer.frozen.sampling`. It prints the contiguous reads per batch, and rows per second from the memory of the
operating system. From a disk, the number of reads determines the speed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np

SIZE = (96, 96)
WIDTH = 1280
BATCH = 32


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    passes_ = commands.add_parser("passes", help="compare one process with Beam")
    passes_.add_argument("--images", type=int, default=2000, help="at least 400 (default: 2000)")
    passes_.add_argument("--rounds", type=int, default=3, help="default: 3")
    passes_.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one per core")
    passes_.set_defaults(run=passes)
    reads_ = commands.add_parser("reads", help="compare a random order with sampling by blocks")
    reads_.add_argument("--rows", type=int, default=60_000, help="default: 60000")
    reads_.set_defaults(run=reads)
    options = parser.parse_args()
    options.run(options)


def passes(options: argparse.Namespace) -> None:
    """Compare a pass in one process with one on Beam; print medians and ratios."""
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.cases import builders
    from transfer.frozen import extraction
    from transfer.frozen.beam_extraction import extract_with_beam
    from transfer.networks.backbones import load_backbone

    model = builders.small_similar(load_backbone("EfficientNetLite0", image_size=SIZE[0]), 2)
    extractor = extraction.frozen_feature_extractor(model)
    common: dict[str, Any] = {"image_size": SIZE, "engine": "keras", "precision": "float32"}
    beam_options = ["--direct_running_mode=multi_processing", f"--direct_num_workers={options.workers}"]
    runners: dict[str, Callable[..., Any]] = {
        "one process": lambda split, cache: extraction.extract(extractor, split, cache=cache, **common),
        "Beam": lambda split, cache: extract_with_beam(
            extractor, split, cache=cache, options=beam_options, **common
        ),
    }
    measured: dict[str, list[list[float]]] = {name: [] for name in runners}
    with tempfile.TemporaryDirectory() as folder:
        split = make_images(Path(folder), options.images)
        for _ in range(options.rounds):
            for name, run in runners.items():
                *_, cpu_of_quarter = timed(run, split.take(range(len(split) // 4)))
                *speeds, cpu = timed(run, split)
                further = len(split) - len(split) // 4
                measured[name].append([*speeds, 1000 * (cpu - cpu_of_quarter) / further])
    for name, rounds in measured.items():
        rate, whole, start, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{name:12} {rate:6.1f} images/s; whole pass {whole:6.1f} images/s, {start:.1f} s of it for the rest"
        )
        print(f"{'':12} {cpu:6.2f} ms of CPU time per further image")
    pairs = list(zip(measured["one process"], measured["Beam"], strict=True))
    print("images/s, Beam / one process:", ", ".join(f"{beam[0] / one[0]:.2f}" for one, beam in pairs))
    print("CPU time, one process / Beam:", ", ".join(f"{one[3] / beam[3]:.2f}" for one, beam in pairs))
    print(f"load average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def timed(run: Callable[..., Any], split: Any) -> tuple[float, float, float, float]:
    """Return images/s once the workers run and of the whole pass, seconds of the rest, and CPU seconds."""
    from transfer.frozen.feature_cache import FeatureCache

    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), cpu_seconds()
        features = run(split, FeatureCache(Path(folder)))
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
    if features.computed != len(split):
        raise RuntimeError(f"Expected {len(split)} computed images. Received: {features.computed}.")
    if features.seconds_per_image is None:
        raise SystemExit(f"{len(split)} images are too few to time the pass. Use a larger --images.")
    rest = seconds - len(split) * features.seconds_per_image
    return 1 / features.seconds_per_image, len(split) / seconds, rest, cpu


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its finished child processes."""
    return sum(os.times()[:4])


def make_images(folder: Path, count: int) -> Any:
    """Write different JPEGs of blurred noise, 160 x 120 pixels each."""
    from PIL import Image

    from transfer.images.splitting import Split

    rng = np.random.default_rng(0)
    paths, digests = [], []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), "uint8"))
        paths.append(folder / f"{number:06}.jpg")
        coarse.resize((160, 120)).save(paths[-1], quality=90)
        digests.append(hashlib.sha256(paths[-1].read_bytes()).hexdigest())
    return Split(paths, np.arange(count) % 2, [path.name for path in paths], digests=digests)


def reads(options: argparse.Namespace) -> None:
    """Compare the reads per batch and the rows per second of two orders."""
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.frozen.sampling import BLOCK, MIXED, Sampler, count_runs, windows

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureCache(Path(folder)).store("0a1b2c3d", shape=(WIDTH,), dtype="float32", about={})
        ids = np.concatenate(
            [fill(store, i, min(4096, options.rows - i)) for i in range(0, options.rows, 4096)]
        )
        random_order = np.random.default_rng(0).permutation(len(ids))
        batches = [random_order[i : i + BATCH] for i in range(0, len(ids), BATCH)]
        sampler = Sampler(lambda positions: store.take(ids[positions]), ids, seed=0)
        by_blocks = sampler.order(0)
        runs = [count_runs(ids[window]) for window in windows(ids, seed=0, epoch=0)]
        reads_per_batch = {
            "random order": sum(count_runs(ids[batch]) for batch in batches) / len(batches),
            "blocks": sum(runs) / len(batches),
        }
        rates = {
            "random order": rate(lambda batch: store.take(ids[batch]), batches),
            "blocks": rate(sampler.take, [by_blocks[i : i + BATCH] for i in range(0, len(ids), BATCH)]),
        }
    for name, number in reads_per_batch.items():
        print(f"{name:12} {number:6.2f} reads per batch of {BATCH}; {rates[name]:8,.0f} rows/s from memory")
    print(f"{len(runs)} windows of {MIXED} blocks of {BLOCK}")


def fill(store: Any, first: int, count: int) -> np.ndarray:
    """Append random rows as one file."""
    digests = [hashlib.sha256(b"%d" % (first + i)).hexdigest() for i in range(count)]
    values = np.random.default_rng(first).normal(size=(count, WIDTH)).astype("float32")
    return store.append(digests, values)


def rate(take: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> float:
    """Return the rows per second of one pass."""
    start = time.perf_counter()
    for batch in batches:
        take(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
