"""Kill training at random moments, start it again each time, and compare its weights with an uninterrupted run.

    python tests/scripts/kill_training.py --kills 50

Each kill prints the position of the run. Each finished run prints whether its weights are equal to the last bit. Images
and networks are tiny, so that starting takes most of the time. The moments are spread from the first import to the end,
over the training of the head and of all layers. Every run has a cache of its own.
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
    "all layers": ["--case", "large-similar", "--epochs", "60"],
    "upper layers": [
        *("--case", "small-similar", "--unfreeze-from", "block3_conv", "--views", "4", "--epochs", "60"),
    ],
    "random weights, CutMix": [
        *("--case", "large-different", "--init", "random", "--epochs", "60", "--mix", "cutmix"),
        *("--ema", "0.9", "--gradual-unfreezing", "0.3", "--label-smoothing", "0.1"),
    ],
    "head by SGD": ["--case", "small-similar", "--solver", "sgd", "--epochs", "60", "--dropout", "0.2"],
}


def main() -> int:
    """Run the script; return 1 if a run ended with other weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_often(Path(folder), options.kills, seed=options.seed)
    print(json.dumps(counts))
    return int(counts["different"] > 0)


def kill_often(
    folder: Path, kills: int, *, seed: int = 0, kinds: dict[str, list[str]] = KINDS
) -> dict[str, int]:
    """Kill `kills` times, spread over the kinds of training; count kills, runs, and runs with different weights."""
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
        print(f"{kind}: {seconds[kind]:.1f} s without interruption", flush=True)
    counts = {"kills": 0, "runs": 0, "different": 0}
    while counts["kills"] < kills:
        kind = list(kinds)[counts["runs"] % len(kinds)]
        run = f"killed {counts['runs']}"
        while not (folder / run).exists():
            process = launch(folder, kinds[kind], run)
            if counts["kills"] >= kills:
                finish(process)
                break
            time.sleep(rng.uniform(0.3, 1.0) * seconds[kind])
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                counts["kills"] += 1
                print(f"kill {counts['kills']}: {kind}, {place(folder / f'.{run}.partial')}", flush=True)
            elif process.returncode:
                finish(process)
        same = all(np.array_equal(a, b) for a, b in zip(expected[kind], weights(folder / run), strict=True))
        counts["runs"] += 1
        counts["different"] += not same
        print(f"run {counts['runs']}: {kind}, {'equal' if same else 'NOT EQUAL'}", flush=True)
        shutil.rmtree(folder / f"cache {run}", ignore_errors=True)
    return counts


def launch(folder: Path, options: list[str], run: str) -> subprocess.Popen[str]:
    """Start the command in its own process group."""
    inputs = [
        "--data",
        str(folder / "colors"),
        "--model",
        str(folder / "tiny.keras"),
        "--preprocessing",
        "tf",
    ]
    rest = ["--batch-size", "16", "--checkpoint-every", "0.05s"]
    rest += ["--output", str(folder / run), "--strategy", "default"]
    environment = {
        **os.environ,
        "TRANSFER_CACHE": str(folder / f"cache {run}"),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TQDM_DISABLE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "transfer.train", *inputs, *options, *rest],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run, which must succeed."""
    output = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"The run failed with {process.returncode}: {output[-2000:]}")


def place(partial: Path) -> str:
    """Describe the position of a killed run, from its last checkpoint."""
    checkpoints = sorted((partial / "checkpoints").glob("state-*.npz"))
    if not checkpoints:
        return "before the first checkpoint" if partial.exists() else "before the run had a folder"
    with np.load(checkpoints[-1]) as file:
        about = json.loads(bytes(file["state"]).decode())
    return f"after {about['phase']} {about['epoch']}:{about['step']}"


def weights(run: Path) -> list[np.ndarray]:
    """Return the final weights of a run."""
    import keras

    return keras.models.load_model(run / "model.keras").get_weights()


if __name__ == "__main__":
    sys.exit(main())
