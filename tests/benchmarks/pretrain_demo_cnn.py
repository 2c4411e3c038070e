"""Pre-trains the demonstration network on made-up shapes, and writes the weights that come with the package.

    python tests/benchmarks/pretrain_demo_cnn.py [--epochs 24] [--output transfer/weights/demo_cnn.npz]

Every epoch has pictures of its own, so that nothing can be learnt by heart. Two CPU cores take a few minutes. The same
machine gives the same weights again; another one rounds differently, and gives others that are as good.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras

from transfer.demo_cnn import WEIGHTS, DemoCNN, save_weights
from transfer.shapes import make_shapes

HELD_OUT = 1_000_000  # seed of the pictures that it is measured on; those of training count from 0


def preprocess(images):
    return images.astype("float32") / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--images", type=int, default=20_000, help="an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    steps = options.epochs * -(-options.images // options.batch_size)
    model = DemoCNN(weights=None)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - 200, alpha=0.0, warmup_target=options.rate, warmup_steps=200
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=options.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=20)
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:  # the next epoch's pictures are drawn while this one's are learnt
        coming = pool.submit(make_shapes, options.images, seed=0)
        for epoch in range(options.epochs):
            images, labels = coming.result()
            coming = pool.submit(make_shapes, options.images, seed=epoch + 1)
            log = model.fit(preprocess(images), labels, batch_size=options.batch_size, verbose=0).history
            took = time.perf_counter() - start
            print(f"epoch {epoch + 1}: accuracy {log['accuracy'][-1]:.3f}, {took:.0f} s", flush=True)
    save_weights(model, options.output)
    images, labels = make_shapes(4000, seed=HELD_OUT)
    kept = DemoCNN(weights=options.output)
    right = kept.predict(preprocess(images), batch_size=500, verbose=0).argmax(axis=1) == labels
    print(f"{right.mean():.4f} of {len(labels)} held-out pictures right; {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
