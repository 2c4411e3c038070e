"""Compare frozen networks in int8 with float32 and bfloat16: images per second, and the accuracy of their heads.

    python tests/benchmarks/int8.py --data emoji hymenoptera=path/to/hymenoptera --weights FILE

`--weights` is a file for MobileNetV2 of Keras. The forward pass is measured on arrays in batches of 32, without reading
images: the engines run in turn, and the least time of all rounds counts. The accuracy is that of the exact head on test
images, whose features the same engine computes; "saved" is the accuracy of the saved model, in float32, with the head
that was solved on int8 features.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

import transfer
from transfer.frozen.engines import make_engine, relative_error
from transfer.frozen.extraction import frozen_feature_extractor
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.quantization import calibration_of
from transfer.images.splitting import Split

BATCH_SIZE = 32
NETWORKS = ("EfficientNetLite0", "MobileNetV2")
PRECISIONS = {"float32": ("openvino", "float32"), "auto": ("auto", "auto"), "int8": ("openvino-int8", "auto")}


def main() -> None:
    """Print a line for each network, image size and data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=["emoji"], metavar="NAME=PATH", help="data sets")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 224], help="image sizes in pixels")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--weights", help="file for MobileNetV2 of Keras")
    parser.add_argument("--images", type=int, default=2000, help="maximum number of images (default: 2000)")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRANSFER_CACHE"] = folder
        for text in options.data:
            name, _, path = text.partition("=")
            data = limited(transfer.load_data(path or name), options.images)
            for size in options.sizes:
                for network in options.networks:
                    base = backbone(network, size, options.weights)
                    line = f"{name} ({sum(map(len, data.splits.values()))} images), {network}, {size} px: "
                    print(line + "; ".join(measure(base, data, size, options.rounds)), flush=True)


def backbone(name: str, size: int, weights: str | None) -> keras.Model:
    """Return a network with pre-trained weights."""
    if name != "MobileNetV2":
        return transfer.load_backbone(name, image_size=size)
    return transfer.load_backbone(name, weights=weights or "pretrained", image_size=size)


def limited(data: transfer.ImageData, most: int) -> transfer.ImageData:
    """Return a random part of the images, the same fraction of each split."""
    fraction = min(1.0, most / sum(map(len, data.splits.values())))
    rng = np.random.default_rng(0)

    def part(split: Split) -> Split:
        return split.take(np.sort(rng.permutation(len(split))[: round(fraction * len(split))]))

    return replace(data, **{name: part(split) for name, split in data.splits.items()})


def measure(base: keras.Model, data: transfer.ImageData, size: int, rounds: int) -> list[str]:
    """Return the rate, the error and the accuracy of each precision."""
    engines, texts, cache = {}, [], FeatureCache()
    model = transfer.small_similar(base, data.num_classes)
    extractor = frozen_feature_extractor(model)
    for name, (engine, precision) in PRECISIONS.items():
        calibration = calibration_of(data.train, (size, size))
        engines[name] = make_engine(
            extractor, engine=engine, precision=precision, batch_size=BATCH_SIZE, calibration=calibration
        )
    checks = np.stack([data.val.image(i, (size, size)) for i in range(min(len(data.val), BATCH_SIZE))])
    expected = engines["float32"](checks)
    errors = {name: relative_error(engine(checks), expected) for name, engine in engines.items()}
    seconds = least_seconds(engines, checks, rounds)
    for name, engine in engines.items():
        text = f"{engine.name} {len(checks) / seconds[name]:.0f} images/s "
        text += f"({seconds['float32'] / seconds[name]:.2f} times), error {errors[name]:.1%}"
        if name != "float32":
            options: dict[str, Any] = {"engine": PRECISIONS[name][0], "cache": cache}
            transfer.fit(model, data, verbose=0, **options)
            text += f", accuracy {transfer.evaluate(model, data, **options).accuracy:.1%}"
        if name == "int8":
            text += f", saved {transfer.evaluate(model, data, cache=cache).accuracy:.1%}"
        texts.append(text)
    return texts


def least_seconds(engines: dict[str, Any], images: np.ndarray, rounds: int) -> dict[str, float]:
    """Run the engines in turn, and return the least seconds of each."""
    least = dict.fromkeys(engines, float("inf"))
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            for _ in range(4):
                engine(images)
            least[name] = min(least[name], (time.perf_counter() - start) / 4)
    return least


if __name__ == "__main__":
    main()
