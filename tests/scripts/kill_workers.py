"""Kill one of two workers that train together, start it again, and compare what comes out with a run that was let be.

    python tests/scripts/kill_workers.py --kills 10

A line per kill says who was killed, where the run was, how soon the other said so, and whether the run ended with the
same weights, to the last bit. Each kill is a run of its own; the moments are spread over the whole of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.worker_processes import free_ports, start
from scripts.kill_training import place, weights

TRAIN = ["-m", "transfer.train", "--data", "colors", "--model", "tiny.keras", "--preprocessing", "tf"]
OPTIONS = ["--case", "large-similar", "--batch-size", "16", "--checkpoint-every", "0.05s"]


def main() -> int:
    """Kill, and say what came of it; 1 where anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return int(kill_workers(Path(folder), options.kills, seed=options.seed) > 0)


def make_inputs(folder: Path) -> None:
    """Made-up images and a tiny network."""
    from helpers.images import COLORS, write_image
    from helpers.networks import make_tiny

    for number, (name, color) in enumerate(COLORS.items()):
        for i in range(40):
            write_image(folder / "colors" / name / f"{i:02}.png", color, seed=100 * number + i)
    make_tiny().save(folder / "tiny.keras")


def kill_workers(folder: Path, kills: int, *, seed: int = 0, epochs: int = 40, timeout: float = 300) -> int:
    """Kill so many times, in turns the chief and the other; give how many runs ended with other weights."""
    make_inputs(folder)
    rng, lost = np.random.default_rng(seed), 0
    begun = time.monotonic()
    finish(launch(folder, "whole", free_ports(2), epochs), timeout)
    seconds, expected = time.monotonic() - begun, weights(folder / "whole")
    print(f"{seconds:.1f} s when it is let be", flush=True)
    for kill in range(kills):
        victim, run, ports = kill % 2, f"killed {kill}", free_ports(2)
        for log in folder.glob("worker-*.log"):
            log.unlink()
        workers = launch(folder, run, ports, epochs)
        time.sleep(rng.uniform(0.2, 0.95) * seconds)
        where = place(folder / f".{run}.partial")
        workers[victim].kill()
        workers[victim].wait()
        said = wait_for(folder / f"worker-{1 - victim}.log", "is gone", workers[1 - victim])
        if not (folder / run).exists():  # else all was written when it was killed
            given = arguments(run, epochs)
            workers[victim] = start(given, victim, ports, folder, **cache(folder, run, victim))
            finish(workers, timeout)
        for worker in workers:
            worker.kill()
        same = all(np.array_equal(a, b) for a, b in zip(expected, weights(folder / run), strict=True))
        lost += not same
        what = {"killed": victim, "where": where, "said_after_seconds": said, "equal": same}
        print(json.dumps(what), flush=True)
        shutil.rmtree(folder / run)
    return lost


def arguments(run: str, epochs: int) -> list[str]:
    return [*TRAIN, *OPTIONS, "--epochs", str(epochs), "--output", run]


def cache(folder: Path, run: str, index: int) -> dict[str, str]:
    """Workers that share no disk but the chief's folder of runs, which it alone uses."""
    return {"TRANSFER_CACHE": str(folder / f"cache {run} {index}")}


def launch(folder: Path, run: str, ports: list[int], epochs: int) -> list:
    given = arguments(run, epochs)
    return [start(given, index, ports, folder, **cache(folder, run, index)) for index in range(2)]


def finish(workers: list, timeout: float) -> None:
    try:
        codes = [worker.wait(timeout) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(codes):
        raise RuntimeError(f"A worker failed: {codes}")


def wait_for(file: Path, words: str, process: Any, seconds: float = 60) -> float | None:
    """Say after how many seconds words stand in a file; None where they do not, since the process had ended."""
    begun = time.monotonic()
    while time.monotonic() < begun + seconds and process.poll() is None:
        if words in file.read_text():
            return round(time.monotonic() - begun, 1)
        time.sleep(0.1)
    return None


if __name__ == "__main__":
    sys.exit(main())
