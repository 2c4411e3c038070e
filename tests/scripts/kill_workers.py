"""Kill one of two workers, start it again, and compare the weights with an uninterrupted run.

    python tests/scripts/kill_workers.py --kills 10

Each kill prints the killed worker, the position of the run, the seconds until the other worker reported the loss, and
whether the run ended with weights that are equal to the last bit. Each kill is in a run of its own, at a random moment.
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
    """Run the script; return 1 if a run ended with other weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return int(kill_workers(Path(folder), options.kills, seed=options.seed) > 0)


def make_inputs(folder: Path) -> None:
    """Write images and a tiny network."""
    from helpers.images import COLORS, write_image
    from helpers.networks import make_tiny

    for number, (name, color) in enumerate(COLORS.items()):
        for i in range(40):
            write_image(folder / "colors" / name / f"{i:02}.png", color, seed=100 * number + i)
    make_tiny().save(folder / "tiny.keras")


def kill_workers(folder: Path, kills: int, *, seed: int = 0, epochs: int = 40, timeout: float = 300) -> int:
    """Kill the chief and the other worker in turn, `kills` times; return the number of runs with other weights."""
    make_inputs(folder)
    rng, different = np.random.default_rng(seed), 0
    begun = time.monotonic()
    finish(launch(folder, "whole", free_ports(2), epochs), timeout)
    seconds, expected = time.monotonic() - begun, weights(folder / "whole")
    print(f"{seconds:.1f} s without interruption", flush=True)
    for kill in range(kills):
        victim, run, ports = kill % 2, f"killed {kill}", free_ports(2)
        for log in folder.glob("worker-*.log"):
            log.unlink()
        workers = launch(folder, run, ports, epochs)
        time.sleep(rng.uniform(0.2, 0.95) * seconds)
        where = place(folder / f".{run}.partial")
        workers[victim].kill()
        workers[victim].wait()
        reported = wait_for(folder / f"worker-{1 - victim}.log", "was lost", workers[1 - victim])
        if not (folder / run).exists():  # otherwise the run was already complete
            workers[victim] = start(
                arguments(run, epochs), victim, ports, folder, **cache(folder, run, victim)
            )
            finish(workers, timeout)
        for worker in workers:
            worker.kill()
        same = all(np.array_equal(a, b) for a, b in zip(expected, weights(folder / run), strict=True))
        different += not same
        line = {"killed": victim, "where": where, "reported_after_seconds": reported, "equal": same}
        print(json.dumps(line), flush=True)
        shutil.rmtree(folder / run)
    return different


def arguments(run: str, epochs: int) -> list[str]:
    return [*TRAIN, *OPTIONS, "--epochs", str(epochs), "--output", run]


def cache(folder: Path, run: str, index: int) -> dict[str, str]:
    """Return a cache folder per worker: as on two machines, the workers share no disk."""
    return {"TRANSFER_CACHE": str(folder / f"cache {run} {index}")}


def launch(folder: Path, run: str, ports: list[int], epochs: int) -> list:
    return [
        start(arguments(run, epochs), index, ports, folder, **cache(folder, run, index)) for index in range(2)
    ]


def finish(workers: list, timeout: float) -> None:
    try:
        codes = [worker.wait(timeout) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(codes):
        raise RuntimeError(f"A worker failed: {codes}")


def wait_for(file: Path, words: str, process: Any, seconds: float = 60) -> float | None:
    """Return the seconds until a file has these words; None if the process ends before."""
    begun = time.monotonic()
    while time.monotonic() < begun + seconds and process.poll() is None:
        if words in file.read_text():
            return round(time.monotonic() - begun, 1)
        time.sleep(0.1)
    return None


if __name__ == "__main__":
    sys.exit(main())
