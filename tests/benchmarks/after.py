"""Measure the steps after training: the report, predictions from files, and explanations.

    python tests/benchmarks/after.py report --data sign_digits
    python tests/benchmarks/after.py predict --data sign_digits
    python tests/benchmarks/after.py explain --data hymenoptera --size 224

Each command first trains a head.

- `report` times the parts of the run's report, and the command `transfer.report`.
- `predict` compares predictions from image files with the network's engine and with Keras' `predict` on arrays in
  memory. It uses all training images four times and prints the better of two rounds, all in one process.
- `explain` compares Grad-CAM with occlusion on twelve test images, and times both.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np


def main() -> None:
    """Run a benchmark in a temporary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("report", "predict", "explain"))
    parser.add_argument("--data", default="emoji", help="as for transfer.train (default: emoji)")
    parser.add_argument("--size", type=int, default=128, help="image size in pixels (default: 128)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"report": report, "predict": predict, "explain": explain}[options.command](options, Path(folder))


def train(options: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train a head; return the run folder and the seconds of the parts of its report."""
    from transfer import train
    from transfer.results import run_writer

    seconds: dict[str, float] = {}

    def time_calls(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[name] = time.perf_counter() - start
            return result

        setattr(module, name, timed)

    time_calls(run_writer, "write_run")
    time_calls(run_writer, "write_report")
    case = ["--case", "small-similar", "--image-size", str(options.size)]
    train.main(["--data", options.data, *case, "--output", str(folder / "run")])
    return folder / "run", seconds


def report(options: argparse.Namespace, folder: Path) -> None:
    """Time the report as a part of training, and the command `transfer.report`."""
    run, seconds = train(options, folder)
    say({name: round(value, 2) for name, value in seconds.items()})
    say(f"report as a part of training: {sum(seconds.values()):.1f} s, model.keras included")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "transfer.report", str(run)], check=True, capture_output=True)
    say(f"python -m transfer.report: {time.perf_counter() - start:.1f} s, start of Python included")
    say(f"report.html: {(run / 'report.html').stat().st_size / 1e6:.1f} MB")


def predict(options: argparse.Namespace, folder: Path) -> None:
    """Compare predictions from files with the network on arrays in memory."""
    import transfer
    from transfer.frozen.engines import make_engine
    from transfer.results.finished_runs import load_run
    from transfer.results.predict import BATCH

    run = load_run(train(options, folder)[0])
    split = run.data()
    files = 4 * [split.train.images[i] for i in range(len(split.train))]
    pixels = np.stack(4 * [split.train.image(i, run.image_size) for i in range(len(split.train))])
    engine = make_engine(run.model, precision="float32", batch_size=BATCH)
    parts = range(0, len(files), BATCH)
    engine(pixels[:BATCH])
    rates = {
        "the engine on arrays": best(lambda: [engine(pixels[i : i + BATCH]) for i in parts], len(files)),
        "Keras' predict on arrays": best(
            lambda: run.model.predict(pixels.astype("float32"), verbose=0), len(files)
        ),
        "predict from files": best(lambda: transfer.predict(run, files, progress=False), len(files)),
    }
    for name, rate in rates.items():
        say(f"{name:28}{rate:9.1f} images/s  {rate / rates['the engine on arrays']:.2f}")


def explain(options: argparse.Namespace, folder: Path) -> None:
    """Print the rank correlation of Grad-CAM and occlusion."""
    from transfer.evaluation.explanations import agreement, grad_cam, occlusion
    from transfer.results.finished_runs import load_run

    run = load_run(train(options, folder)[0])
    test = run.data().test
    positions = np.linspace(0, len(test) - 1, 12).astype(int).tolist()
    images = np.stack([test.image(i, run.image_size) for i in positions])
    start = time.perf_counter()
    cams = grad_cam(run.model, images)
    middle = time.perf_counter()
    occlusions = occlusion(run.model, images)
    end = time.perf_counter()
    values = sorted(agreement(cam, other) for cam, other in zip(cams, occlusions, strict=True))
    say(
        "rank correlation: "
        + ", ".join(f"{value:.2f}" for value in values)
        + f"; median {np.median(values):.2f}"
    )
    say(
        f"seconds: Grad-CAM {middle - start:.1f} for 12 images, occlusion {(end - middle) / 12:.1f} per image"
    )


def best(work: Callable[[], Any], count: int) -> float:
    """Return the images per second of the better of two rounds."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


def say(text: Any) -> None:
    """Print a line without buffering."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main()
