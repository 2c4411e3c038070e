"""The check before training: every picture is read once, small, so that bad ones are known by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from transfer.duplicates import perceptual_hash
from transfer.pictures import BadPictureError, look, reason, to_rgb_array

_SIZE = (64, 64)  # what the perceptual hash looks at
_THREADS = os.cpu_count() or 1
_CHUNK = 2048  # pictures handed to the threads at a time: a job for each of a million would cost gigabytes


class Checked(NamedTuple):
    """What the check found out about one picture.

    Attributes:
        problem: why it cannot be used; empty for a good one, and then the others are not.
        digest: SHA-256 of its bytes; equal for exact copies.
        hash: of `duplicates.perceptual_hash`; empty for a picture of one colour.
        format: `JPEG`, `PNG`, `GIF`, `BMP`, `WEBP`, or `array`.
        mode: Pillow's word for its channels: `RGB`, `L` (grey), `RGBA`, `P` (palette), `CMYK`, ...
        width: in pixels, as stored.
        height: in pixels, as stored.
    """

    problem: str
    digest: str = ""
    hash: bytes = b""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0


def check_all(pictures: Sequence[Any], *, progress: bool = True) -> list[Checked]:
    """Check every picture, some at a time.

    Args:
        pictures: paths, encoded pictures as bytes, or arrays of shape (H, W[, C]), 0 to 255.
        progress: show a bar when there are many.

    Returns:
        One `Checked` per picture, in the same order.

    Example:
        >>> check_all([b"not a picture"])[0].problem
        'not a picture of a known format'
    """
    bar = tqdm(
        total=len(pictures), desc="checking", unit=" pictures", disable=not progress or len(pictures) < 2000
    )
    with bar, ThreadPoolExecutor(_THREADS) as pool:

        def found() -> Iterator[Checked]:
            for start in range(0, len(pictures), _CHUNK):
                places = range(start, min(start + _CHUNK, len(pictures)))
                yield from pool.map(lambda i: check(pictures[i]), places, chunksize=32)
                bar.update(len(places))

        return list(found())


def check(picture: str | bytes | np.ndarray) -> Checked:
    """Say whether one picture can be read to its last byte, and what it is.

    Args:
        picture: a path, encoded bytes, or an array.

    Returns:
        What was found out.

    Example:
        >>> check(b"").problem
        'empty'
    """
    if isinstance(picture, np.ndarray):
        height, width = picture.shape[:2]
        mode = "L" if picture.ndim == 2 or picture.shape[2] == 1 else "RGB"
        pixels = to_rgb_array(picture, _SIZE)
        return Checked("", _digest(picture.tobytes()), perceptual_hash(pixels), "array", mode, width, height)
    try:
        content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        if not content:
            return Checked("empty")
        seen = look(content, _SIZE)
    except BadPictureError as error:
        return Checked(str(error))
    except OSError as error:
        return Checked(reason(error))
    return Checked(
        "", _digest(content), perceptual_hash(seen.pixels), seen.format, seen.mode, seen.width, seen.height
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
