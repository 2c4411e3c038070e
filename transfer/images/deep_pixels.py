"""Read the values of images with more than 8 bits per channel through Pillow."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from transfer.images.formats import problem_of

_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_PHOTOMETRIC, _PLANAR, _NO_DATA = 262, 284, 42113  # tags of TIFF; the last one is GDAL's


def wide_color(image: Image.Image) -> str:
    """Return the raw mode of 16-bit color, before an image is loaded; empty for all others."""
    tile = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    arguments: Any = tile[3] if tile else ""
    raw = str(arguments if isinstance(arguments, str) else arguments[0] if arguments else "")
    return raw if raw.startswith(("RGB;16", "RGBA;16", "RGBX;16", "LA;16")) else ""


def select_low_bytes(image: ImageFile.ImageFile, raw: str) -> None:
    """Make Pillow load the low byte of each 16-bit value, where it normally keeps the high one."""
    mode, _, kind = raw.partition(";")
    # Gray with alpha has no raw mode for the low bytes, but as four channels all bytes are loaded.
    other = "RGBA" if mode == "LA" else f"{mode};{_OTHER_BYTE[kind]}"
    tiles: list[Any] = [*image.tile]
    for i, tile in enumerate(tiles):
        *place, arguments = tile
        values = (*place, other if isinstance(arguments, str) else (other, *arguments[1:]))
        # Tiles are plain tuples in older versions of Pillow.
        tiles[i] = values if type(tile) is tuple else type(tile)(*values)
    image.tile = tiles


def joined(high: Image.Image, low: Image.Image, raw: str) -> np.ndarray:
    """Return 16-bit values from an image that was loaded with its high and its low bytes."""
    bytes_low = np.asarray(low).astype("uint16")
    if raw.startswith("LA"):  # each pixel is the two bytes of gray and the two bytes of alpha
        grey, alpha = (bytes_low[..., i] << 8 | bytes_low[..., i + 1] for i in (0, 2))
        return np.stack([grey, grey, grey, alpha], axis=-1)
    values = np.asarray(high).astype("uint16") << 8 | bytes_low
    return values[..., :3] if raw.startswith("RGBX") else values


def deep_values(image: Image.Image) -> np.ndarray | None:
    """Return the values of a loaded gray image with more than 8 bits; None for other images."""
    if not image.mode.startswith("I") and image.mode != "F":
        return None
    values = np.asarray(image)
    return values.astype(values.dtype.newbyteorder("="))


def no_data_in(image: Image.Image) -> float | None:
    """Return the value that marks missing pixels in a TIFF file of maps or satellites, or None."""
    with suppress(ValueError):
        return float(str(getattr(image, "tag_v2", {}).get(_NO_DATA, "")).strip("\0 "))
    return None


def is_inverted(image: Image.Image) -> bool:
    """Return whether 0 is white: Pillow inverts such TIFF files only up to 8 bits."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def unsupported_tiff(image: Image.Image) -> str:
    """Return why Pillow would read a TIFF file wrongly, or an empty string."""
    tags = getattr(image, "tag_v2", {})
    if 50706 in tags or tags.get(254, 0) == 1:  # DNG's version; the first image is a preview
        return problem_of("camera raw")
    if tags.get(_PLANAR) == 2 and max(tags.get(258, (8,))) > 8 and len(tags.get(258, ())) > 1:
        return "16-bit channels in separate planes are not supported: save it with interleaved channels"
    return ""
