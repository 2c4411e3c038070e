"""How good advice is: regret of the advised case against the best of all, and errors of what it expects.

    python tests/benchmarks/advice.py truth --pictures path/to/pictures
    python tests/benchmarks/advice.py advise --pictures path/to/pictures
    python tests/benchmarks/advice.py show

A unit is a data set, a number of pictures to train on (validation included) and a seed. `truth` trains what there is
to choose from: heads at every block end and on all layers, everything from the pre-trained weights, and, with
`--scratch`, from random ones. `advise` asks the adviser, and the rules it is compared with. `show` sums up.
A line per unit goes to `--results`, and what is in it is not repeated.

The pictures: `emoji` comes along; `--pictures` is a folder with `hymenoptera/{train,val}/CLASS`, `sign_digits/CLASS`,
`cifar10/{train,test}/CLASS` and `fashion_mnist.npz`. Others are made of these: `cifar10-blurred` (grey and out of
focus) and `mixed` (photos of CIFAR-10 and clothes of Fashion-MNIST, 20 classes).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np

MODEL = "EfficientNetLite0"
SIZE = 96
TUNING = ("emoji", "sign_digits", "cifar10", "cifar10-blurred")
HELD_OUT = ("hymenoptera", "fashion_mnist", "mixed")
COUNTS = (100, 400, 1600)
TEST = 1000  # pictures at most


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("truth", "advise", "show"))
    parser.add_argument("--pictures", type=Path, default=Path("pictures"))
    parser.add_argument("--sets", nargs="+", default=[*TUNING, *HELD_OUT])
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--scratch", action="store_true", help="of truth: also from random weights")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "advice.jsonl")
    options = parser.parse_args()
    if options.command == "show":
        show(options)
        return
    from transfer.strategy import start_quietly

    start_quietly()
    todo = {"truth": [truth, *([scratch] if options.scratch else [])], "advise": [advised]}[options.command]
    for seed in options.seeds:
        for count in options.counts:
            for name in options.sets:
                for task in todo:
                    unit = {"task": task.__name__, "data": name, "count": count, "seed": seed}
                    if not any(unit.items() <= row.items() for row in stored(options.results)):
                        run(task, unit, options)


def run(task: Any, unit: dict[str, Any], options: argparse.Namespace) -> None:
    """Do one unit and append what it gives; nothing where a smaller number is nearly all that there is."""
    import keras

    labels = read(unit["data"], options.pictures)[1]
    have = len(labels) - tested(len(labels))
    if any(unit["count"] > count > 0.7 * have for count in COUNTS):
        return
    start = time.perf_counter()
    keras.backend.clear_session()
    row = {**unit, **task(draw(unit, options.pictures), unit["seed"])}
    row["seconds"] = round(time.perf_counter() - start, 1)
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def tested(count: int) -> int:
    """Say how many of so many pictures are for the test."""
    return min(TEST, int(0.4 * count))


def stored(results: Path) -> list[dict[str, Any]]:
    """Read what earlier runs gave."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


