"""Compare two ways to train on images with several labels: exact heads on frozen features, and the whole network.

    python tests/benchmarks/multi_label.py run [--sets emoji letters] [--seeds 0 1 2]
    python tests/benchmarks/multi_label.py show

`emoji`: each image has four emoji in a grid at 224 pixels, and the classes of these as labels. The emoji of the test
images are in no training image. `letters`: each image has one letter at 128 pixels, with its letter, its weight, its
slant and its family of fonts as labels.

The network is EfficientNet-Lite0. `last layer` and `chosen layers` compute the features once and solve one logistic
regression per label; the layers are chosen by the out-of-fold loss. `end to end` starts from the head on the last layer
and trains all layers with Keras: binary cross-entropy, Adam with a learning rate of 1e-4 and a cosine schedule. Emoji
are flipped at random. The metric is the mean average precision (mAP) over the labels.

Each unit adds a row to `results/multi_label.jsonl`; units that have a row are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import average_precision_score

import transfer
from transfer.adviser.sample_features import extract_sample_features
from transfer.common.tasks import MULTI
from transfer.frozen.engines import make_engine
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.head_choice import candidate_cuts, features_of
from transfer.frozen.label_heads import solve_labels
from transfer.frozen.task_heads import choose_task_head
from transfer.images.splitting import Split

RESULTS = Path(__file__).parent / "results" / "multi_label.jsonl"
COUNTS = {"train": 900, "test": 400}
METHODS = ("last layer", "chosen layers", "end to end")
EPOCHS, BATCH = 10, 32
FAMILIES = ("Sans", "Serif", "SansMono")
STYLES = {"": (0, 0), "-Bold": (1, 0), "-Oblique": (0, 1), "-BoldOblique": (1, 1)}
LETTERS = "ABCDEFGHJKLMNPRSTUVXYZ"


def main() -> None:
    """Run the units that are missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--sets", nargs="+", choices=(*SETS,), default=[*SETS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if options.action == "show":
        show(rows)
        return
    for unit in (
        (s, seed, method) for s in options.sets for seed in options.seeds for method in options.methods
    ):
        if any((row["set"], row["seed"], row["method"]) == unit for row in rows):
            continue
        found = measure(*unit)
        row = (
            dict(zip(("set", "seed", "method"), unit, strict=True))
            | found
            | {"load": round(os.getloadavg()[0], 1)}
        )
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def show(rows: list[dict]) -> None:
    """Print the mean of each method on each set in Markdown."""
    print("| set | method | seeds | mAP | seconds |\n|---|---|---|---|---|")
    for name in SETS:
        for method in METHODS:
            own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
            values = np.array([[row["map"], row["seconds"]] for row in own])
            if len(own):
                spread = f" ± {100 * values[:, 0].std(ddof=1) / len(own) ** 0.5:.1f}" if len(own) > 1 else ""
                mean, seconds = 100 * values[:, 0].mean(), values[:, 1].mean()
                print(f"| {name} | {method} | {len(own)} | {mean:.1f}{spread} | {seconds:.0f} |")


def measure(name: str, seed: int, method: str) -> dict[str, float]:
    """Train by a method; return the mAP on the test images and the seconds from the images to the predictions."""
    parts = SETS[name](seed)
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    train = {"last layer": _last_layer, "chosen layers": _chosen_layers, "end to end": _end_to_end}[method]
    predicted = train(*parts["train"], parts["test"][0], flips=name == "emoji")
    seconds = time.perf_counter() - start
    return {"map": float(average_precision_score(parts["test"][1], predicted)), "seconds": round(seconds, 2)}


