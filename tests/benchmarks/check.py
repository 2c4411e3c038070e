"""Measure the data check: its time and memory, and how well it finds near-duplicates.

    python tests/benchmarks/check.py time path/to/cifar10
    python tests/benchmarks/check.py growth --counts 12500 25000 50000 100000

- `time` loads and checks a folder in a separate process.
- `growth` does the same for synthetic JPEGs of 32 pixels, in increasing numbers. It prints the seconds and the peak
  memory beyond that of the imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

LOAD = """
import json, resource, sys, time
from transfer.images.datasets import load_data
import imagehash, scipy.fft, scipy.sparse.csgraph
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
data = load_data(sys.argv[1])
print(json.dumps({"images": data.report.total, "seconds": time.perf_counter() - start, "MB": peak() - before}))
"""


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    time_ = commands.add_parser("time", help="time to load and check a folder")
    time_.add_argument("folder", type=Path)
    time_.set_defaults(run=lambda options: show(load(options.folder)))
    growth_ = commands.add_parser("growth", help="time and memory for growing numbers of images")
    growth_.add_argument("--counts", type=int, nargs="+", default=[12_500, 25_000, 50_000, 100_000])
    growth_.set_defaults(run=growth)
    options = parser.parse_args()
    options.run(options)


def load(folder: Path) -> dict[str, float]:
    """Load a folder in a separate process, since peak memory is measured per process."""
    command = [sys.executable, "-c", LOAD, str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def show(figures: dict[str, float]) -> None:
    """Print the measurements of a folder."""
    rate = figures["images"] / figures["seconds"]
    print(
        f"{figures['images']:>8,} images  {figures['seconds']:6.1f} s  {rate:6,.0f} images/s  "
        f"{figures['MB']:4.0f} MB more than after the imports",
        flush=True,
    )


def growth(options: argparse.Namespace) -> None:
    """Load folders with growing numbers of JPEGs of 32 pixels."""
    with tempfile.TemporaryDirectory() as name:
        made = 0
        for count in sorted(options.counts):
            for i in range(made, count):
                make_jpeg(Path(name) / f"class{i % 10}" / f"{i // 1000:03}" / f"{i:06}.jpg", seed=i)
            made = count
            show(load(Path(name)))


def make_jpeg(path: Path, *, seed: int) -> None:
    """Write a random image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype="uint8")
    Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(path, quality=85)


if __name__ == "__main__":
    main()
