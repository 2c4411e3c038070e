"""What the check of data costs, and how well it tells images that show the same.

    python tests/benchmarks/check.py time path/to/cifar10
    python tests/benchmarks/check.py growth --counts 12500 25000 50000 100000
    python tests/benchmarks/check.py likeness path/to/hymenoptera

`time` loads a folder, check included, in a process of its own. `growth` does so with folders of made-up JPEGs of
32 px, and gives the seconds and the peak of memory above that of the imports for each count. `likeness` saves every
photo again in other forms and gives the bits in which the hashes differ, and those of the nearest different photos.
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
    time_ = commands.add_parser("time", help="of loading a folder")
    time_.add_argument("folder", type=Path)
    time_.set_defaults(run=lambda options: show(load(options.folder)))
    growth_ = commands.add_parser("growth", help="of time and memory with the count of images")
    growth_.add_argument("--counts", type=int, nargs="+", default=[12_500, 25_000, 50_000, 100_000])
    growth_.set_defaults(run=growth)
    likeness_ = commands.add_parser("likeness", help="of the same image saved in other forms")
    likeness_.add_argument("folder", type=Path)
    likeness_.set_defaults(run=likeness)
    options = parser.parse_args()
    options.run(options)


def load(folder: Path) -> dict[str, float]:
    """Load a folder in a process of its own, since the peak of memory is a process'."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def show(figures: dict[str, float]) -> None:
    """Print one line."""
    rate = figures["images"] / figures["seconds"]
    print(
        f"{figures['images']:>8,} images  {figures['seconds']:6.1f} s  {rate:6,.0f} images/s  "
        f"{figures['MB']:4.0f} MB above the imports",
        flush=True,
    )


def growth(options: argparse.Namespace) -> None:
    """Make folders of more and more JPEGs of 32 px and load them."""
    with tempfile.TemporaryDirectory() as name:
        made = 0
        for count in sorted(options.counts):
            for i in range(made, count):
                make_jpeg(Path(name) / f"class{i % 10}" / f"{i // 1000:03}" / f"{i:06}.jpg", seed=i)
            made = count
            show(load(Path(name)))


def make_jpeg(path: Path, *, seed: int) -> None:
    """Write an image like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype="uint8")
    Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(path, quality=85)


def likeness(options: argparse.Namespace) -> None:
    """Save photos in other forms and see in how many bits their hashes differ."""
    from transfer.images.decoding import decode
    from transfer.images.duplicates import MAX_BITS, perceptual_hash

    def bits(image: bytes | str) -> np.ndarray:
        return np.unpackbits(np.frombuffer(perceptual_hash(decode(image, (64, 64))), "uint8")).astype(int)

    files = sorted(
        file for file in options.folder.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png"}
    )
    start = time.perf_counter()
    hashes = np.stack([bits(str(file)) for file in files])
    print(f"{len(files)} photos; of {hashes.shape[1]} bits, same up to {MAX_BITS}:")
    for name, change in CHANGES.items():
        changed = np.stack(
            [bits(change(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))) for file in files]
        )
        apart = np.abs(hashes - changed).sum(axis=1)
        middle, high = np.percentile(apart, [50, 99])
        print(
            f"  {name:26} median {middle:3.0f}, 99 of 100 up to {high:3.0f}, most {apart.max():3}; "
            f"found {np.mean(apart <= MAX_BITS):6.1%}"
        )
    signs = 2 * hashes - 1
    apart = (hashes.shape[1] - signs @ signs.T) // 2
    np.fill_diagonal(apart, hashes.shape[1])
    nearest = apart.min(axis=1)
    print(f"  {'the nearest different one':26} least {nearest.min():3}, median {np.median(nearest):3.0f}")
    print(f"({time.perf_counter() - start:.0f} s)")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Cut a share of each side off."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


if __name__ == "__main__":
    main()
