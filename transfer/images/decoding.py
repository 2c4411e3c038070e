"""Decode images: one decoder for every module that needs pixels."""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext, suppress
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from transfer.common.errors import InputError
from transfer.images import deep_pixels
from transfer.images.color_profiles import lab_to_srgb, to_srgb
from transfer.images.dicom import read_dicom
from transfer.images.formats import EXTENSIONS as EXTENSIONS
from transfer.images.formats import HEAD_BYTES, READABLE, kind_of, pillow_formats, problem_of
from transfer.images.formats import is_image as is_image
from transfer.images.pixel_range import Extent, PixelRange, extent_of, range_of

MAX_PIXELS = 180_000_000
"""Larger images are refused as decompression bombs. The limit is close to Pillow's own."""

RESIZES = ("stretch", "crop", "pad")
"""Ways to fit an image to another aspect ratio: `stretch` it, `crop` the center, or `pad` with black."""

# Images of more pixels are decoded one at a time: with transparency, each takes 800 MB while it is decoded.
_LARGE = 50_000_000
_large_image_lock = threading.Lock()
_open_image_lock = threading.Lock()

_COLOR_SPACES = {"L": "L", "LA": "L", **dict.fromkeys(("RGB", "RGBA", "RGBX", "P", "PA"), "RGB")}
"""The color space of a profile that fits a mode, except for CMYK, which is converted earlier."""

_NOISE = 16  # a resized image with a larger difference of values shows more than one color

Size = tuple[int, int]
"""Height and width in pixels."""

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
    # The lowest and highest value: of the original if it has more than 8 bits per channel, else of `pixels`.
    low: float
    high: float
    # Whether all values are whole numbers; None for images of 8 bits.
    whole: bool | None
    single_color: bool
    # Whether the file has more pages or frames than the one that is read.
    more_pages: bool
    # PatientID of a DICOM file; empty for others.
    patient: str

    @property
    def extent(self) -> Extent | None:
        """The extent of an image with more than 8 bits per channel."""
        return None if self.whole is None else Extent(self.low, self.high, self.whole)


class _Loaded(NamedTuple):
    """An image before it is rotated and resized."""

    image: Image.Image  # 8 bits per channel
    format: str
    mode: str
    extent: Extent | None = None
    orientation: int = 1
    more_pages: bool = False
    patient: str = ""


class _Resized(NamedTuple):
    """A loaded image that is rotated and resized."""

    loaded: _Loaded
    rgb: Image.Image  # upright; of the original size, or smaller for a JPEG
    small: Image.Image
    whole_size: tuple[int, int]  # width and height of the file in pixels


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


def decode(
    image: str | Path | bytes, size: Size, *, resize: str = "stretch", pixel_range: PixelRange | None = None
) -> np.ndarray:
    """Decode one image to upright RGB of a size, with white behind transparent pixels."""
    try:
        return np.asarray(_read(image, size, resize, pixel_range).small)
    except BadImageError as error:
        name = "the image" if isinstance(image, bytes) else str(image)
        raise InputError(f"Cannot read {name}: {error}. Expected {READABLE}.") from None


def to_rgb_array(
    pixels: np.ndarray,
    size: Size | None = None,
    *,
    resize: str = "stretch",
    pixel_range: PixelRange | None = None,
) -> np.ndarray:
    """Convert the array of one image to RGB in uint8, and resize it if a size is given."""
    if (extent := deep_extent(pixels)) is not None:
        pixels = _scaled(pixels, extent, pixel_range)
    pixels = np.clip(np.rint(pixels), 0, 255).astype("uint8") if pixels.dtype != np.uint8 else pixels
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    rgb = _to_rgb(Image.fromarray(pixels), None)
    return np.asarray(rgb if size is None else _resized(rgb, size, resize))


def deep_extent(pixels: np.ndarray) -> Extent | None:
    """Return the extent of an array of 16-bit values; None for other arrays, whose values are 0 to 255."""
    return extent_of(pixels) if is_deep(pixels) else None


def is_deep(pixels: np.ndarray) -> bool:
    """Return whether an array has 16 bits per value."""
    return pixels.dtype in (np.uint16, np.int16)


