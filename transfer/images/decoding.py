"""Decode images: one decoder for every module that needs pixels."""

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

MAX_PIXELS = 180_000_000
"""Larger images are refused as decompression bombs. The limit is close to Pillow's own."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})
RESIZES = ("stretch", "crop", "pad")
"""Ways to fit an image to another aspect ratio: `stretch` it, `crop` the center, or `pad` with black."""

# Images of more pixels are decoded one at a time: with transparency, each takes 800 MB while it is decoded.
_LARGE = 50_000_000
_large_image_lock = threading.Lock()

Size = tuple[int, int]
"""Height and width in pixels."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # some of Pillow's other decoders start programs
_OTHER_SIGNATURES = {
    "TIFF": (b"ii*\0", b"mm\0*"),
    "HEIC": (b"ftyphei", b"ftypmif1"),
    "AVIF": (b"ftypavi",),
    "a web page": (b"<!doctype html", b"<html"),
    "SVG": (b"<svg",),
}
"""The first bytes, in lower case, of other file formats that often have the file extension of an image."""

_PLAIN_REASONS = {
    "Truncated File Read": "image file is truncated",
    "cannot load this image": "image file ends before its pixels",
    "could not create decoder object": "image file is truncated or broken",
    "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK": "a text or profile in it unpacks to over 1 MB",
}
"""Pillow's messages in plain words."""

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_T = Image.Transpose
_TO_UPRIGHT = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM}
_TO_UPRIGHT |= {5: _T.TRANSPOSE, 6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90}


class DecodedImage(NamedTuple):
    """A resized image, with the properties of the original."""

    pixels: np.ndarray  # upright RGB, uint8 of shape (height, width, 3)
    format: str
    mode: str
    width: int  # pixels, after rotation
    height: int
    rotated: bool


def as_size(image_size: int | Size | None) -> Size | None:
    """Return an image size as (height, width); None stays None."""
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
    """Return whether the first 16 bytes of a file are those of a format that `decode` reads."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bmp = head[:2] == b"BM" and head[6:10] == bytes(4)  # text may begin with BM, but not have these zeros
    return head.startswith(_SIGNATURES) or webp or bmp


def decode(image: str | Path | bytes, size: Size, *, resize: str = "stretch") -> np.ndarray:
    """Decode one image to upright RGB of a size, with white behind transparent pixels."""
    try:
        return inspect_image(image, size, resize=resize).pixels
    except BadImageError as error:
        name = "the image" if isinstance(image, bytes) else str(image)
        raise InputError(f"Cannot read {name}: {error}. Expected JPEG, PNG, GIF, BMP or WebP.") from None


def to_rgb_array(pixels: np.ndarray, size: Size | None = None, *, resize: str = "stretch") -> np.ndarray:
    """Convert the array of one image to RGB in uint8, and resize it if a size is given."""
    pixels = np.clip(np.rint(pixels), 0, 255).astype("uint8") if pixels.dtype != np.uint8 else pixels
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    rgb = Image.fromarray(pixels).convert("RGB")
    return np.asarray(rgb if size is None else _resized(rgb, size, resize))


class BadImageError(Exception):
    """An image that cannot be read. The message is the reason, without the image's name."""


def inspect_image(image: str | Path | bytes, size: Size, *, resize: str = "stretch") -> DecodedImage:
    """Decode one image as `decode` does, and also return its format, mode and original size."""
    try:
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(source, formats=_FORMATS) as opened:
            width, height, mode = opened.width, opened.height, opened.mode
            if width * height > MAX_PIXELS:
                raise BadImageError(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
            # Decode a JPEG at a smaller scale. Both sides are the longer one, since rotation may swap them.
            opened.draft("RGB", (max(size), max(size)))
            with _large_image_lock if opened.width * opened.height > _LARGE else nullcontext():
                opened.load()
                orientation = _orientation(opened)
                small = _resized(_to_rgb(opened, _TO_UPRIGHT.get(orientation)), size, resize)
            kind = "JPEG" if opened.format == "MPO" else opened.format or ""
        if orientation > 4:  # 5 to 8 swap the sides
            width, height = height, width
        return DecodedImage(np.asarray(small), kind, mode, width, height, orientation > 1)
    except BadImageError:
        raise
    except Image.UnidentifiedImageError:
        raise BadImageError(_unidentified(image)) from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels") from None
    # For broken files, Pillow's decoders raise errors of many classes, struct.error among them.
    except Exception as error:
        raise BadImageError(failure_reason(error)) from error


def _resized(rgb: Image.Image, size: Size, resize: str) -> Image.Image:
    height, width = size
    if rgb.size == (width, height):
        return rgb
    if resize == "stretch":
        return rgb.resize((width, height), Image.Resampling.BILINEAR)
    if resize == "crop":
        return ImageOps.fit(rgb, (width, height), Image.Resampling.BILINEAR)
    # ImageOps.pad would round the short side of an image of 1x5000 pixels to 0.
    scale = min(width / rgb.width, height / rgb.height)
    inner = max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale))
    padded, corner = Image.new("RGB", (width, height)), ((width - inner[0]) // 2, (height - inner[1]) // 2)
    padded.paste(rgb.resize(inner, Image.Resampling.BILINEAR), corner)
    return padded


def failure_reason(error: BaseException) -> str:
    """Return in a few words why an image could not be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error) or type(error).__name__
    return _PLAIN_REASONS.get(text, text.split(" (")[0] if "truncated" in text else text)


def _unidentified(image: str | Path | bytes) -> str:
    """Return why Pillow does not recognize a file."""
    if isinstance(image, bytes):
        head = image[:512]
    else:
        with open(image, "rb") as stream:
            head = stream.read(512)
    if is_image(head):
        return "broken at its beginning"
    kinds = (name for name, marks in _OTHER_SIGNATURES.items() if any(mark in head.lower() for mark in marks))
    kind = next(kinds, None)
    return "not an image of a known format" + (f" but {kind}" if kind else "")


def _to_rgb(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    if transpose is not None:
        image = image.transpose(transpose)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's convert would clip 16-bit grayscale
        values = np.asarray(image, "float32")
        grey = np.rint(values / (257.0 if values.max() > 255 else 1.0)).astype("uint8")
        grey[values == image.info.get("transparency")] = 255
        image = Image.fromarray(grey)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; broken EXIF counts as 1."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
    return orientation if orientation in _TO_UPRIGHT else 1
