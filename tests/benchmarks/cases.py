"""Measure accuracy, time and peak memory of `transfer.train` for several networks, cases and seeds.

    python tests/benchmarks/cases.py --data emoji --models EfficientNetLite0 --cases auto --seeds 0 1 2
    python tests/benchmarks/cases.py --data path/to/hymenoptera --weights MobileNetV2=path/to/weights.h5

Each run is a separate process with an empty cache. Its time includes the start of Python and the report. Each run adds
a row to `--results`. Runs that have a row are skipped, so an interrupted benchmark resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Run the missing runs, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=["emoji"], help="data sets, as for transfer.train")
    parser.add_argument("--models", nargs="+", default=["EfficientNetLite0", "MobileNetV2"])
    parser.add_argument(
        "--weights", nargs="*", default=[], metavar="MODEL=FILE", help="weights files (default: imagenet)"
    )
    parser.add_argument("--cases", nargs="+", default=["small-similar", "small-different"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--flags", default="", help="further flags of transfer.train, as one string")
    parser.add_argument("--results", type=Path, default=Path("cases.jsonl"), help="file of the rows")
    options = parser.parse_args()
    weights = dict(pair.split("=", 1) for pair in options.weights)
    rows = (
        [json.loads(line) for line in options.results.read_text().splitlines()]
        if options.results.exists()
        else []
    )
    wanted = [
        {
            "data": data,
            "model": model,
            "weights": weights.get(model, "imagenet"),
            "case": case,
            "flags": options.flags,
            "seed": seed,
        }
        for data in options.data
        for model in options.models
        for case in options.cases
        for seed in options.seeds
    ]
    for unit in wanted:
        if not any(unit.items() <= row.items() for row in rows):
            rows.append({**unit, **run(unit)})
            with options.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    show([row for row in rows if any(unit.items() <= row.items() for unit in wanted)])


def run(unit: dict) -> dict:
    """Run the command once; return its metrics, seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        flags = ["--data", unit["data"], "--model", unit["model"], "--weights", unit["weights"]]
        flags += ["--case", unit["case"], "--seed", str(unit["seed"]), *unit["flags"].split()]
        environment = {**os.environ, "TRANSFER_CACHE": f"{folder}/cache"}  # runs share no features
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "transfer.train", *flags, "--output", str(output)],
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            sys.exit(f"transfer.train failed with the flags {flags}.")
        metrics = json.loads((output / "metrics.json").read_text())
    return {
        "ran_case": metrics["case"],
        "cut": metrics["cut"],
        "accuracy": metrics["test_accuracy"],
        "num_test": metrics["num_test"],
        "seconds": round(seconds, 1),
        "seconds_features": metrics["seconds_features"],
        "seconds_training": metrics["seconds_training"],
        "peak_gb": round(usage.ru_maxrss / 2**20, 2),
    }


def show(rows: list[dict]) -> None:
    """Print the mean over seeds for each data set, model and case, and the range of the accuracy."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((Path(row["data"]).name, row["model"], row["case"]), []).append(row)
    print("data model case cut | accuracy (min..max of the seeds, test images) | seconds | peak GB")
    for key, group in groups.items():
        accuracy = [row["accuracy"] for row in group]
        spread = (
            f"{min(accuracy):.3f}..{max(accuracy):.3f} of {len(group)} seeds, {group[0]['num_test']} images"
        )
        seconds, memory = (statistics.mean(row[k] for row in group) for k in ("seconds", "peak_gb"))
        print(
            *key,
            group[0]["cut"],
            f"| {statistics.mean(accuracy):.3f} ({spread}) | {seconds:.1f} | {memory:.2f}",
        )


if __name__ == "__main__":
    main()
