"""Compare two ways to train on images with several labels: exact heads on frozen features, and the whole network.

    python tests/benchmarks/multi_label.py run [--seeds 0 1 2]
    python tests/benchmarks/multi_label.py show

Each image has four emoji in a grid, and the classes of these as labels. The emoji of the test images are in no training
image. The network is EfficientNet-Lite0 at 224 pixels. `frozen` computes the features of the last layer and solves one
logistic regression per label. `end to end` starts from that head and trains all layers with Keras: binary
cross-entropy, Adam with a learning rate of 1e-4 and a cosine schedule, augmentation by flips. The metric is the mean
average precision (mAP) over the labels.

Each unit adds a row to `results/multi_label.jsonl`; units that have a row are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from sklearn.metrics import average_precision_score

import transfer
from transfer.frozen.engines import make_engine
from transfer.frozen.label_heads import solve_labels

RESULTS = Path(__file__).parent / "results" / "multi_label.jsonl"
COUNTS = {"train": 900, "test": 400}
METHODS = ("frozen", "end to end")
EPOCHS, BATCH = 10, 32


def main() -> None:
    """Run the units that are missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if options.action == "show":
        show(rows)
        return
    for seed in options.seeds:
        for method in METHODS:
            if any((row["seed"], row["method"]) == (seed, method) for row in rows):
                continue
            row = {
                "seed": seed,
                "method": method,
                **measure(method, seed),
                "load": round(os.getloadavg()[0], 1),
            }
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def show(rows: list[dict]) -> None:
    """Print the mean of each method in Markdown."""
    print("| method | mAP | seconds |\n|---|---|---|")
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        values = np.array([[row["map"], row["seconds"]] for row in own])
        if len(own):
            spread = f" ± {100 * values[:, 0].std(ddof=1) / len(own) ** 0.5:.1f}" if len(own) > 1 else ""
            print(f"| {method} | {100 * values[:, 0].mean():.1f}{spread} | {values[:, 1].mean():.0f} |")


def measure(method: str, seed: int) -> dict[str, float]:
    """Train by a method; return the mAP on the test images and the seconds from the images to the predictions."""
    data = transfer.load_data("emoji", seed=seed)
    parts = {
        name: composites(data.splits[name], data.num_classes, count, seed) for name, count in COUNTS.items()
    }
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    train = _frozen if method == "frozen" else _end_to_end
    predicted = train(*parts["train"], parts["test"][0])
    seconds = time.perf_counter() - start
    return {"map": float(average_precision_score(parts["test"][1], predicted)), "seconds": round(seconds, 2)}


def composites(split, num_classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of four random emoji in a grid, uint8 of shape (count, 224, 224, 3), and their labels, 0 or 1."""
    draw = np.random.default_rng([seed, count])
    tiles = np.stack([split.image(i, (112, 112)) for i in range(len(split))])
    chosen = draw.integers(0, len(split), (count, 2, 2))
    images = tiles[chosen].transpose(0, 1, 3, 2, 4, 5).reshape(count, 224, 224, 3)
    labels = np.zeros((count, num_classes), "int64")
    labels[np.arange(count)[:, None], split.labels[chosen.reshape(count, 4)]] = 1
    return images, labels


def _frozen(images: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    head, features = _solved(images, labels)
    return head.probabilities(features(others))


def _solved(images: np.ndarray, labels: np.ndarray):
    """Return the head on the frozen network, and the function that computes features."""
    model = transfer.small_similar(transfer.load_backbone(), labels.shape[1])
    engine = make_engine(keras.Model(model.inputs[0], model.layers[-1].input))

    def features(part: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [engine(part[i : i + BATCH].astype("float32")) for i in range(0, len(part), BATCH)]
        )

    return solve_labels(features(images), labels), features


def _end_to_end(images: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    features = transfer.large_similar(transfer.load_backbone(), labels.shape[1])
    output = keras.layers.Dense(labels.shape[1], "sigmoid")(features.layers[-1].input)
    model = keras.Model(features.inputs[0], output)
    head, _ = _solved(images, labels)
    model.layers[-1].set_weights([head.kernel, head.bias])
    rate = keras.optimizers.schedules.CosineDecay(1e-4, EPOCHS * -(-len(images) // BATCH))
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy")
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(images))
        flipped = np.where(
            (order % 2 == epoch % 2)[:, None, None, None], images[order][:, :, ::-1], images[order]
        )
        model.fit(flipped, labels[order], batch_size=BATCH, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
    return model.predict(others, batch_size=BATCH, verbose=0)


if __name__ == "__main__":
    main()