class BadImageError(Exception):
    """An image that cannot be read. The message is the reason, without the image's name."""


def inspect_image(
    image: str | Path | bytes | Image.Image,
    size: Size,
    *,
    resize: str = "stretch",
    pixel_range: PixelRange | None = None,
) -> DecodedImage:
    """Decode one image as `decode` does, and also return properties of the original."""
    return _described(_read(image, size, resize, pixel_range))


def _read(
    image: str | Path | bytes | Image.Image, size: Size, resize: str, pixel_range: PixelRange | None
) -> _Resized:
    """Load an image, rotate it, convert it to RGB, and resize it."""
    try:
        kind = kind_of(_head(image))
        if problem := problem_of(kind):
            raise BadImageError(problem)
        if kind == "DICOM" and not isinstance(image, Image.Image):
            loaded = _load_dicom(image, pixel_range)
            return _finished(loaded, size, resize, loaded.image.size)
        with _opened(image, kind) as opened:
            whole_size = opened.size
            _check_size(*whole_size)
            # Decode a JPEG at a smaller scale. Both sides are the longer one, since rotation may swap them.
            opened.draft("RGB", (max(size), max(size)))
            with _large_image_lock if opened.width * opened.height > _LARGE else nullcontext():
                return _finished(_load(opened, image, pixel_range), size, resize, whole_size)
    except BadImageError:
        raise
    except Image.UnidentifiedImageError:
        raise BadImageError(_unidentified(kind)) from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels") from None
    # For broken files, Pillow's decoders raise errors of many classes, struct.error among them.
    except Exception as error:
        raise BadImageError(failure_reason(error)) from error


def _head(image: str | Path | bytes | Image.Image) -> bytes:
    """Return the first bytes of a file; none for an image that Pillow has opened."""
    if isinstance(image, bytes | Image.Image):
        return image[:512] if isinstance(image, bytes) else b""
    with open(image, "rb") as stream:
        return stream.read(max(512, HEAD_BYTES))


def _opened(image: str | Path | bytes | Image.Image, kind: str) -> Image.Image:
    """Open an image; copy one that is open, since threads share it and decoding changes it."""
    if isinstance(image, Image.Image):
        with _open_image_lock:
            return image.copy()
    return Image.open(_source(image), formats=pillow_formats("HEIC" if kind == "HEIC" else ""))


def _source(image: str | Path | bytes) -> io.BytesIO | str | Path:
    return io.BytesIO(image) if isinstance(image, bytes) else image


def _check_size(width: int, height: int) -> None:
    """Refuse a decompression bomb, before anything is unpacked."""
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")


def _load(
    opened: Image.Image, image: str | Path | bytes | Image.Image, pixel_range: PixelRange | None
) -> _Loaded:
    """Load an image that Pillow has opened."""
    if problem := deep_pixels.unsupported_tiff(opened):
        raise BadImageError(problem)
    mode, wide = opened.mode, deep_pixels.wide_color(opened)
    opened.load()
    shown, extent, values = opened, None, deep_pixels.deep_values(opened)
    if wide and not isinstance(image, Image.Image):
        with Image.open(_source(image), formats=pillow_formats()) as again:
            deep_pixels.select_low_bytes(again, wide)
            again.load()
            values = deep_pixels.joined(opened, again, wide)
        mode = f"{mode};16"
    if values is not None:
        shown, extent = _as_8_bit(
            values, pixel_range, opened.info.get("transparency"), deep_pixels.no_data_in(opened)
        )
        if deep_pixels.is_inverted(opened):
            shown = ImageOps.invert(shown)
        shown.info = {key: opened.info[key] for key in ("icc_profile",) if key in opened.info and wide}
    kind = {"MPO": "JPEG", "HEIF": "HEIC", "JPEG2000": "JPEG 2000"}.get(
        opened.format or "", opened.format or ""
    )
    return _Loaded(shown, kind, mode, extent, _orientation(opened), _has_more_pages(opened))


