"""Compare heads on a frozen network with fine-tuning for a number per image, and verify the prediction intervals.

    python tests/benchmarks/regression.py run [--sets size dots] [--seeds 0 1 2]
    python tests/benchmarks/regression.py show

`size`: the size in pixels of a letter of random font, color and place. `dots`: the number of dots in an image, 1 to 20.
Each set has 600 training, 100 validation and 400 test images of 128 pixels. The network is EfficientNet-Lite0.
`last layer` and `chosen layers` are ridge regressions on the frozen network; `fine-tuned` continues from the head on
the last layer with the defaults of `fit`, and `huber` does so with the Huber loss. Coverage is the fraction of test
images whose number is in the 90% interval of the validation images.

Each unit adds a row to `results/regression.jsonl`; units that have a row are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import transfer
from transfer.adviser.sample_features import extract_sample_features
from transfer.adviser.task_advice import advise_task
from transfer.frozen.feature_cache import FeatureCache

RESULTS = Path(__file__).parent / "results" / "regression.jsonl"
COUNTS = {"train": 600, "val": 100, "test": 400}
METHODS = ("last layer", "chosen layers", "fine-tuned", "huber")
SIDE, COVERAGE = 128, 0.9


def main() -> None:
    """Run the units that are missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--sets", nargs="+", choices=(*SETS,), default=[*SETS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if options.action == "show":
        show(rows)
        return
    for unit in ((s, seed, m) for s in options.sets for seed in options.seeds for m in options.methods):
        if any((row["set"], row["seed"], row["method"]) == unit for row in rows):
            continue
        row = dict(zip(("set", "seed", "method"), unit, strict=True)) | measure(*unit)
        row["load"] = round(os.getloadavg()[0], 1)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def show(rows: list[dict]) -> None:
    """Print the mean of each method on each set in Markdown."""
    print("| set | method | seeds | MAE | R2 | coverage | seconds |\n|---|---|---|---|---|---|---|")
    for name in SETS:
        for method in METHODS:
            own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
            if own:
                keys = ("mae", "r2", "coverage", "seconds")
                mae, r2, covered, seconds = (np.mean([row[key] for row in own]) for key in keys)
                print(
                    f"| {name} | {method} | {len(own)} | {mae:.2f} | {r2:.3f} | {covered:.1%} | {seconds:.0f} |"
                )


def measure(name: str, seed: int, method: str) -> dict[str, float]:
    """Train by a method; return the errors on the test images and the seconds of the training."""
    draw = np.random.default_rng(seed)
    parts = {part: SETS[name](count, draw) for part, count in COUNTS.items()}
    data = transfer.load_data(parts, task="regression", class_names=[name], seed=seed)
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder)
        base = transfer.load_backbone(image_size=SIDE)
        options = {"cut": None}
        if method == "chosen layers":
            sample = extract_sample_features(data.train, base, cache=cache)
            options["cut"] = advise_task(data, base, sample, trial=False).cut
        build = transfer.large_similar if method in ("fine-tuned", "huber") else transfer.small_similar
        loss = {"loss": "huber"} if method == "huber" else {}
        model = build(base, 1, task="regression", **options, **loss)
        transfer.fit(model, data, cache=cache, seed=seed, verbose=0)
        seconds = time.perf_counter() - start
        val, test = (transfer.evaluate(model, data, split=split, cache=cache) for split in ("val", "test"))
    # Split-conformal: the quantile of the absolute errors with the correction for finite samples.
    errors = np.sort(np.abs(val.predictions - val.labels))
    half = errors[min(len(errors), int(np.ceil(COVERAGE * (len(errors) + 1)))) - 1]
    distance = np.abs(test.predictions - test.labels)
    return {
        "mae": round(float(distance.mean()), 4),
        "r2": round(float(1 - (distance**2).mean() / np.var(test.labels)), 4),
        "coverage": float(np.mean(distance <= half)),
        "seconds": round(seconds, 2),
    }


def letter_sizes(count: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return images of one letter each, and the size of its font in pixels."""
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVuSans*.ttf"))
    images, sizes = np.empty((count, SIDE, SIDE, 3), "uint8"), draw.uniform(20, 100, count)
    for image, size in zip(images, sizes, strict=True):
        background, pen = _colors(draw)
        canvas = Image.new("RGB", (SIDE, SIDE), background)
        font = ImageFont.truetype(str(fonts[draw.integers(4)]), float(size))
        place = tuple(draw.integers(45, 83, 2).tolist())
        letter = "ABCDEFGHKLMNPRSTUVXYZ"[draw.integers(21)]
        ImageDraw.Draw(canvas).text(place, letter, pen, font, anchor="mm")
        image[:] = np.asarray(canvas)
    return images, sizes


def dots(count: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return images of dots that do not touch, and their number."""
    images, numbers = np.empty((count, SIDE, SIDE, 3), "uint8"), draw.integers(1, 21, count)
    cells = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * 25 + 14
    for image, number in zip(images, numbers, strict=True):
        background, pen = _colors(draw)
        canvas = Image.new("RGB", (SIDE, SIDE), background)
        for x, y in draw.permutation(cells)[:number] + draw.integers(-3, 4, (number, 2)):
            radius = int(draw.integers(4, 9))
            ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), pen)
        image[:] = np.asarray(canvas)
    return images, numbers.astype("float64")


def _colors(draw: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return two different colors."""
    first = draw.integers(0, 256, 3)
    return tuple(first.tolist()), tuple(((first + 128 + draw.integers(-40, 40, 3)) % 256).tolist())


SETS = {"size": letter_sizes, "dots": dots}


if __name__ == "__main__":
    main()
