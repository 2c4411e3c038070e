"""Compute the similarity measures of two networks on the reference data sets of `transfer.adviser.similarity`.

    python tests/benchmarks/references.py --images path/to/images --weights mobilenet_v2.weights.h5

Writes `transfer/adviser/references.json`, with the same content in each run. It takes half an hour on two cores.
`emoji` is part of the package. `--images` is a folder with `hymenoptera/{train,val}/CLASS`, `sign_digits/CLASS`,
`cifar10/train/CLASS` and `fashion_mnist.npz`. The other sets are computed. At most 1,000 images of each set are used.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np

COMMAND = "python tests/benchmarks/references.py --images IMAGES --weights MOBILENET_V2.weights.h5"
SIZES = (96, 128, 224)
MAX_IMAGES = 1000  # per data set
COUNTS = (50, 100, 200, 400, 1000)  # numbers of images for the label information
DRAWS = 10  # samples of each number
SETS = {
    "cifar10": "photos of animals and vehicles, 32 px",
    "cifar10-blurred": "cifar10 in grayscale and out of focus",
    "cifar10-inverted": "cifar10 as negatives",
    "cifar10-scrambled": "cifar10, each image cut into 16 shuffled tiles",
    "digits": "handwritten digits of scikit-learn, 8 px",
    "emoji": "drawings on white",
    "fashion_mnist": "grayscale images of clothes, 28 px",
    "hymenoptera": "photos of ants and bees",
    "hymenoptera-32px": "hymenoptera reduced to 32 px",
    "patterns": "random patterns with five degrees of smoothness",
    "sign_digits": "photos of hands that show digits, 100 px",
}


def main() -> None:
    """Measure all data sets with both networks at all image sizes, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument(
        "--weights", type=Path, required=True, help="file with ImageNet weights of MobileNetV2"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[2] / "transfer" / "adviser" / "references.json"
    )
    options = parser.parse_args()
    from transfer.distributed.strategies import start_quietly
    from transfer.networks.backbones import load_backbone

    start_quietly()
    rows = []
    for size in options.sizes:
        networks = {
            "EfficientNetLite0": load_backbone("EfficientNetLite0", image_size=size),
            "MobileNetV2": load_backbone("MobileNetV2", weights=options.weights, image_size=size),
        }
        for name in options.sets:
            images, labels, available = read(name, options.images, size)
            for model, base in networks.items():
                start = time.perf_counter()
                row = {"name": name, "model": model, "image_size": size, "num_available": available}
                rows.append(row := {**row, **measures(images, labels, base)})
                print(f"{time.perf_counter() - start:4.0f} s", json.dumps(row), flush=True)
    write(rows, options.output)


def measures(images: np.ndarray, labels: np.ndarray, base: Any) -> dict[str, Any]:
    """Return the measures of a network on a data set."""
    from transfer.adviser.probes import label_information
    from transfer.adviser.sample_features import extract_sample_features, stratified_sample
    from transfer.adviser.similarity import keeps_statistics, shift_by_depth
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.images.splitting import Split

    split = Split(images, labels, [str(i) for i in range(len(labels))])
    with tempfile.TemporaryDirectory() as folder:  # always with Keras, for equal results on all machines
        sample = extract_sample_features(split, base, engine="keras", cache=FeatureCache(Path(folder)))
    assert sample.source_probabilities is not None
    information = {}
    for count in sorted({min(count, len(labels)) for count in COUNTS}):
        values = []
        for seed in range(DRAWS if count < len(labels) else 1):
            chosen = stratified_sample(sample.labels, count, seed)
            labels_chosen = np.unique(sample.labels[chosen], return_inverse=True)[1]
            values.append(label_information(sample.source_probabilities[chosen], labels_chosen))
        information[str(count)] = round(float(np.mean(values)), 4)
    shift = shift_by_depth(sample.shifts) if keeps_statistics(base) else None
    return {
        "num_images": len(labels),
        "num_classes": sample.num_classes,
        "information": information,
        "confidence": round(float(sample.source_probabilities.max(axis=1).mean()), 4),
        "shift": shift and [round(value, 4) for value in shift],
    }


