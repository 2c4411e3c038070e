"""Pre-train DemoCNN on synthetic shapes, and write the weights of the package.

    python tests/benchmarks/pretrain_demo_cnn.py [--epochs 20] [--output transfer/networks/weights/demo_cnn.npz]

The network learns the shape in an image, and the colors of shape and background, so that its features represent both.
The output for the colors is removed afterwards. A smoothness penalty on the filters of the first layer removes the
noise of their initial weights.

Each epoch has new images, so that the network cannot memorize them. It takes about 11 minutes on two CPU cores. Another
run may round differently and return other weights of the same quality.
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
import numpy as np

from transfer.lesson.shapes import make_colored_shapes, make_shapes
from transfer.networks.demo_cnn import WEIGHTS, DemoCNN, save_weights

HELD_OUT = 1_000_000  # seed of the test images; the seeds of training images start at 0
SMOOTHNESS = 5e-3  # penalty on squared differences of neighboring weights in the first layer
DECAY = 3e-4  # penalty on squared weights in the first layer


def preprocess(images: np.ndarray) -> np.ndarray:
    """Scale images to values from -1 to 1."""
    return images.astype("float32") / 127.5 - 1


def penalty(kernel: keras.KerasTensor) -> keras.KerasTensor:
    """Return the penalty on squared differences of neighboring weights, and on squared weights."""
    across, down = kernel[:, 1:] - kernel[:, :-1], kernel[1:] - kernel[:-1]
    differences = keras.ops.sum(keras.ops.square(across)) + keras.ops.sum(keras.ops.square(down))
    return SMOOTHNESS * differences + DECAY * keras.ops.sum(keras.ops.square(kernel))


def make_model(options: argparse.Namespace, steps: int) -> tuple[keras.Model, keras.Model]:
    """Return the network, and the compiled model with the second output for the colors."""
    model = DemoCNN(weights=None)
    model.get_layer("conv1").kernel.regularizer = penalty
    colors = keras.layers.Dense(6, name="colors")(model.get_layer("fc2").output)
    both = keras.Model(model.inputs, {"shape": model.outputs[0], "colors": colors})
    warmup = min(200, steps // 4)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=options.rate, warmup_steps=warmup
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
    """Train, save and evaluate the network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=20_000, help="images per epoch (default: 20000)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3, help="maximum learning rate (default: 0.002)")
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument(
        "--colors", type=float, default=2.0, help="weight of the loss of the colors (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    model, both = make_model(options, options.epochs * -(-options.images // options.batch_size))
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:  # draws the images of the next epoch in the background
        next_images = pool.submit(make_colored_shapes, options.images, seed=0)
        for epoch in range(options.epochs):
            images, labels, colors = next_images.result()
            next_images = pool.submit(make_colored_shapes, options.images, seed=epoch + 1)
            targets = {"shape": labels, "colors": colors.reshape(-1, 6) / 127.5 - 1}
            log = both.fit(preprocess(images), targets, batch_size=options.batch_size, verbose=0).history
            accuracy, error = log["shape_accuracy"][-1], log["colors_loss"][-1]
            seconds = time.perf_counter() - start
            print(
                f"epoch {epoch + 1}: accuracy {accuracy:.3f}, color loss {error:.3f}, {seconds:.0f} s",
                flush=True,
            )
            save_weights(model, options.output)
    images, labels = make_shapes(4000, seed=HELD_OUT)
    saved = DemoCNN(weights=options.output)
    correct = saved.predict(preprocess(images), batch_size=500, verbose=0).argmax(axis=1) == labels
    size = options.output.stat().st_size
    print(f"Test accuracy: {correct.mean():.2%} on {len(labels)} held-out images. File size: {size:,} bytes.")


if __name__ == "__main__":
    main()
