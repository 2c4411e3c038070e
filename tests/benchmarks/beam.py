"""What Beam costs where it is not needed, and what reading by blocks saves.

    python tests/benchmarks/beam.py passes --images 2000 --rounds 3
    python tests/benchmarks/beam.py reads --rows 60000

`passes` runs EfficientNetLite0 at 96 px, engine keras, over made-up JPEGs: in one process with as many threads as
there are cores, and on Beam with a process of one thread for each core, in turn. It gives images/s from the first
batches on, and those of the whole pass with the seconds that the rest took: starting workers, loading and tracing the
network, laying out the shards. Other work on the machine changes all of them; less so the seconds of CPU that each
further image takes, which a pass over a quarter of the images tells from those of the start.

`reads` makes a store of rows of 1,280 numbers in files of 4,096 and reads it in batches of 32: by a plain permutation,
and by `sampling`. It gives how many reads of neighbours a batch needs, and rows/s from the memory of the operating
system; on a disk the reads decide, which such a store does not show.
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
    passes_ = commands.add_parser("passes", help="one process with threads against processes")
    passes_.add_argument("--images", type=int, default=2000)
    passes_.add_argument("--rounds", type=int, default=3)
    passes_.add_argument("--workers", type=int, default=os.cpu_count())
    passes_.set_defaults(run=passes)
    reads_ = commands.add_parser("reads", help="plain permutation against blocks")
    reads_.add_argument("--rows", type=int, default=60_000)
    reads_.set_defaults(run=reads)
    options = parser.parse_args()
    options.run(options)


def passes(options: argparse.Namespace) -> None:
    """Compare the local pass with that on Beam, and print medians and their ratio."""
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.cases import builders
    from transfer.frozen import extraction
    from transfer.frozen.beam_extraction import extract_with_beam
    from transfer.networks.backbones import load_backbone

    model = builders.small_similar(load_backbone("EfficientNetLite0", image_size=SIZE[0]), 2)
    extractor = extraction.frozen_feature_extractor(model)
    common: dict[str, Any] = {"image_size": SIZE, "engine": "keras", "precision": "float32"}
    several = ["--direct_running_mode=multi_processing", f"--direct_num_workers={options.workers}"]
    ways: dict[str, Callable[..., Any]] = {
        "one process": lambda split, cache: extraction.extract(extractor, split, cache=cache, **common),
        "Beam": lambda split, cache: extract_with_beam(
            extractor, split, cache=cache, options=several, **common
        ),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        split = make_images(Path(folder), options.images)
        for _ in range(options.rounds):
            for name, run in ways.items():
                *_, cpu_of_few = timed(run, split.take(range(len(split) // 4)))
                *speeds, cpu = timed(run, split)
                further = len(split) - len(split) // 4
                found[name].append([*speeds, 1000 * (cpu - cpu_of_few) / further])
    for name, rounds in found.items():
        rate, whole, start, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name:12} {rate:6.1f} images/s; with all {whole:6.1f}, {start:.1f} s of it for the rest")
        print(f"{'':12} {cpu:6.2f} ms of CPU for each further image")
    pairs = list(zip(found["one process"], found["Beam"], strict=True))
    print("Beam / one process, images/s:", ", ".join(f"{beam[0] / one[0]:.2f}" for one, beam in pairs))
    print("the same by seconds of CPU:", ", ".join(f"{one[3] / beam[3]:.2f}" for one, beam in pairs))
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def timed(run: Callable[..., Any], split: Any) -> tuple[float, float, float, float]:
    """Images/s from the first batches on, and of the whole pass; seconds that the rest took; seconds of CPU."""
    from transfer.frozen.feature_cache import FeatureCache

    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), cpu_seconds()
        found = run(split, FeatureCache(Path(folder)))
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
    if found.computed != len(split):
        raise RuntimeError(f"{found.computed} of {len(split)} were computed")
    return (
        1 / found.seconds_per_image,
        len(split) / seconds,
        seconds - len(split) * found.seconds_per_image,
        cpu,
    )


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


def make_images(folder: Path, count: int) -> Any:
    """JPEGs of 160 x 120 pixels: blurred noise, no two alike."""
    from PIL import Image

    from transfer.images.splitting import Split

    draw = np.random.default_rng(0)
    paths, digests = [], []
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (15, 20, 3), "uint8"))
        paths.append(folder / f"{number:06}.jpg")
        coarse.resize((160, 120)).save(paths[-1], quality=90)
        digests.append(hashlib.sha256(paths[-1].read_bytes()).hexdigest())
    return Split(paths, np.arange(count) % 2, [path.name for path in paths], digests=digests)


def reads(options: argparse.Namespace) -> None:
    """Compare reads for each batch, and rows/s."""
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.frozen.sampling import BLOCK, MIXED, Sampler, count_runs, windows

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureCache(Path(folder)).store("0a1b2c3d", shape=(WIDTH,), dtype="float32", about={})
        ids = np.concatenate(
            [fill(store, i, min(4096, options.rows - i)) for i in range(0, options.rows, 4096)]
        )
        plain = np.random.default_rng(0).permutation(len(ids))
        batches = [plain[i : i + BATCH] for i in range(0, len(plain), BATCH)]
        sampler = Sampler(lambda positions: store.take(ids[positions]), ids, seed=0)
        mixed = sampler.order(0)
        by_window = [count_runs(ids[window]) for window in windows(ids, seed=0, epoch=0)]
        needed = {
            "permutation": sum(count_runs(ids[batch]) for batch in batches) / len(batches),
            "blocks": sum(by_window) / len(batches),
        }
        rates = {
            "permutation": rate(lambda batch: store.take(ids[batch]), batches),
            "blocks": rate(sampler.take, [mixed[i : i + BATCH] for i in range(0, len(mixed), BATCH)]),
        }
    for name, number in needed.items():
        print(
            f"{name:12} {number:6.2f} reads for each batch of {BATCH}; {rates[name]:8,.0f} rows/s from memory"
        )
    print(f"{len(by_window)} windows of {MIXED} blocks of {BLOCK}")


def fill(store: Any, first: int, count: int) -> np.ndarray:
    """Append made-up rows as one file."""
    digests = [hashlib.sha256(b"%d" % (first + i)).hexdigest() for i in range(count)]
    values = np.random.default_rng(first).normal(size=(count, WIDTH)).astype("float32")
    return store.append(digests, values)


def rate(take: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> float:
    """Rows/s of one pass."""
    start = time.perf_counter()
    for batch in batches:
        take(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
