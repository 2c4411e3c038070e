"""What the demonstration network's layers are worth on the emoji, pre-trained on shapes and with random weights.

    python tests/benchmarks/demo.py

Test accuracy of a head on each frozen layer, and on all of them: the mean of seeds 0 to 2, each its own split and
its own random weights. One seed by itself is off by some five points.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import keras
import numpy as np

import transfer

CUTS = ("conv1", "conv2", "conv3", "fc1", "fc2", "all")


def accuracy(weights: str, cut: str, seed: int) -> float:
    """Train and test once."""
    keras.utils.set_random_seed(seed)
    data = transfer.load_data("emoji", seed=seed)
    model = transfer.small_different(
        transfer.load_backbone("DemoCNN", weights=weights), data.num_classes, cut=cut
    )
    transfer.fit(model, data, verbose=0, seed=seed)
    return transfer.evaluate(model, data).accuracy


def main() -> None:
    """Print a line per cut."""
    for cut in CUTS:
        means = [
            np.mean([accuracy(weights, cut, seed) for seed in range(3)]) for weights in ("shapes", "none")
        ]
        sys.stdout.write(f"{cut:6} pre-trained {means[0]:.1%}   random {means[1]:.1%}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
