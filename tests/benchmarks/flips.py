"""Measure how well `fit` finds classes that mirroring swaps, and how often it is wrong.

    python tests/benchmarks/flips.py run --images path/to/images
    python tests/benchmarks/flips.py show

The real sets are those of advice.py; mirroring keeps their classes. The drawn sets are arrows and characters with
neutral names. Each unit is a set, a number of images per class and an image size. Its row has the decision, and the
pair of classes whose direction leads most: the accuracy of the direction, that of the sum, and the probabilities of
both tests. Units that have a row in `--results` are skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import advice
import numpy as np

REAL = ("emoji", "hymenoptera", "sign_digits", "cifar10", "fashion_mnist")
DRAWN = {
    "two arrows": "←→",
    "four arrows": "←→↑↓",
    "letters": "bdpq",
    "symmetric letters": "AHMO",
    "strokes": "/\\|",
}
COUNTS = (10, 14, 20, 40)
SIZES = (64, 128)


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=[*DRAWN, *REAL])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    default = Path(__file__).parent / "results" / "flips.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(advice.stored(options.results))
        return
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    for size, name, seed, count in itertools.product(SIZES, options.sets, options.seeds, COUNTS):
        run({"data": name, "size": size, "per_class": count, "seed": seed}, options)


def run(unit: dict[str, Any], options: argparse.Namespace) -> None:
    """Measure a unit, append its row to the results, and print it."""
    from transfer.training import mirroring

    if any(unit.items() <= row.items() for row in advice.stored(options.results)):
        return
    images, labels = sample(unit, options.images)
    engine = engine_of(unit["size"])
    start = time.perf_counter()
    parts = [images[i : i + 32].astype("float32") for i in range(0, len(images), 32)]
    plain = np.concatenate([engine(part) for part in parts])
    mirrored = np.concatenate([engine(part[:, :, ::-1]) for part in parts])
    found = mirroring.mirrored_pair(plain, mirrored, labels, seed=unit["seed"])
    seconds = time.perf_counter() - start
    pairs = mirroring.measured_pairs(plain, mirrored, labels, seed=unit["seed"])
    lead = max(pairs, key=lambda pair: pair.direction - pair.sides)
    row = {**unit, "images": len(labels), "off": found is not None, "seconds": round(seconds, 2)}
    row |= {key: float(f"{value:.3g}") for key, value in lead._asdict().items() if key != "images"}
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def sample(unit: dict[str, Any], root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images of a set at the size of the unit, the same number of each class."""
    from transfer.images.decoding import to_rgb_array

    size, count, rng = (unit["size"],) * 2, unit["per_class"], np.random.default_rng(unit["seed"])
    if unit["data"] in DRAWN:
        characters = DRAWN[unit["data"]]
        drawn = [draw(c, rng) for c in characters for _ in range(count)]
        return np.stack([to_rgb_array(image, size) for image in drawn]), np.repeat(
            range(len(characters)), count
        )
    images, labels, _ = advice.read(unit["data"], root)
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:count] for k in np.unique(labels)])
    return np.stack([to_rgb_array(images[i], size) for i in rows]), labels[rows]


def draw(character: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a character with a random font, size, place and color, 64 pixels wide."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVuSans*.ttf"))
    fonts = [path for path in fonts if "Display" not in path.name]
    font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), int(rng.integers(28, 48)))
    image = Image.new("RGB", (64, 64), tuple(rng.integers(150, 255, 3).tolist()))
    x, y = rng.integers(20, 44, 2).tolist()
    color = tuple(rng.integers(0, 110, 3).tolist())
    ImageDraw.Draw(image).text((x, y), character, font=font, fill=color, anchor="mm")
    return np.asarray(image)


def engine_of(size: int, engines: dict[int, Any] = {}) -> Any:  # noqa: B006 (keeps the engine of each size)
    """Return the frozen network as an engine."""
    from transfer.cases.builders import build
    from transfer.frozen.engines import make_engine
    from transfer.networks import surgery
    from transfer.networks.backbones import load_backbone

    if size not in engines:
        base = load_backbone(advice.MODEL, image_size=size)
        model = build("small-similar", base, 2, image_size=size)
        engines[size] = make_engine(surgery.feature_extractor_of(model))
    return engines[size]


def show(rows: list[dict[str, Any]]) -> None:
    """Print how often flips were switched off, by set, size and number of images."""
    print(
        "".join(
            f"{cell:>20}"
            for cell in ("set", "pixels", *(f"{count} per class" for count in COUNTS), "lowest p")
        )
    )
    for name, size in itertools.product([*DRAWN, *REAL], SIZES):
        of_set = [row for row in rows if (row["data"], row["size"]) == (name, size)]
        if not of_set:
            continue
        cells = [name, size]
        for count in COUNTS:
            off = [row["off"] for row in of_set if row["per_class"] == count]
            cells.append(f"{sum(off)} of {len(off)}")
        cells.append(f"{min(row['p_sides'] for row in of_set):.2g}")
        print("".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
