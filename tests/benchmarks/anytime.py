"""Measure `--case auto` at time budgets: its regret against the single cases, its time, and its estimates.

    python tests/benchmarks/anytime.py truth --images path/to/images
    python tests/benchmarks/anytime.py run --images path/to/images --budgets 30s 2m 10m
    python tests/benchmarks/anytime.py show

A unit is a data set of `tuning_sets.py` and a seed. All use EfficientNetLite0 at 128 pixels.

- `truth` trains each single case to its end, with the defaults: a head on the last layer, on an early layer and on all
  layers, and the whole network. Its best test accuracy is what the regret is measured against.
- `run` runs the command `python -m transfer.train LIST --time-budget BUDGET`, with an empty feature cache, and with the
  speeds of this machine that earlier units measured.
- `show` prints the regret and the time at each budget, and the errors of the estimates.

Each unit adds a row to `--results`. Units that have a row are skipped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import tuning_sets
from advice import stored

MODEL, SIZE = "EfficientNetLite0", 128
CASES: dict[str, dict[str, Any]] = {
    "last layer": {"case": "small-similar"},
    "early layer": {"case": "small-different"},
    "all layers": {"case": "small-similar", "cut": "all"},
    "fine-tuned": {"case": "large-similar"},
}


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("truth", "run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=tuning_sets.NAMES, help="data sets (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budgets", nargs="+", default=["30s", "2m"], help="time budgets of `run`")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "anytime.jsonl")
    options = parser.parse_args()
    if options.command == "show":
        show([row for row in stored(options.results) if row["data"] in options.sets])
        return
    choices = [*CASES] if options.command == "truth" else options.budgets
    for seed in options.seeds:
        for choice in choices:
            for name in options.sets:
                unit = {"data": name, "seed": seed, "choice": choice}
                if not any(unit.items() <= row.items() for row in stored(options.results)):
                    work = truth if options.command == "truth" else run
                    add({**unit, **work(name, seed, choice, options.images)}, options.results)


def add(row: dict[str, Any], results: Path) -> None:
    """Append a row, and print it."""
    results.parent.mkdir(exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def truth(name: str, seed: int, choice: str, root: Path) -> dict[str, Any]:
    """Train a single case to its end; return its test accuracy and seconds."""
    import keras

    import transfer
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    data = tuning_sets.load(name, root, seed=seed, image_size=SIZE)
    base = transfer.load_backbone(MODEL, image_size=SIZE)
    start = time.perf_counter()
    model = transfer.build(base=base, num_classes=data.num_classes, seed=seed, **CASES[choice])
    transfer.fit(model, data, seed=seed, verbose=0)
    seconds = time.perf_counter() - start
    return {"accuracy": transfer.evaluate(model, data).accuracy, "seconds": round(seconds, 1)}


def run(name: str, seed: int, budget: str, root: Path) -> dict[str, Any]:
    """Run the command with a budget; return its accuracy, wall-clock seconds, steps and estimate."""
    cache = root / "anytime-cache"
    for old in cache.glob("*"):  # the speeds stay
        shutil.rmtree(old) if old.is_dir() else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_list(tuning_sets.load(name, root, seed=seed), folder)
        command = [sys.executable, "-m", "transfer.train", "images.csv", "--case", "auto", "--output", "run"]
        command += ["--image-size", str(SIZE), "--time-budget", budget, "--seed", str(seed)]
        command += ["--split-column", "split", "--group-column", "group"]
        variables = {**os.environ, "TRANSFER_CACHE": str(cache)}
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            return {"problem": f"{done.stdout[-1000:]}{done.stderr[-2000:]}", "seconds": round(seconds, 1)}
        metrics = json.loads((folder / "run" / "metrics.json").read_text())
        steps = json.loads((folder / "run" / "steps.json").read_text())["steps"]
    kept = [step for step in steps if step["kept"]][-1]
    wanted = ("kind", "title", "seconds", "accuracy", "interval", "kept")
    return {
        "accuracy": metrics["test_accuracy"],
        "seconds": round(seconds, 1),
        "case": metrics["case"],
        "expected": kept["accuracy"],
        "interval": kept["interval"],
        "steps": [{key: step[key] for key in wanted} for step in steps],
    }


def write_list(data: Any, folder: Path) -> None:
    """Write the images and their list; the command draws the validation images from the training images."""
    from peers import write_image

    rows = [("path", "label", "split", "group")]
    for split, part in data.splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i, label in enumerate(part.labels.tolist()):
            write_image(part, i, folder / split / f"{i:05}")
            path = next((folder / split).glob(f"{i:05}.*")).relative_to(folder)
            group = str(part.groups[i]) if part.groups else f"{split}-{i}"
            rows.append((str(path), data.class_names[label], "test" if split == "test" else "train", group))
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the tables."""
    units: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        units.setdefault((row["data"], row["seed"]), {})[row["choice"]] = row
    budgets = sorted({row["choice"] for row in rows} - {*CASES}, key=seconds_of)
    columns = [*CASES, *budgets]
    print(f"{'set':16} seed  " + "".join(f"{name:>18}" for name in columns))
    for (name, seed), unit in sorted(units.items()):
        print(f"{name:16} {seed:4}  " + "".join(f"{cell(unit.get(column)):>18}" for column in columns))
    complete = [unit for unit in units.values() if {*CASES} <= {*unit}]
    for budget in budgets:
        show_budget(budget, [unit for unit in complete if "accuracy" in unit.get(budget, {})])


def show_budget(budget: str, units: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Print the regret, the time and the errors of the estimates at a budget."""
    if not units:
        return
    best = np.array([max(unit[case]["accuracy"] for case in CASES) for unit in units])
    rows = [unit[budget] for unit in units]
    found = np.array([row["accuracy"] for row in rows])
    regret, seconds = 100 * (best - found), np.array([row["seconds"] for row in rows])
    error = 100 * (np.array([row["expected"] for row in rows]) - found)
    inside = np.mean(
        [row["interval"][0] <= row["accuracy"] <= row["interval"][1] for row in rows], dtype="float64"
    )
    print(
        f"{budget}: mean regret {regret.mean():.2f} points (worst {regret.max():.1f}, {len(units)} units); "
        f"{np.median(seconds):.0f} s (at most {seconds.max():.0f} s); estimate minus test accuracy "
        f"{error.mean():+.1f} points, absolute {np.abs(error).mean():.1f}; {inside:.0%} of the intervals hold"
    )


def cell(row: dict[str, Any] | None) -> str:
    """Return the accuracy and the seconds of a row."""
    if row is None:
        return "-"
    return f"{row['accuracy']:.3f} ({row['seconds']:.0f} s)" if "accuracy" in row else "failed"


def seconds_of(budget: str) -> float:
    """Return a budget in seconds."""
    from transfer.common.text import seconds_of

    return seconds_of(budget) or float("inf")


if __name__ == "__main__":
    main()