def write(rows: list[dict[str, Any]], output: Path) -> None:
    """Write the file, with one line per row."""
    rows = sorted(rows, key=lambda row: (row["model"], row["image_size"], row["name"]))
    head = json.dumps({"made_by": COMMAND, "sets": SETS}, indent=1).rstrip("\n }")
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    output.write_text(f'{head}\n }},\n "references": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    json.loads(output.read_text(encoding="utf-8"))


def read(name: str, folder: Path, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a sample of images, uint8 of shape (N, size, size, 3), their labels, and the size of the data set."""
    from transfer.images.datasets import embedded_folder

    if name == "patterns":
        return patterns(size)
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return sample_arrays(digits.images * 255 / 16, digits.target, size)
    if name == "fashion_mnist":
        with np.load(folder / "fashion_mnist.npz") as file:
            return sample_arrays(file["x_train"], file["y_train"], size)
    if name == "emoji":
        return sample_files(embedded_folder(), size)
    if name == "hymenoptera-32px":
        images, labels, _ = sample_files(folder / "hymenoptera", 32)
        return sample_arrays(images, labels, size)
    if not name.startswith("cifar10"):
        return sample_files(folder / name, size)
    images, labels, available = sample_files(folder / "cifar10" / "train", size)
    change = {"cifar10-inverted": np.invert, "cifar10-blurred": blurred, "cifar10-scrambled": scrambled}
    return change.get(name, np.asarray)(images), labels, available


def sample_files(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a stratified sample of a folder with one subfolder per class."""
    from transfer.adviser.sample_features import stratified_sample
    from transfer.images.decoding import decode

    # Without GIF: the one in hymenoptera is a placeholder for a missing image.
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    labels = np.unique([path.parent.name for path in files], return_inverse=True)[1]
    chosen = np.sort(stratified_sample(labels, MAX_IMAGES, 0))
    return np.stack([decode(files[i], (size, size)) for i in chosen]), labels[chosen], len(files)


def sample_arrays(images: np.ndarray, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a stratified sample of arrays."""
    from transfer.adviser.sample_features import stratified_sample
    from transfer.images.decoding import to_rgb_array

    chosen = np.sort(stratified_sample(labels, MAX_IMAGES, 0))
    sample = np.stack([to_rgb_array(images[i], (size, size)) for i in chosen])
    return sample, labels[chosen].astype("int64"), len(labels)


def blurred(images: np.ndarray) -> np.ndarray:
    """Convert images to grey and blur them."""
    from PIL import Image, ImageFilter

    soft = ImageFilter.GaussianBlur(images.shape[1] / 24)
    return np.stack([np.asarray(Image.fromarray(x).convert("L").filter(soft).convert("RGB")) for x in images])


def scrambled(images: np.ndarray) -> np.ndarray:
    """Cut each image into 4 x 4 tiles and shuffle them."""
    rng = np.random.default_rng(0)
    side = images.shape[1] // 4
    tiles = images.reshape(-1, 4, side, 4, side, 3).swapaxes(2, 3).reshape(-1, 16, side, side, 3)
    tiles = np.stack([x[rng.permutation(16)] for x in tiles])
    return tiles.reshape(-1, 4, 4, side, side, 3).swapaxes(2, 3).reshape(images.shape)


def patterns(size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return smoothed random colors; the class is the degree of smoothness."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    labels = np.arange(MAX_IMAGES) % 5
    images = np.empty((MAX_IMAGES, size, size, 3), "uint8")
    for i, label in enumerate(labels):
        width = 2.0**label * size / 128
        noise = gaussian_filter(rng.normal(size=(size, size, 3)), (width, width, 0), mode="wrap")
        images[i] = np.clip(128 + 55 * (noise - noise.mean()) / noise.std(), 0, 255)
    return images, labels, MAX_IMAGES


if __name__ == "__main__":
    main()
