"""Measure exported files: size, speed and accuracy of every format, compared with Keras on the same images.

    python tests/benchmarks/export.py run --images path/to/images
    python tests/benchmarks/export.py show

`run` trains EfficientNetLite0 (case small-similar) on each data set and exports it to every format with every kind of
quantization. `export` itself verifies each file on the test images. Each file adds a row to `--results`. Files that
have a row are skipped. `show` prints the tables.

Images: `--images` is a folder with `hymenoptera/{train,val}/CLASS` and `sign_digits/CLASS`, as for advice.py. `emoji`
is part of the package.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import advice

SETS = ("hymenoptera", "sign_digits")
MODEL = "EfficientNetLite0"
SIZE = 128


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--cases", nargs="+", default=["small-similar"])
    parser.add_argument(
        "--runs", type=Path, help="folder that keeps the trained runs (default: a temporary folder)"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "export.jsonl")
    options = parser.parse_args()
    if options.command == "show":
        show(advice.stored(options.results))
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.sets:
            for case in options.cases:
                export_all(name, case, options.runs or Path(temporary), options)


def export_all(name: str, case: str, runs: Path, options: argparse.Namespace) -> None:
    """Train a model, and export it to the formats that have no row yet."""
    from transfer.exporters.export import KINDS, export
    from transfer.results.finished_runs import load_run

    formats = [(kind, quantize) for kind, quantizations in KINDS.items() for quantize in quantizations]
    units: list[dict[str, Any]] = [
        {"data": name, "case": case, "kind": kind, "quantize": quantize} for kind, quantize in formats
    ]
    rows = advice.stored(options.results)
    missing = [unit for unit in units if not any(unit.items() <= row.items() for row in rows)]
    if not missing:
        return
    folder = runs / f"{name}-{case}"
    if not folder.exists():
        train(name, case, folder, options.images)
    logging.getLogger("transfer").setLevel(logging.ERROR)
    run = load_run(folder)
    data = run.data()
    object.__setattr__(run, "data", lambda source=None: data)  # load and check the images once
    for unit in missing:
        output = folder / "exported" / label(unit)
        exported = export(run, to=unit["kind"], quantize=unit["quantize"], output=output)
        row = {**unit, **exported.to_dict()}
        options.results.parent.mkdir(exist_ok=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def train(name: str, case: str, folder: Path, images: Path) -> None:
    """Train a run with the command."""
    from transfer import train as command

    source = "emoji" if name == "emoji" else str(images / name)
    flags = ["--data", source, "--case", case, "--model", MODEL, "--image-size", str(SIZE)]
    if command.main([*flags, "--output", str(folder)]):
        raise SystemExit(f"Training on {name} failed.")


def label(row: dict[str, Any]) -> str:
    """Return the name of a format and its quantization."""
    return f"{row['kind']}-{row['quantize']}" if row["quantize"] else row["kind"]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables."""
    for name, case in dict.fromkeys((row["data"], row["case"]) for row in rows):
        chosen = [row for row in rows if (row["data"], row["case"]) == (name, case)]
        print(
            f"\n{name}, {case}: {chosen[0]['num_images']} test images, Keras {chosen[0]['keras_accuracy']:.1%}"
        )
        heads = ("MB", "images/s", "vs Keras", "max diff", "same class", "accuracy")
        print(f"{'':18}" + "".join(f"{head:>12}" for head in heads))
        for row in chosen:
            cells = [
                f"{row['size'] / 1e6:.1f}",
                f"{row['images_per_second']:.0f}",
                f"x{row['images_per_second'] / row['keras_images_per_second']:.1f}",
                f"{row['largest_difference']:.1e}",
                f"{row['agreement']:.1%}",
                f"{row['accuracy']:.1%}",
            ]
            print(f"{label(row):18}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