@functools.cache
def read(name: str, pictures: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """All pictures of a set, uint8 of shape (N, SIZE, SIZE, 3), their labels, and the names of the classes."""
    from PIL import Image, ImageFilter

    from transfer.pictures import to_rgb_array

    if name == "cifar10-blurred":
        images, labels, names = read("cifar10", pictures)
        blurred = [
            Image.fromarray(x).convert("L").filter(ImageFilter.GaussianBlur(4)).convert("RGB") for x in images
        ]
        return np.stack([np.asarray(x) for x in blurred]), labels, names
    if name == "mixed":
        first, second = read("cifar10", pictures), read("fashion_mnist", pictures)
        labels = np.concatenate([first[1], second[1] + len(first[2])])
        return np.concatenate([first[0], second[0]]), labels, (*first[2], *second[2])
    if name == "fashion_mnist":
        with np.load(pictures / "fashion_mnist.npz") as file:
            some = slice(0, 6000)
            images, labels = file["x_test"][some], file["y_test"][some].astype("int64")
        return np.stack([to_rgb_array(x, (SIZE, SIZE)) for x in images]), labels, tuple("0123456789")
    return read_folder(name, pictures)


def read_folder(name: str, pictures: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """All different pictures of a folder, whatever split it has."""
    from transfer.datasets import embedded_folder, load_data

    folder = embedded_folder() if name == "emoji" else pictures / name
    data = load_data(str(folder), val=0, test=0 if name in ("emoji", "sign_digits") else 0.2)
    images, labels = [], []
    for part in data.splits.values():
        most = 3000 if name == "cifar10" else len(part)
        keep = np.random.default_rng(0).permutation(len(part))[:most]
        images += [part.picture(int(i), (SIZE, SIZE)) for i in keep]
        labels += part.labels[keep].tolist()
    return np.stack(images), np.array(labels), data.class_names


def draw(unit: dict[str, Any], pictures: Path) -> Any:
    """Load a stratified sample to train on, and others for the test."""
    from transfer.datasets import load_data

    images, labels, names = read(unit["data"], pictures)
    rng = np.random.default_rng(unit["seed"])
    place = rng.permutation(len(labels)).astype("float64")
    for label in np.unique(labels):  # each class spread evenly from 0 to 1
        ranks = place[labels == label].argsort().argsort()
        place[labels == label] = (ranks + rng.uniform()) / len(ranks)
    order = place.argsort(kind="stable")
    test = order[-tested(len(labels)) :]
    train = order[: min(unit["count"], len(labels) - len(test))]
    given = {key: (images[part], labels[part]) for key, part in (("train", train), ("test", test))}
    return load_data(given, class_names=names, val=0.1, seed=unit["seed"], look_alikes=False)


def base_network() -> Any:
    """The network of all units."""
    from transfer.backbones import load_backbone

    return load_backbone(MODEL, image_size=SIZE)


def truth(data: Any, seed: int) -> dict[str, Any]:
    """Train a head at every block end and on all layers, and everything from the pre-trained weights."""
    import keras

    import transfer
    from transfer import heads
    from transfer.curves import side_by_side
    from transfer.looks import look_at

    base = base_network()
    parts = {name: look_at(part, base, engine="auto") for name, part in data.splits.items()}
    heads_at = {}
    for name in [*parts["train"].taps, "all"]:
        x = {
            split: side_by_side(list(look.taps.values())) if name == "all" else look.taps[name]
            for split, look in parts.items()
        }
        head = heads.solve(
            x["train"], data.train.labels, data.num_classes, val=(x["val"], data.val.labels), seed=seed
        )
        scores = x["test"] @ head.kernel + head.bias
        heads_at[name] = round(float((scores.argmax(axis=1) == data.test.labels).mean()), 4)
    keras.utils.set_random_seed(seed)
    model = transfer.large_similar(base, data.num_classes, seed=seed)
    seconds, tuned = trained(model, data, seed)
    figures = {"num_train": len(data.train), "num_val": len(data.val), "num_test": len(data.test)}
    return {**figures, "heads": heads_at, "fine-tuned": tuned, "seconds_fine_tuning": seconds}


def scratch(data: Any, seed: int) -> dict[str, Any]:
    """Train everything from random weights."""
    import keras

    import transfer

    keras.utils.set_random_seed(seed)
    model = transfer.large_different(base_network(), data.num_classes, init="random", seed=seed)
    seconds, accuracy = trained(model, data, seed)
    return {"from-scratch": accuracy, "seconds_scratch": seconds}


def trained(model: Any, data: Any, seed: int) -> tuple[float, float]:
    """Train a model as long as the package finds right; seconds, and test accuracy."""
    import transfer

    start = time.perf_counter()
    transfer.fit(model, data, seed=seed, verbose=0)
    seconds = round(time.perf_counter() - start, 1)
    return seconds, round(transfer.evaluate(model, data).accuracy, 4)


def advised(data: Any, seed: int) -> dict[str, Any]:
    """Ask the adviser."""
    raise NotImplementedError


def show(options: argparse.Namespace) -> None:
    """Sum up."""


if __name__ == "__main__":
    sys.exit(main())
