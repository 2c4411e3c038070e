"""Reading images: one decoder for every place that needs pixels."""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from operator import index
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from transfer.common.errors import InputError

MOST_PIXELS = 180_000_000
"""Larger images are refused as decompression bombs (Pillow's own error line, twice its warning)."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})
RESIZES = ("stretch", "crop", "pad")
"""How an image gets another shape: `stretch` both sides, `crop` the middle, or `pad` with black."""

_LARGE = 50_000_000  # pixels; with transparency they take 800 MB while they are decoded
_one_at_a_time = threading.Lock()  # of the large ones, or as many as there are threads could fill the memory

_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # what Pillow may try; its others can start programs
_OTHERS = {
    "TIFF": (b"ii*\0", b"mm\0*"),
    "HEIC": (b"ftyphei", b"ftypmif1"),
    "AVIF": (b"ftypavi",),
    "a web page": (b"<!doctype html", b"<html"),
    "SVG": (b"<svg",),
}
"""How other files begin that are often named like images, in small letters."""

_PLAINLY = {
    "Truncated File Read": "image file is truncated",
    "cannot load this image": "image file ends before its pixels",
    "could not create decoder object": "image file is truncated or broken",
    "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK": "a text or profile in it unpacks to over 1 MB",
}
"""What Pillow's messages mean."""

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

_ON_ITS_SIDE = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}


class DecodedImage(NamedTuple):
    """What one image is."""

    # Small, upright, uint8 of shape (height, width, 3).
    pixels: np.ndarray
    format: str
    mode: str
    # In pixels, as seen: upright.
    width: int
    height: int
    turned: bool


def as_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Read an image size as people give it."""
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


def is_image(head: bytes) -> bool:
    """Tell by its first bytes, not by its name, whether a file is of a format that `decode` reads."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bmp = head[:2] == b"BM" and head[6:10] == bytes(4)  # reserved bytes, for text may begin so too
    return head.startswith(_HEADS) or webp or bmp


def decode(image: str | Path | bytes, size: tuple[int, int], *, resize: str = "stretch") -> np.ndarray:
    """Decode one image to RGB as a person sees it: EXIF rotation applied, transparency on white."""
    try:
        return inspect_image(image, size, resize=resize).pixels
    except BadImageError as error:
        name = "the image" if isinstance(image, bytes) else str(image)
        raise InputError(f"Cannot read {name}: {error}. Expected JPEG, PNG, GIF, BMP or WebP.") from None


def to_rgb_array(
    pixels: np.ndarray, size: tuple[int, int] | None = None, *, resize: str = "stretch"
) -> np.ndarray:
    """Bring one image that is an array already to the form that `decode` gives."""
    pixels = np.clip(np.rint(pixels), 0, 255).astype("uint8") if pixels.dtype != np.uint8 else pixels
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    rgb = Image.fromarray(pixels).convert("RGB")
    return np.asarray(rgb if size is None else _resized(rgb, size, resize))


class BadImageError(Exception):
    """An image that cannot be read; the message is the reason alone, without the image's name."""


def inspect_image(
    image: str | Path | bytes, size: tuple[int, int], *, resize: str = "stretch"
) -> DecodedImage:
    """Decode one image as `decode` does, and say what it is."""
    source = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        with Image.open(source, formats=_FORMATS) as opened:
            width, height, mode = opened.width, opened.height, opened.mode
            if width * height > MOST_PIXELS:
                raise BadImageError(f"{width}x{height} is more than {MOST_PIXELS:,} pixels")
            longer = max(size)  # both ways, since the image may lie on its side
            opened.draft("RGB", (longer, longer))
            with _one_at_a_time if opened.width * opened.height > _LARGE else nullcontext():
                opened.load()  # here, where a broken file is an error
                turn = _UPRIGHT.get(_orientation(opened))
                small = _resized(_to_rgb(opened, turn), size, resize)
            kind = "JPEG" if opened.format == "MPO" else opened.format or ""
        if turn in _ON_ITS_SIDE:
            width, height = height, width
        return DecodedImage(np.asarray(small), kind, mode, width, height, turn is not None)
    except BadImageError:
        raise
    except Image.UnidentifiedImageError:
        raise BadImageError(_unknown(image)) from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MOST_PIXELS:,} pixels") from None
    # Pillow's decoders throw many kinds for broken files, struct.error among them; all mean the same.
    except Exception as error:
        raise BadImageError(reason(error)) from error


def _resized(rgb: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    width, height = size[1], size[0]
    if rgb.size == (width, height):
        return rgb
    if resize == "stretch":
        return rgb.resize((width, height), Image.Resampling.BILINEAR)
    if resize == "crop":
        return ImageOps.fit(rgb, (width, height), Image.Resampling.BILINEAR)
    scale = min(width / rgb.width, height / rgb.height)
    inner = [max(1, round(side * scale)) for side in rgb.size]  # ImageOps.pad leaves nothing of 1x5000
    padded = Image.new("RGB", (width, height))
    place = (width - inner[0]) // 2, (height - inner[1]) // 2
    padded.paste(rgb.resize((inner[0], inner[1]), Image.Resampling.BILINEAR), place)
    return padded


def reason(error: BaseException) -> str:
    """Say in a few words why an image could not be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error) or type(error).__name__
    return _PLAINLY.get(text, text.split(" (")[0] if "truncated" in text else text)


def _unknown(image: str | Path | bytes) -> str:
    """Say what a file may be that Pillow does not read."""
    if isinstance(image, bytes):
        head = image[:512]
    else:
        with open(image, "rb") as stream:
            head = stream.read(512)
    if is_image(head):
        return "broken at its beginning"
    found = [name for name, marks in _OTHERS.items() if any(mark in head.lower() for mark in marks)]
    return "not an image of a known format" + (f" but {found[0]}" if found else "")


def _to_rgb(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: Pillow's convert would clip it
        values = np.asarray(image, "float32")
        grey = np.rint(values / (257.0 if values.max() > 255 else 1.0)).astype("uint8")
        grey[values == image.info.get("transparency")] = 255
        image = Image.fromarray(grey)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Read how the image was held; broken EXIF in a good image counts as none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
