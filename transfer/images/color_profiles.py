"""Convert images from their color profile (ICC) to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_SAME = 3
"""Largest difference of a channel, of 255, at which a profile counts as sRGB: its curves are often approximated."""

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: object, *, space: str) -> Image.Image:
    """Convert an image to RGB in sRGB if it has a profile for its color space; broken profiles are ignored."""
    if not isinstance(profile, bytes) or _SPACES.get(profile[16:20]) != space:
        return image
    transform = _transform(profile, space)
    if transform is None:
        return image
    return _apply(transform, image if image.mode == space else image.convert(space))


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image in CIELAB to RGB, which Pillow's own conversion does not."""
    return _apply(_lab_transform(), image)


def _apply(transform: Any, image: Image.Image) -> Image.Image:
    converted: Any = ImageCms.applyTransform(image, transform)
    return converted


@lru_cache(maxsize=1)
def _lab_transform() -> Any:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


@lru_cache(maxsize=64)
def _transform(profile: bytes, space: str) -> Any:
    """Return the transform to sRGB; None for a profile that is broken, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        made = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), space, "RGB")
        if space == "CMYK":
            return made
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        axes = [steps] * len(space) if space == "RGB" else [steps]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(1, -1, len(axes))
        colors = Image.fromarray(grid if space == "RGB" else grid[..., 0])
        changed = np.asarray(_apply(made, colors)).astype(int)
    except Exception:  # lcms raises errors of several classes for damaged profiles
        return None
    return made if np.abs(changed - np.asarray(colors.convert("RGB"))).max() > _SAME else None
