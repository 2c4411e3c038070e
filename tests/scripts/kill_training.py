"""Kill training at random moments, start it again each time, and compare what comes out with a run that was let be.

    python tests/scripts/kill_training.py --kills 50

A line per kill says where the run was; a line per finished run whether its weights are equal to the last bit. The
images and networks are made up and tiny, so that most of the time goes into starting; the moments are spread from the
first import to the end, over both phases, head and everything. What a run computes is kept for that run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

KINDS = {
    "everything": ["--case", "large-similar", "--epochs", "60"],
    "the tail": [
        "--case",
        "small-similar",
        "--unfreeze-from",
        "block3_conv",
        "--views",
        "4",
        "--epochs",
        "60",
    ],
    "from scratch, mixed": [
        *("--case", "large-different", "--init", "random", "--epochs", "60", "--mix", "cutmix"),
        *("--ema", "0.9", "--gradual-unfreezing", "0.3", "--label-smoothing", "0.1"),
    ],
    "a head in epochs": ["--case", "small-similar", "--solver", "sgd", "--epochs", "60", "--dropout", "0.2"],
}


def main() -> int:
    """Kill, and say what came of it; 1 where anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_often(Path(folder), options.kills, seed=options.seed)
    print(json.dumps(found))
    return int(found["lost"] > 0)


def kill_often(
    folder: Path, kills: int, *, seed: int = 0, kinds: dict[str, list[str]] = KINDS
) -> dict[str, int]:
    """Kill so many times, spread over the kinds of training; say how many runs ended with other weights."""
    from helpers.images import COLORS, write_image
    from helpers.networks import make_tiny

    for number, (name, color) in enumerate(COLORS.items()):
        for i in range(40):
            write_image(folder / "colors" / name / f"{i:02}.png", color, seed=100 * number + i)
    make_tiny().save(folder / "tiny.keras")
    rng = np.random.default_rng(seed)
    expected, seconds = {}, {}
    for kind in kinds:
        start = time.monotonic()
        finish(launch(folder, kinds[kind], f"whole {kind}"))
        seconds[kind] = time.monotonic() - start
        expected[kind] = weights(folder / f"whole {kind}")
        print(f"{kind}: {seconds[kind]:.1f} s when it is let be", flush=True)
    found = {"kills": 0, "runs": 0, "lost": 0}
    while found["kills"] < kills:
        kind = list(kinds)[found["runs"] % len(kinds)]
        run = f"killed {found['runs']}"
        while not (folder / run).exists():
            process = launch(folder, kinds[kind], run)
            if found["kills"] >= kills:
                finish(process)
                break
            time.sleep(rng.uniform(0.3, 1.0) * seconds[kind])
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                found["kills"] += 1
                print(f"kill {found['kills']}: {kind}, {place(folder / f'.{run}.partial')}", flush=True)
            elif process.returncode:
                finish(process)
        same = all(np.array_equal(a, b) for a, b in zip(expected[kind], weights(folder / run), strict=True))
        found["runs"] += 1
        found["lost"] += not same
        print(f"run {found['runs']}: {kind}, {'equal' if same else 'NOT EQUAL'}", flush=True)
        shutil.rmtree(folder / f"cache {run}", ignore_errors=True)
    return found


def launch(folder: Path, options: list[str], run: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own."""
    given = ["--data", str(folder / "colors"), "--model", str(folder / "tiny.keras"), "--preprocessing", "tf"]
    rest = [
        "--batch-size",
        "16",
        "--checkpoint-every",
        "0.05s",
        "--output",
        str(folder / run),
        "--strategy",
        "default",
    ]
    environment = {
        **os.environ,
        "TRANSFER_CACHE": str(folder / f"cache {run}"),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TQDM_DISABLE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "transfer.train", *given, *options, *rest],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run's good end."""
    said = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"The run failed with {process.returncode}: {said[-2000:]}")


def place(partial: Path) -> str:
    """Say where a run was when it was killed, by what it left."""
    states = sorted((partial / "checkpoints").glob("state-*.npz"))
    if not states:
        return "before everything trains" if partial.exists() else "before the run's folder was made"
    with np.load(states[-1]) as file:
        about = json.loads(bytes(file["state"]).decode())
    return f"after {about['phase']} {about['epoch']}:{about['step']}"


def weights(run: Path) -> list[np.ndarray]:
    """The weights that a run ended with."""
    import keras

    return keras.models.load_model(run / "model.keras").get_weights()


if __name__ == "__main__":
    sys.exit(main())
