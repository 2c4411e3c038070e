"""Compare cross-validation with plain runs on a frozen network: the accuracy over many seeds, and the time.

    python tests/benchmarks/folds.py run --images path/to/images
    python tests/benchmarks/folds.py show

`run` starts `python -m transfer.train --case auto` for each data set and seed: plain runs with a test split of 20% and
the time budget of a single step, and runs with `--folds 5`. Both train each head on 80% of the images. It adds a row
for each run to `--results`. The timed runs start with an empty feature cache. The images of hymenoptera are those of
both its folders; sign digits are the first 60 images of each class.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from advice import stored
from anytime import add

PLAIN, FOLDS = ("--time-budget", "1s"), ("--folds", "5")
SEEDS = {"plain": 12, "folds": 3, "plain, empty cache": 3, "folds, empty cache": 3}
"""Number of seeds of each kind of run."""

SETS = ("emoji", "hymenoptera", "sign_digits")


def main() -> None:
    """Run a command."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    default = Path(__file__).parent / "results" / "folds.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(stored(options.results))
        return
    done = {(row["data"], row["kind"], row["seed"]) for row in stored(options.results)}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            data = list_of(name, options.images, Path(folder))
            for kind, count in SEEDS.items():
                for seed in range(count if name == "emoji" or "cache" not in kind else 0):
                    if (name, kind, seed) not in done:
                        add(
                            {"data": name, "kind": kind, "seed": seed, **measure(data, kind, seed)},
                            options.results,
                        )


def list_of(name: str, images: Path, folder: Path) -> str:
    """Return a source without splits of its own: a name, or a list of files."""
    if name == "emoji":
        return name
    files = sorted(
        file for file in (images / name).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    classes: dict[str, list[Path]] = {}
    for file in files:
        classes.setdefault(file.parent.name, []).append(file)
    most = 60 if name == "sign_digits" else None
    rows = [f'"{file.resolve()}",{label}' for label, files in classes.items() for file in files[:most]]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["path,label", *rows]) + "\n")
    return str(path)


def measure(data: str, kind: str, seed: int) -> dict[str, Any]:
    """Train once; return the accuracy, its interval, and the time of the command."""
    flags = FOLDS if kind.startswith("folds") else PLAIN
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        if "empty cache" in kind:
            environment["TRANSFER_CACHE"] = f"{folder}/cache"
        command = [
            sys.executable,
            "-m",
            "transfer.train",
            data,
            "--seed",
            str(seed),
            *flags,
            "--output",
            "run",
        ]
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        seconds = round(time.perf_counter() - start, 1)
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
    if kind.startswith("folds"):
        interval = metrics["cross_validated_interval"]
        return {"accuracy": metrics["cross_validated_accuracy"], "interval": interval, "seconds": seconds}
    return {"accuracy": metrics["test_accuracy"], "seconds": seconds}


def show(rows: list[dict[str, Any]]) -> None:
    """Print mean accuracy and spread of both kinds of runs, and their times."""
    for name in dict.fromkeys(row["data"] for row in rows):
        for kind in SEEDS:
            found = [row for row in rows if (row["data"], row["kind"]) == (name, kind)]
            if not found:
                continue
            accuracy, seconds = (np.array([row[key] for row in found]) for key in ("accuracy", "seconds"))
            error = accuracy.std(ddof=1) / np.sqrt(len(found))
            print(
                f"{name:12} {kind:19} {len(found):2} seeds: accuracy {accuracy.mean():.1%} "
                f"(standard error {100 * error:.1f}, deviation {100 * accuracy.std(ddof=1):.1f} points), "
                f"{np.median(seconds):.0f} s"
            )


if __name__ == "__main__":
    main()
