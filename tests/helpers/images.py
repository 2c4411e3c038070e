"""Images that many tests draw at run time, and class names that look like code."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}

STRANGE = ('=cmd|" &C calc"!A0', "<b onmouseover=alert(1)>blue", 're\'d & "green"')
"""Class names that look like a formula, like HTML, and like the end of a string."""


def write_image(path: Path, color: tuple[int, int, int], *, size: int = 40, seed: int = 0) -> None:
    """Write an image of one color with noise, different for every seed."""
    noise = np.random.default_rng(seed).integers(-30, 31, (size, size, 3))
    pixels = np.clip(np.array(color) + noise, 0, 255).astype("uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png16(values: np.ndarray, *, interlaced: bool = False) -> bytes:
    """Return a PNG with 16 bits per channel, which Pillow cannot write in color; values of shape (H, W, 1 to 4)."""
    height, width, channels = values.shape
    parts = (
        [values[top::rows, left::columns] for top, left, rows, columns in _ADAM7] if interlaced else [values]
    )
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content
