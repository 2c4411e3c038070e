"""Compare the layers of DemoCNN on emoji, pre-trained on shapes and with random weights.

    python tests/benchmarks/demo.py

Prints the test accuracy of a head on each frozen layer, and on all layers together: the mean over seeds 0 to 2, each
with its own split and random weights. Single seeds differ by about five points.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import keras
import numpy as np

import transfer

CUTS = ("conv1", "conv2", "conv3", "fc1", "fc2", "all")


def accuracy(weights: str, cut: str, seed: int) -> float:
    """Train a head and return its test accuracy."""
    keras.utils.set_random_seed(seed)
    data = transfer.load_data("emoji", seed=seed)
    base = transfer.load_backbone("DemoCNN", weights=weights)
    model = transfer.small_different(base, data.num_classes, cut=cut)
    transfer.fit(model, data, verbose=0, seed=seed)
    return transfer.evaluate(model, data).accuracy


def main() -> None:
    """Print a row per cut."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=CUTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    for cut in options.cuts:
        pretrained, random = (
            np.mean([accuracy(weights, cut, seed) for seed in options.seeds])
            for weights in ("shapes", "none")
        )
        print(f"{cut:6} pre-trained {pretrained:.1%}   random {random:.1%}", flush=True)


if __name__ == "__main__":
    main()