def emoji(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return composites of emoji and their labels, by split."""
    data = transfer.load_data("emoji", seed=seed)
    return {
        name: composites(data.splits[name], data.num_classes, count, seed) for name, count in COUNTS.items()
    }


def composites(split, num_classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of four random emoji in a grid, uint8 of shape (count, 224, 224, 3), and their labels, 0 or 1."""
    draw = np.random.default_rng([seed, count])
    tiles = np.stack([split.image(i, (112, 112)) for i in range(len(split))])
    chosen = draw.integers(0, len(split), (count, 2, 2))
    images = tiles[chosen].transpose(0, 1, 3, 2, 4, 5).reshape(count, 224, 224, 3)
    labels = np.zeros((count, num_classes), "int64")
    labels[np.arange(count)[:, None], split.labels[chosen.reshape(count, 4)]] = 1
    return images, labels


def letters(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return rendered letters with their letter, weight, slant and family as labels, by split."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    draw = np.random.default_rng(seed)
    parts = {}
    for name, count in COUNTS.items():
        images, labels = np.empty((count, 128, 128, 3), "uint8"), []
        for image in images:
            letter, family = draw.integers(len(LETTERS)), draw.integers(len(FAMILIES))
            style = [*STYLES][draw.integers(len(STYLES))]
            slanted = style.replace("Oblique", "Italic") if FAMILIES[family] == "Serif" else style
            file = folder / f"DejaVu{FAMILIES[family]}{slanted}.ttf"
            colors = draw.integers(0, 256, (2, 3))
            canvas = Image.new("RGB", (128, 128), tuple(colors[0].tolist()))
            font = ImageFont.truetype(str(file), int(draw.integers(40, 100)))
            place = tuple(draw.integers(40, 88, 2).tolist())
            pen = tuple(((colors[0] + 128 + colors[1] // 8) % 256).tolist())
            ImageDraw.Draw(canvas).text(place, LETTERS[letter], pen, font, anchor="mm")
            image[:] = np.asarray(canvas)
            own = [np.arange(len(LETTERS)) == letter, STYLES[style], np.arange(len(FAMILIES)) == family]
            labels.append(np.concatenate(own))
        parts[name] = images, np.array(labels, "int64")
    return parts


SETS = {"emoji": emoji, "letters": letters}


def _last_layer(images: np.ndarray, labels: np.ndarray, others: np.ndarray, *, flips: bool) -> np.ndarray:
    head, features = _solved(images, labels)
    return head.probabilities(features(others))


def _chosen_layers(images: np.ndarray, labels: np.ndarray, others: np.ndarray, *, flips: bool) -> np.ndarray:
    """Choose the layers of the head by the out-of-fold loss, as `--case auto` does."""
    base = transfer.load_backbone()

    def taps(part: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
        split = Split([*part], np.zeros(len(part), "int64"), [f"{prefix}{i}" for i in range(len(part))])
        with tempfile.TemporaryDirectory() as folder:
            return extract_sample_features(
                split, base, image_size=part.shape[1:3], cache=FeatureCache(folder)
            ).taps

    own, other = taps(images, "train"), taps(others, "test")
    choice = choose_task_head(own, labels, MULTI, candidates=candidate_cuts(tuple(own)))
    return choice.solved.probabilities(features_of(other, choice.best.cuts))


def _solved(images: np.ndarray, labels: np.ndarray):
    """Return the head on the frozen network, and the function that computes features."""
    model = transfer.small_similar(transfer.load_backbone(), labels.shape[1], image_size=images.shape[1])
    engine = make_engine(keras.Model(model.inputs[0], model.layers[-1].input))

    def features(part: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [engine(part[i : i + BATCH].astype("float32")) for i in range(0, len(part), BATCH)]
        )

    return solve_labels(features(images), labels), features


def _end_to_end(images: np.ndarray, labels: np.ndarray, others: np.ndarray, *, flips: bool) -> np.ndarray:
    features = transfer.large_similar(transfer.load_backbone(), labels.shape[1], image_size=images.shape[1])
    output = keras.layers.Dense(labels.shape[1], "sigmoid")(features.layers[-1].input)
    model = keras.Model(features.inputs[0], output)
    head, _ = _solved(images, labels)
    model.layers[-1].set_weights([head.kernel, head.bias])
    rate = keras.optimizers.schedules.CosineDecay(1e-4, EPOCHS * -(-len(images) // BATCH))
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy")
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(images))
        mirrored = (order % 2 == epoch % 2)[:, None, None, None] & flips
        flipped = np.where(mirrored, images[order][:, :, ::-1], images[order])
        model.fit(flipped, labels[order], batch_size=BATCH, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
    return model.predict(others, batch_size=BATCH, verbose=0)


if __name__ == "__main__":
    main()
