"""Measure near-duplicate detection: false pairs of distinct images, and the changed copies that are found.

    python tests/benchmarks/near_duplicates.py
    python tests/benchmarks/near_duplicates.py path/to/photos path/to/drawings --sheet pairs.png

It uses the emoji of the package, drawings that it makes, and the folders that you name. Each figure is there twice, of
the same run: by the hash alone, as version 0.2 compared images, and by hash and colors, as `duplicates` does now.
"""

from __future__ import annotations

import argparse
import io
import itertools
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from transfer.images import duplicates
from transfer.images.checking import check
from transfer.images.decoding import decode, to_rgb_array
from transfer.images.duplicates import BITS, near_pairs, perceptual_hash

EMOJI = Path(__file__).parents[2] / "data" / "emoji"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
COLORS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60), "yellow": (240, 200, 30)}
COLORS |= {"purple": (130, 40, 160), "light blue": (130, 190, 240)}
GRAY = bytes([128] * 32)  # colors that agree with all others
SIZE = (64, 64)

Change = Callable[[Image.Image], bytes]


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode an image in a file format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def scaled(image: Image.Image, factor: float) -> bytes:
    """Resize an image."""
    width, height = (max(1, round(side * factor)) for side in image.size)
    return saved(image.resize((width, height), Image.Resampling.BICUBIC))


def cropped(image: Image.Image, fraction: float) -> bytes:
    """Crop a fraction of the width or height from each side."""
    x, y = round(image.width * fraction), round(image.height * fraction)
    return saved(image.crop((x, y, image.width - x, image.height - y)))


def bordered(image: Image.Image, color: str) -> bytes:
    """Add a border of 2% of the width."""
    return saved(ImageOps.expand(image, max(1, round(0.02 * image.width)), color))


def warmer(image: Image.Image) -> bytes:
    """Shift the white balance: 10% more red, 10% less blue."""
    return saved(Image.fromarray((np.asarray(image) * [1.1, 1.0, 0.9]).clip(0, 255).astype("uint8")))


