"""Images that many tests draw at run time, and class names that look like code."""

from __future__ import annotations

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
