"""Reading pictures: one decoder for every place that needs pixels, and the check of files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import index
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from transfer.errors import InputError

MOST_PIXELS = 180_000_000
"""Larger pictures are refused as decompression bombs (Pillow's own error line, twice its warning)."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # what Pillow may try; its others can start programs
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What to do for each value of EXIF's orientation; 1 is upright already."""

_THREADS = os.cpu_count() or 1


class Checked(NamedTuple):
    """What the check found out about one file.

    Attributes:
        digest: SHA-256 of the file's bytes; equal for exact duplicates. Empty for a bad file.
        problem: why it cannot be used; empty for a good file.
    """

    digest: str
    problem: str


def as_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Read an image size as people give it.

    Args:
        image_size: pixels, one number or (height, width), 1 or more; or None.

    Returns:
        (height, width), or None for None.

    Raises:
        InputError: it is neither.

    Example:
        >>> as_size(96)
        (96, 96)
    """
    if image_size is None:
        return None
    pair = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    try:
        height, width = (index(side) for side in pair)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(
            "Expected an image size in whole pixels, 1 or more: one number, or (height, width). "
            f"Received: image_size={image_size!r}."
        )
    return height, width


def decode(picture: str | Path | bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode one picture to RGB as a person sees it: EXIF rotation applied, transparency on white.

    Args:
        picture: a file's path, or its encoded bytes (JPEG, PNG, GIF, BMP or WebP, whatever its name).
        size: height and width in pixels to stretch to.

    Returns:
        uint8 array of shape (height, width, 3), 0 to 255.

    Raises:
        InputError: the picture is not one that can be read.

    Example:
        >>> from transfer.datasets import embedded_folder
        >>> decode(next(embedded_folder().rglob("*.png")), size=(96, 96)).shape
        (96, 96, 3)
    """
    try:
        return _read(io.BytesIO(picture) if isinstance(picture, bytes) else picture, size)
    except _BadPictureError as error:
        name = "the picture" if isinstance(picture, bytes) else str(picture)
        raise InputError(f"Cannot read {name}: {error}. Expected JPEG, PNG, GIF, BMP or WebP.") from None


def to_rgb_array(pixels: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Bring one picture that is an array already to the form that `decode` gives.

    Args:
        pixels: shape (H, W), (H, W, 1) or (H, W, 3), values 0 to 255 of any number type.
        size: height and width to stretch to; None keeps the array's own.

    Returns:
        uint8 array of shape (height, width, 3).

    Example:
        >>> to_rgb_array(np.zeros((28, 28)), size=(32, 32)).shape
        (32, 32, 3)
    """
    pixels = np.clip(np.rint(pixels), 0, 255).astype("uint8") if pixels.dtype != np.uint8 else pixels
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    rgb = Image.fromarray(pixels).convert("RGB")
    if size is not None and rgb.size != (size[1], size[0]):
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def check_files(files: Sequence[str | bytes], *, progress: bool = True) -> list[Checked]:
    """Decode every picture once, small, to find the bad ones before training does.

    Args:
        files: paths, or encoded pictures as bytes.
        progress: show a bar when there are many.

    Returns:
        One `Checked` per file, in the same order.

    Example:
        >>> check_files([b"not a picture"])[0].problem
        'not a picture of a known format'
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(check, files, chunksize=16)
        bar = tqdm(
            found,
            total=len(files),
            desc="checking",
            unit=" pictures",
            disable=not progress or len(files) < 2000,
        )
        return list(bar)


def check(picture: str | bytes) -> Checked:
    """Say whether one picture can be read to its last byte.

    Args:
        picture: a path, or encoded bytes.

    Returns:
        Its digest, or the problem.

    Example:
        >>> check(b"").problem
        'empty'
    """
    try:
        content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        if not content:
            return Checked("", "empty")
        _read(io.BytesIO(content), (32, 32))
    except _BadPictureError as error:
        return Checked("", str(error))
    except OSError as error:
        return Checked("", _reason(error))
    return Checked(hashlib.sha256(content).hexdigest(), "")


class _BadPictureError(Exception):
    """The message is the reason alone, without the picture's name."""


def _read(source: str | Path | io.BytesIO, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    try:
        with Image.open(source, formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _BadPictureError(f"{image.width}x{image.height} is more than {MOST_PIXELS:,} pixels")
            longer = max(width, height)  # both ways, since the picture may lie on its side
            image.draft("RGB", (longer, longer))  # JPEG only: decode at 1/2, 1/4 or 1/8 where that suffices
            image.load()  # here, where a broken file is an error
            rgb = _to_rgb(image)
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(rgb)
    except _BadPictureError:
        raise
    except Image.DecompressionBombError:
        raise _BadPictureError(f"more than {MOST_PIXELS:,} pixels") from None
    # Pillow's decoders throw many kinds for broken files, struct.error among them; all mean the same.
    except Exception as error:
        raise _BadPictureError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: Pillow's convert would clip it
        values = np.asarray(image, "float32")
        image = Image.fromarray(np.rint(values / (257.0 if values.max() > 255 else 1.0)).astype("uint8"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Read how the picture was held; broken EXIF in a good picture counts as none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