def turned(image: Image.Image) -> bytes:
    """Rotate the pixels, and set the EXIF orientation that turns them back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


CHANGES: dict[str, Change] = {
    **{f"JPEG, quality {q}": lambda x, q=q: saved(x, "JPEG", quality=q) for q in (30, 50, 75, 95)},
    "WebP, quality 30": lambda x: saved(x, "WEBP", quality=30),
    "64 colors": lambda x: saved(x.quantize(64), "GIF"),
    **{f"size x {f:g}": lambda x, f=f: scaled(x, f) for f in (0.5, 0.75, 1.5, 2.0)},
    **{f"brightness x {f:g}": lambda x, f=f: saved(ImageEnhance.Brightness(x).enhance(f)) for f in (0.85, 1.15, 1.3)},
    **{f"contrast x {f:g}": lambda x, f=f: saved(ImageEnhance.Contrast(x).enhance(f)) for f in (0.8, 1.2)},
    **{f"saturation x {f:g}": lambda x, f=f: saved(ImageEnhance.Color(x).enhance(f)) for f in (0.5, 1.5)},
    "white balance 10% warmer": warmer,
    "grayscale": lambda x: saved(x.convert("L")),
    "grayscale, JPEG 50": lambda x: saved(x.convert("L"), "JPEG", quality=50),
    "EXIF rotation": turned,
    "1% cropped on each side": lambda x: cropped(x, 0.01),
    "2% cropped on each side": lambda x: cropped(x, 0.02),
    "white border of 2%": lambda x: bordered(x, "white"),
    "mirrored": lambda x: saved(ImageOps.mirror(x)),
}  # fmt: skip


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="folders of distinct images")
    parser.add_argument(
        "--copies", type=int, default=100, help="images of each folder to change and find again"
    )
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the pairs that each rule finds")
    options = parser.parse_args()
    sources = [("emoji", files_of(EMOJI)), *((folder.name, files_of(folder)) for folder in options.folders)]
    rows: list[Image.Image] = []
    for name, files in sources:
        rows += show_pairs(name, {str(file.relative_to(file.parents[1])): file for file in files})
    show_drawings()
    show_recall([(name, files) for name, files in sources], options.copies)
    show_cost(sources[-1][1])
    if options.sheet and rows:
        Image.fromarray(np.vstack([np.asarray(row) for row in rows])).save(options.sheet)


def files_of(folder: Path) -> list[Path]:
    """List the images of a folder."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def without_colors(hash: bytes) -> bytes:
    """Return a hash whose colors agree with all others."""
    return hash and hash[: BITS // 8] + GRAY


def show_pairs(name: str, files: dict[str, Path]) -> list[Image.Image]:
    """Print the pairs that each rule finds among distinct images; return them side by side."""
    hashes = [perceptual_hash(decode(file, SIZE)) for file in files.values()]
    names, paths = list(files), list(files.values())
    before = {tuple(pair) for pair in near_pairs([without_colors(h) for h in hashes]).tolist()}
    after = {tuple(pair) for pair in near_pairs(hashes).tolist()}
    print(f"{name}: {len(files):,} images; pairs by hash {len(before)}, by hash and colors {len(after)}")
    for i, j in sorted(before | after):
        print(f"  {'same image' if (i, j) in after else 'two images':12}{names[i]} | {names[j]}")
    return [
        Image.fromarray(np.hstack([decode(paths[i], (96, 96)), decode(paths[j], (96, 96))]))
        for i, j in sorted(before | after)
    ]


def drawing(seed: int, color: tuple[int, int, int], background: str, kind: str) -> np.ndarray:
    """Draw a shape: filled, or as a line of 2% of the width."""
    points = [tuple(point) for point in np.random.default_rng(seed).integers(10, 150, (6, 2)).tolist()]
    image = Image.new("RGB", (160, 160), background)
    pen = ImageDraw.Draw(image)
    pen.polygon(points, fill=color) if kind == "filled" else pen.line(points, fill=color, width=4)
    return to_rgb_array(np.asarray(image), SIZE)


def show_drawings(count: int = 40) -> None:
    """Print the fraction of drawings that count as one image with the same drawing in another color."""
    print(
        f"{count} drawings in {len(COLORS)} colors: pairs of colors that count as one image, hash / hash and colors"
    )
    for kind, background in itertools.product(("filled", "line"), ("white", "black")):
        found = []
        for seed in range(count):
            hashes = [perceptual_hash(drawing(seed, rgb, background, kind)) for rgb in COLORS.values()]
            for pair in itertools.combinations(hashes, 2):
                found.append([len(near_pairs([rule(h) for h in pair])) for rule in (without_colors, bytes)])
        before, after = np.mean(found, axis=0)
        print(f"  {f'{kind}, on {background}':24}{before:6.1%} / {after:6.1%}")


def show_recall(sources: list[tuple[str, list[Path]]], count: int) -> None:
    """Print the fraction of changed copies that each rule finds, by change and source."""
    print(f"\nFound copies, hash / hash and colors:\n{'':26}" + "".join(f"{name:>18}" for name, _ in sources))
    images = [list(opened(files, count)) for _, files in sources]
    originals = [[perceptual_hash(decode(saved(image), SIZE)) for image in of_source] for of_source in images]
    for name, change in CHANGES.items():
        cells = []
        for own, of_source in zip(originals, images, strict=True):
            hashes = [*own, *(perceptual_hash(decode(change(image), SIZE)) for image in of_source)]
            found = [found_copies([rule(h) for h in hashes]) for rule in (without_colors, bytes)]
            cells.append(" / ".join(f"{fraction:6.1%}" for fraction in found))
        print(f"{name:26}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def found_copies(hashes: list[bytes]) -> float:
    """Return the fraction of the first half whose copy, in the second half, is found."""
    count = len(hashes) // 2
    return sum(len(near_pairs(hashes[i::count])) for i in range(count)) / count


def opened(files: list[Path], count: int) -> Iterator[Image.Image]:
    """Open some images, upright, on white, with sides of at most 500 pixels."""
    chosen = np.random.default_rng(0).choice(len(files), min(count, len(files)), replace=False)
    for i in sorted(chosen.tolist()):
        image = ImageOps.exif_transpose(Image.open(files[i])).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image.thumbnail((500, 500))
        yield image


def show_cost(files: list[Path]) -> None:
    """Print the time to check an image, and the part of its colors."""
    paths = [str(file) for file in files[:100]]
    images = [Image.fromarray(decode(path, SIZE)) for path in paths]
    whole = shortest(lambda: [check(path) for path in paths]) / len(paths)
    colors = shortest(lambda: [duplicates._colors(image) for image in images]) / len(paths)
    print(
        f"\nCheck of an image: {1e6 * whole:.0f} us; its colors take {1e6 * colors:.0f} us ({colors / whole:.1%})"
    )


def shortest(work: Callable[[], object]) -> float:
    """Return the shortest of ten durations, in seconds."""
    return min(timeit.repeat(work, number=1, repeat=10))


if __name__ == "__main__":
    main()
