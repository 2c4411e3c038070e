"""What comes after training, and what it costs: the report, and predictions beside the bare network.

    python tests/benchmarks/after.py report --data sign_digits
    python tests/benchmarks/after.py predict --data sign_digits
    python tests/benchmarks/after.py explain --data hymenoptera --size 224

`report` trains once and times its report: the figures, Grad-CAM and all, and the pages; and the command by itself.
`predict` runs all images four times over, decoded and resized, through the network by the engine that `predict`
takes, by Keras' own `predict`, and then times `predict` from their files; each twice, the better one, in one process.
`explain` compares Grad-CAM with occlusion on twelve test images, and times both.
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
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("report", "predict", "explain"))
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"report": report, "predict": predict, "explain": explain}[options.command](options, Path(folder))


def train(options: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train a head; give the run and the seconds of parts of its report."""
    from transfer import train
    from transfer.results import run_figures, run_writer

    seconds: dict[str, float] = {}

    def timed(room: Any, name: str) -> None:
        plain = getattr(room, name)

        def run(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = plain(*given, **named)
            seconds[name] = time.perf_counter() - start
            return result

        setattr(room, name, run)

    timed(run_figures, "draw_figures")
    timed(run_writer, "write_run")
    timed(run_writer, "write_pages")
    case = ["--case", "small-similar", "--image-size", str(options.size)]
    train.main(["--data", options.data, *case, "--output", str(folder / "run")])
    return folder / "run", seconds


def report(options: argparse.Namespace, folder: Path) -> None:
    """Time the report within the training, and the command by itself."""
    run, seconds = train(options, folder)
    say({name: round(value, 2) for name, value in seconds.items()})
    say(f"report within training: {sum(seconds.values()):.1f} s, model.keras and all")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "transfer.report", str(run)], check=True, capture_output=True)
    say(f"python -m transfer.report, start of Python and all: {time.perf_counter() - start:.1f} s")
    say(f"report.html: {(run / 'report.html').stat().st_size / 1e6:.1f} MB")


def predict(options: argparse.Namespace, folder: Path) -> None:
    """Compare predictions from files with the bare network on arrays."""
    import importlib

    from transfer.frozen.engines import make_engine
    from transfer.results.finished_runs import load_run

    command = importlib.import_module("transfer.results.predict")
    run = load_run(train(options, folder)[0])
    split = run.data()
    files = 4 * [split.train.images[i] for i in range(len(split.train))]
    pixels = np.stack(4 * [split.train.image(i, run.image_size) for i in range(len(split.train))])
    engine = make_engine(run.model, precision="float32", batch_size=command.BATCH)
    parts = range(0, len(files), command.BATCH)
    engine(pixels[: command.BATCH])
    rates = {
        "the engine on arrays": best(
            lambda: [engine(pixels[i : i + command.BATCH]) for i in parts], len(files)
        ),
        "Keras' predict on arrays": best(
            lambda: run.model.predict(pixels.astype("float32"), verbose=0), len(files)
        ),
        "predict from files": best(lambda: command.predict(run, files, progress=False), len(files)),
    }
    for name, rate in rates.items():
        say(f"{name:28}{rate:9.1f} images/s  {rate / rates['the engine on arrays']:.2f}")


def explain(options: argparse.Namespace, folder: Path) -> None:
    """Say how far Grad-CAM agrees with occlusion."""
    from transfer.evaluation.explanations import agreement, grad_cam, occlusion
    from transfer.results.finished_runs import load_run

    run = load_run(train(options, folder)[0])
    test = run.data().test
    places = np.linspace(0, len(test) - 1, 12).astype(int).tolist()
    images = np.stack([test.image(i, run.image_size) for i in places])
    start = time.perf_counter()
    heat = grad_cam(run.model, images)
    middle = time.perf_counter()
    falls = occlusion(run.model, images)
    end = time.perf_counter()
    found = sorted(agreement(one, other) for one, other in zip(heat, falls, strict=True))
    say("agreement: " + ", ".join(f"{one:.2f}" for one in found) + f"; median {np.median(found):.2f}")
    say(f"seconds: Grad-CAM of 12 {middle - start:.1f}, occlusion {(end - middle) / 12:.1f} per image")


def best(work: Callable[[], Any], count: int) -> float:
    """Give images per second of the better of two times."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


def say(text: Any) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main()
