"""Time the stages of `python -m transfer.train`, and compare with the limit and other ways to train.

    python tests/benchmarks/speed.py run --data cifar10=path/to/cifar10@128 --weights FILE
    python tests/benchmarks/speed.py show

`run` trains a head on frozen MobileNetV2 (`--case 1`) with samples of 500, 2,000 and 8,000 images, each command in a
separate process: first with an empty cache (`cold`), then the same images with another head (`warm`). It measures the
limit (reading the images plus the bare forward pass), Keras' guide and, if it is installed, PyTorch on the same
images with `frozen.py`. It also measures the command without options on the emoji data (`default`).
Each unit adds a row to `--results`; units that have a row are skipped. `show` prints all rows.

The stages of a command, in seconds: imports (from the start of the process until Keras is ready), check (scanning and
checking the files), network (loading and building it), features (reading the images and the forward pass), head,
evaluation, files (of the run, without its report), report (figures and pages), and the rest. `result` is the time at
which the first complete run is written.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frozen

STAGES = ("imports", "check", "network", "features", "head", "evaluation", "files", "report")
COMMANDS = {"cold": [], "warm": ["--class-weights"]}
RECIPES = ("limit", "guide", "torch")


def main() -> None:
    """Run the units, print the rows, or run one command with timed stages."""
    if sys.argv[1:2] == ["command"]:
        return time_command(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--data", nargs=1, default=["emoji@128"], metavar="NAME=PATH[@SIZE]")
    parser.add_argument("--counts", nargs="*", type=int, default=[500, 2000, 8000])
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--weights", default="none", help="file for MobileNetV2 of Keras, or none")
    parser.add_argument("--results", type=Path, default=Path("speed.jsonl"))
    options = parser.parse_args()
    if options.action == "run":
        run(options)
    show(frozen.stored(options.results))


def run(options: argparse.Namespace) -> None:
    """Run the units that have no row yet."""
    options.size, options.seeds, options.epochs = 128, [0], 10
    methods = [m for m in RECIPES if m != "torch" or frozen.importlib.util.find_spec("torch")]
    if options.counts:
        frozen.run_units(options, methods)
    for count in options.counts:
        time_counted(options, count)
    with tempfile.TemporaryDirectory() as folder:
        add_row({"data": "emoji", "count": 0, "method": "default"}, [], folder, options.results)
        for method, extra in COMMANDS.items():
            unit = {"data": "emoji", "count": 0, "method": method}
            add_row(unit, ["--case", "1", *extra], folder, options.results)


def time_counted(options: argparse.Namespace, count: int) -> None:
    """Time the commands on a sample of the data, the second one on the cache of the first."""
    source, _, size = options.data[0].partition("@")
    name, _, path = source.partition("=")
    unit = {
        "data": name,
        "count": count,
        "size": int(size or options.size),
        "weights": Path(options.weights).name,
    }
    known = [row["method"] for row in frozen.stored(options.results) if unit.items() <= row.items()]
    if set(COMMANDS) <= set(known):
        return
    with tempfile.TemporaryDirectory() as folder:
        job = {"source": path or name, "weights_file": options.weights, "folder": folder, "seed": 0}
        job |= {"test_images": options.test_images, "method": "prepare"}
        data = frozen.run_process({**unit, **job})["source"]
        model = ["--model", "MobileNetV2", "--weights", options.weights, "--image-size", str(unit["size"])]
        for method, extra in COMMANDS.items():
            arguments = [*model, "--case", "1", "--data", data, *extra]
            add_row({**unit, "method": method}, arguments, folder, options.results)


def add_row(unit: dict, arguments: list[str], folder: str, results: Path) -> None:
    """Run a command with timed stages, unless it has a row; commands of one folder share a cache."""
    if any(unit.items() <= row.items() for row in frozen.stored(results)):
        return
    out = Path(folder) / "stages.json"
    cache = "default" if unit["method"] == "default" else "shared"
    environment = {**os.environ, "TRANSFER_CACHE": f"{folder}/cache-{cache}", "TQDM_DISABLE": "1"}
    job = {"arguments": [*arguments, "--output", f"{folder}/{unit['method']}"], "out": str(out)}
    job["started"] = time.time()
    process = subprocess.Popen([sys.executable, __file__, "command", json.dumps(job)], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.time() - job["started"]
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{unit} ended with exit code {process.returncode}.")
    row = {**unit, **json.loads(out.read_text()), "total": wall, "cpu": usage.ru_utime + usage.ru_stime}
    row["peak_mb"] = round(usage.ru_maxrss / 2**10)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    show([row])


def time_command(job: dict[str, Any]) -> None:
    """Run `transfer.train` in this process and write the seconds of its stages."""
    from transfer import train

    seconds = dict.fromkeys(STAGES, 0.0)
    running: list[str] = []

    def timed(stage: str, function: Callable[..., Any], *, note: Callable[[Any], None] | None = None) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start, counted = time.perf_counter(), bool(stage) and not running
            running.extend([stage] if counted else [])
            try:
                result = function(*args, **kwargs)
            finally:
                if counted:
                    running.pop()
                    seconds[stage] += time.perf_counter() - start
            if note is not None:
                note(result)
            return result

        return call

    def note_fit(log: Any) -> None:
        seconds["head"] += log.seconds_training

    def note_files(_: Any) -> None:
        seconds.setdefault("result", time.time() - job["started"])

    start = train._start

    def start_and_patch(*args: Any) -> Any:
        result = start(*args)
        seconds["imports"] = time.time() - job["started"]
        from transfer.anytime import heads
        from transfer.cases import builders
        from transfer.evaluation import evaluate
        from transfer.frozen import extraction
        from transfer.images import datasets
        from transfer.networks import backbones
        from transfer.results import run_writer
        from transfer.training import fit

        for stage, module, name, note in (
            ("check", datasets, "load_data", None),
            ("network", backbones, "load_backbone", None),
            ("network", builders, "build", None),
            ("features", extraction, "compute_features", None),
            ("head", heads, "choose_heads", None),
            ("", fit, "fit", note_fit),
            ("evaluation", evaluate, "evaluate", None),
            ("files", run_writer, "write_run", note_files),
            ("report", run_writer, "write_report", None),
        ):
            setattr(module, name, timed(stage, getattr(module, name), note=note))
        return result

    train._start = start_and_patch
    code = train.main(job["arguments"])
    Path(job["out"]).write_text(json.dumps(seconds))
    sys.exit(code)


def show(rows: list[dict]) -> None:
    """Print the stages of each command, the ratios to the limit and to the guide, and the peak memory."""
    limits = {row["count"]: row for row in rows if row["method"] == "limit"}
    recipes = {(row["method"], row["count"]): row for row in rows if row["method"] in ("guide", "torch")}
    if limits or recipes:
        print("\nimages  reading + forward pass (limit)  guide, 10 epochs  PyTorch, 10 epochs")
    for count, row in limits.items():
        others = [
            recipes[m, count]["at"]["10"]["seconds"] if (m, count) in recipes else None for m in RECIPES[1:]
        ]
        print(
            f"{count:6}",
            f"{limit_of(row):31.2f} s",
            *(frozen.cell(seconds, 16, 1) + " s" for seconds in others),
        )
    print(
        f"\n{'':20}",
        *(
            f"{stage:>10}"
            for stage in (*STAGES, "rest", "result", "total", "CPU", "peak MB", "/ limit", "guide /")
        ),
    )
    for row in (row for row in rows if "imports" in row):
        rest = row["total"] - sum(row[stage] for stage in STAGES)
        to_head = row["check"] + row["network"] + row["features"] + row["head"]
        count = row["count"]
        bare = limit_of(limits[count]) if count in limits else None
        guide = recipes["guide", count]["at"]["10"]["seconds"] if ("guide", count) in recipes else None
        cells = [
            *(row[stage] for stage in STAGES),
            rest,
            row["result"],
            row["total"],
            row["cpu"],
            row["peak_mb"],
        ]
        print(
            f"{count or row['data']!s:>7} {row['method']:12}",
            *(f"{value:10.2f}" for value in cells),
            frozen.cell(to_head / bare if bare else None, 10, 2),
            frozen.cell(guide / to_head if guide else None, 10, 1),
            flush=True,
        )


def limit_of(row: dict) -> float:
    """Return the seconds that reading the images and the bare forward pass take one after the other."""
    forward = max(row["forward"].values())
    return row["num_images"] / row["decode"] + row["num_images"] / forward


if __name__ == "__main__":
    main()