def _load_dicom(image: str | Path | bytes, pixel_range: PixelRange | None) -> _Loaded:
    """Load a DICOM file."""
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    pixels, inverted, frames, patient = read_dicom(content, _check_size)
    mode = ("RGB" if pixels.ndim == 3 else "L") + ("" if pixels.dtype == np.uint8 else ";16")
    shown, extent = Image.fromarray(pixels) if pixels.dtype == np.uint8 else None, None
    if shown is None:
        shown, extent = _as_8_bit(pixels, pixel_range, None)
    shown = ImageOps.invert(shown) if inverted else shown
    return _Loaded(shown, "DICOM", mode, extent, more_pages=frames > 1, patient=patient)


def _as_8_bit(
    values: np.ndarray, pixel_range: PixelRange | None, transparent: Any, no_data: float | None = None
) -> tuple[Image.Image, Extent]:
    """Scale the values of an image with more than 8 bits; without a range, by the image's own."""
    colors = values[..., :3] if values.ndim == 3 else values
    extent = extent_of(colors, no_data)
    pixels = _scaled(colors, extent, pixel_range)
    if transparent is not None and np.size(transparent) == (3 if values.ndim == 3 else 1):
        hidden = values[..., :3] == np.asarray(transparent) if values.ndim == 3 else values == transparent
        pixels[hidden.all(axis=-1) if values.ndim == 3 else hidden] = 255
    shown = Image.fromarray(pixels)
    if values.shape[2:] == (4,):
        shown.putalpha(Image.fromarray((values[..., 3] >> 8).astype("uint8")))
    return shown, extent


def _scaled(values: np.ndarray, extent: Extent, pixel_range: PixelRange | None) -> np.ndarray:
    return (pixel_range or range_of(extent)).to_8_bit(values)


def _finished(loaded: _Loaded, size: Size, resize: str, whole_size: Size) -> _Resized:
    """Rotate, convert and resize an image."""
    image = loaded.image
    profile = image.info.get("icc_profile")
    rgb = _to_rgb(image, _TO_UPRIGHT.get(loaded.orientation))
    small = to_srgb(_resized(rgb, size, resize), profile, space=_COLOR_SPACES.get(image.mode, ""))
    return _Resized(loaded, rgb, small, whole_size)


def _described(image: _Resized) -> DecodedImage:
    """Return a resized image with the properties of the original."""
    loaded, rgb, small, (width, height) = image
    extent = loaded.extent
    if loaded.orientation > 4:  # 5 to 8 swap the sides
        width, height = height, width
    spreads = _extrema(small)
    low, high = min(low for low, _ in spreads), max(high for _, high in spreads)
    flat = all(most - least < _NOISE for least, most in spreads)
    return DecodedImage(
        np.asarray(small),
        loaded.format,
        loaded.mode,
        width,
        height,
        loaded.orientation > 1,
        float(low) if extent is None else extent.low,
        float(high) if extent is None else extent.high,
        None if extent is None else extent.whole,
        # The small image may hide details, and so may a range that is far too wide.
        flat
        and all(low == high for low, high in _extrema(rgb))
        and (extent is None or extent.low == extent.high),
        loaded.more_pages,
        loaded.patient,
    )


def _extrema(rgb: Image.Image) -> list[tuple[int, int]]:
    """Return the lowest and the highest value of each channel."""
    return [channel.getextrema() for channel in rgb.split()]  # type: ignore[misc]


def _has_more_pages(image: Image.Image) -> bool:
    """Return whether a loaded file has a second page or frame, without reading all of them."""
    with suppress(Exception):  # what follows the first page may be broken
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


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


def _unidentified(kind: str) -> str:
    """Return why Pillow does not recognize a file."""
    if kind == "TIFF":
        return "broken at its beginning, or TIFF with unusual channels (such as 64-bit or more than 4)"
    return "broken at its beginning" if kind else "not an image of a known format"


def _to_rgb(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    if transpose is not None:
        image = image.transpose(transpose)
    if image.mode == "CMYK":  # before other changes, since its profile is for these channels
        image = to_srgb(image, image.info.get("icc_profile"), space="CMYK")
    if image.mode == "LAB":
        image = lab_to_srgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; broken EXIF counts as 1."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
    return orientation if orientation in _TO_UPRIGHT else 1
