"""Pre-trains the demonstration network on made-up shapes, and writes the weights that come with the package.

    python tests/benchmarks/pretrain_demo_cnn.py [--epochs 20] [--output transfer/weights/demo_cnn.npz]

It learns which shape is on an image, and which colors the shape and the ground have, so that its features tell of
both; what tells the colors is thrown away afterwards. Filters of the first layer that are rough cost a little: without
that they keep the noise that they were born with.

Every epoch has images of its own, so that nothing can be learnt by heart. Two CPU cores take some minutes. Another
run may round differently, and give other weights that are as good.
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

from transfer.lesson.shapes import make_colored_shapes, make_shapes
from transfer.networks.demo_cnn import WEIGHTS, DemoCNN, save_weights

HELD_OUT = 1_000_000  # seed of the images that it is measured on; those of training count from 0


ROUGH, LARGE = 5e-3, 3e-4  # what the first layer's differences between neighbours, and its weights, cost


def preprocess(images):
    return images.astype("float32") / 127.5 - 1


def penalty(kernel):
    """Squared differences between neighbours in a filter, and squared weights."""
    across, down = kernel[:, 1:] - kernel[:, :-1], kernel[1:] - kernel[:-1]
    rough = keras.ops.sum(keras.ops.square(across)) + keras.ops.sum(keras.ops.square(down))
    return ROUGH * rough + LARGE * keras.ops.sum(keras.ops.square(kernel))


def make_model(options, steps: int):
    """Give the network, and the same with its second output, compiled."""
    model = DemoCNN(weights=None)
    model.get_layer("conv1").kernel.regularizer = penalty
    colors = keras.layers.Dense(6, name="colors")(model.get_layer("fc2").output)
    both = keras.Model(model.inputs, {"shape": model.outputs[0], "colors": colors})
    warm = min(200, steps // 4)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm, warmup_target=options.rate, warmup_steps=warm
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=options.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    both.compile(
        optimizer,
        loss={"shape": "sparse_categorical_crossentropy", "colors": "mse"},
        loss_weights={"shape": 1.0, "colors": options.colors},
        metrics={"shape": "accuracy"},
        steps_per_execution=20,
    )
    return model, both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=20_000, help="an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument("--colors", type=float, default=2.0, help="how much the colors count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    model, both = make_model(options, options.epochs * -(-options.images // options.batch_size))
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:  # the next epoch's images are drawn while this one's are learnt
        coming = pool.submit(make_colored_shapes, options.images, seed=0)
        for epoch in range(options.epochs):
            images, labels, colors = coming.result()
            coming = pool.submit(make_colored_shapes, options.images, seed=epoch + 1)
            wanted = {"shape": labels, "colors": colors.reshape(-1, 6) / 127.5 - 1}
            log = both.fit(preprocess(images), wanted, batch_size=options.batch_size, verbose=0).history
            right, error = log["shape_accuracy"][-1], log["colors_loss"][-1]
            took = time.perf_counter() - start
            print(f"epoch {epoch + 1}: accuracy {right:.3f}, colors {error:.3f}, {took:.0f} s", flush=True)
            save_weights(model, options.output)
    images, labels = make_shapes(4000, seed=HELD_OUT)
    kept = DemoCNN(weights=options.output)
    right = kept.predict(preprocess(images), batch_size=500, verbose=0).argmax(axis=1) == labels
    print(
        f"{right.mean():.4f} of {len(labels)} held-out images right; {options.output.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
