"""Measure the data check: its time and memory, and how well it finds near-duplicates.

    python tests/benchmarks/check.py time path/to/cifar10
    python tests/benchmarks/check.py growth --counts 12500 25000 50000 100000
    python tests/benchmarks/check.py likeness path/to/hymenoptera

- `time` loads and checks a folder in a separate process.
- `growth` does the same for synthetic JPEGs of 32 pixels, in increasing numbers. It prints the seconds and the peak
  memory beyond that of the imports.
- `likeness` saves each photo again in changed versions. It prints the number of different bits between the perceptual
  hashes of both, and between each photo and the most similar other one.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

CHANGES = {
    "JPEG, quality 50": lambda image: saved(image, "JPEG", quality=50),
    "WebP, quality 80": lambda image: saved(image, "WEBP", quality=80),
    "half the size": lambda image: saved(image.resize((image.width // 2, image.height // 2))),
    "a quarter of the size": lambda image: saved(image.resize((image.width // 4, image.height // 4))),
    "grey": lambda image: saved(image.convert("L")),
    "15% brighter": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.15)),
    "20% more contrast": lambda image: saved(ImageEnhance.Contrast(image).enhance(1.2)),
    "2% cropped on each side": lambda image: saved(cropped(image, 0.02)),
    "10% cropped on each side": lambda image: saved(cropped(image, 0.1)),
    "mirrored": lambda image: saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}

LOAD = """
import json, resource, sys, time
from transfer.images.datasets import load_data
import imagehash, scipy.fft, scipy.sparse.csgraph
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
data = load_data(sys.argv[1])
print(json.dumps({"images": data.report.total, "seconds": time.perf_counter() - start, "MB": peak() - before}))
"""


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    time_ = commands.add_parser("time", help="time to load and check a folder")
    time_.add_argument("folder", type=Path)
    time_.set_defaults(run=lambda options: show(load(options.folder)))
    growth_ = commands.add_parser("growth", help="time and memory for growing numbers of images")
    growth_.add_argument("--counts", type=int, nargs="+", default=[12_500, 25_000, 50_000, 100_000])
    growth_.set_defaults(run=growth)
    likeness_ = commands.add_parser("likeness", help="near-duplicate detection on changed versions of photos")
    likeness_.add_argument("folder", type=Path)
    likeness_.set_defaults(run=likeness)
    options = parser.parse_args()
    options.run(options)


def load(folder: Path) -> dict[str, float]:
    """Load a folder in a separate process, since peak memory is measured per process."""
    command = [sys.executable, "-c", LOAD, str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def show(figures: dict[str, float]) -> None:
    """Print the measurements of a folder."""
    rate = figures["images"] / figures["seconds"]
    print(
        f"{figures['images']:>8,} images  {figures['seconds']:6.1f} s  {rate:6,.0f} images/s  "
        f"{figures['MB']:4.0f} MB more than after the imports",
        flush=True,
    )


def growth(options: argparse.Namespace) -> None:
    """Load folders with growing numbers of JPEGs of 32 pixels."""
    with tempfile.TemporaryDirectory() as name:
        made = 0
        for count in sorted(options.counts):
            for i in range(made, count):
                make_jpeg(Path(name) / f"class{i % 10}" / f"{i // 1000:03}" / f"{i:06}.jpg", seed=i)
            made = count
            show(load(Path(name)))


def make_jpeg(path: Path, *, seed: int) -> None:
    """Write a random image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype="uint8")
    Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(path, quality=85)


def likeness(options: argparse.Namespace) -> None:
    """Compare the hashes of photos with those of changed versions."""
    from transfer.images.decoding import decode
    from transfer.images.duplicates import MAX_BITS, perceptual_hash

    def bits(image: bytes | str) -> np.ndarray:
        return np.unpackbits(np.frombuffer(perceptual_hash(decode(image, (64, 64))), "uint8")).astype(int)

    files = sorted(
        file for file in options.folder.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png"}
    )
    start = time.perf_counter()
    hashes = np.stack([bits(str(file)) for file in files])
    print(
        f"{len(files)} photos; near-duplicates differ in at most {MAX_BITS} of {hashes.shape[1]} bits. Different bits:"
    )
    for name, change in CHANGES.items():
        changed = np.stack(
            [bits(change(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))) for file in files]
        )
        distances = np.abs(hashes - changed).sum(axis=1)
        median, high = np.percentile(distances, [50, 99])
        print(
            f"  {name:26} median {median:3.0f}, 99th percentile {high:3.0f}, maximum {distances.max():3}; "
            f"found {np.mean(distances <= MAX_BITS):6.1%}"
        )
    signs = 2 * hashes - 1
    distances = (hashes.shape[1] - signs @ signs.T) // 2
    np.fill_diagonal(distances, hashes.shape[1])
    nearest = distances.min(axis=1)
    print(f"  {'most similar other photo':26} minimum {nearest.min():3}, median {np.median(nearest):3.0f}")
    print(f"({time.perf_counter() - start:.0f} s)")


def cropped(image: Image.Image, fraction: float) -> Image.Image:
    """Crop a fraction of the width or height from each side."""
    x, y = round(image.width * fraction), round(image.height * fraction)
    return image.crop((x, y, image.width - x, image.height - y))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode an image in a file format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


if __name__ == "__main__":
    main()
