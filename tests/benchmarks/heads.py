"""Measure the seconds of an exact head by the number of images and of features.

    python tests/benchmarks/heads.py [--features FILE] [--counts 500 2000 8000] [--widths 1280 3088]

`FILE` is an npz file with `features` (images, width) and `labels`; it replaces `--widths`. Without it, the features are
drawn: classes overlap, and the variance of the directions decays as in a network. Each row shows the
minimum over `--rounds` of the elapsed seconds and of the CPU seconds of all cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from transfer.frozen.heads import METHODS, solve

CLASSES = 10
DIRECTIONS = 200  # number of directions in which the drawn features differ most


def main() -> None:
    """Print a row for each problem and method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--widths", type=int, nargs="+", default=[1280, 3088])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'images':>7} {'features':>9}  {'methods':<24} {'seconds':>8} {'cpu':>7}  chosen")
    for x, labels in problems(options):
        for methods in (METHODS, ("regression",)):
            seconds, cpu, chosen = measure(x, labels, methods, options.rounds)
            print(
                f"{len(x):>7,} {x.shape[1]:>9,}  {', '.join(methods):<24} {seconds:>8.2f} {cpu:>7.2f}  {chosen}"
            )


def problems(options: argparse.Namespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the features and labels of each problem."""
    if options.features:
        given = np.load(options.features)
        for count in options.counts:
            if count <= len(given["labels"]):
                yield given["features"][:count], given["labels"][:count]
        return
    for width in options.widths:
        x, labels = draw(max(options.counts), width)
        for count in options.counts:
            yield x[:count], labels[:count]


def draw(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features like those of a network, not negative, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    sizes = np.arange(1, DIRECTIONS + 1) ** -0.5
    centers = 0.2 * rng.normal(size=(CLASSES, DIRECTIONS))
    inside = (centers[labels] + rng.normal(size=(count, DIRECTIONS))) * sizes
    x = inside @ rng.normal(size=(DIRECTIONS, width)) + 0.5 * rng.normal(size=(count, width))
    return np.maximum(x, 0).astype("float32"), labels


def measure(
    x: np.ndarray, labels: np.ndarray, methods: tuple[str, ...], rounds: int
) -> tuple[float, float, str]:
    """Return the minimum of the elapsed and of the CPU seconds of a head, and its setting."""
    times = []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        head = solve(x, labels, int(labels.max()) + 1, methods=methods)
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    seconds, processor = np.min(times, axis=0)
    return seconds, processor, f"{head.method} {head.regularization:.3g}"


if __name__ == "__main__":
    main()
