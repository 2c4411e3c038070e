"""The shapes and values that arrays of images may have: one rule for `load_data` and `predict`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANNELS = (1, 3, 4)
"""Numbers of channels: gray, RGB, and RGB with transparency."""

_UNIT = 2
"""Pixels whose highest value is lower were scaled to 1, which interpolation may exceed a little."""

_ROUNDING = 0.5  # interpolation in floating point exceeds the range by less


def shape_problem(shape: Sequence[int]) -> str:
    """Return why an array of this shape is not one image; empty for an image."""
    shape = tuple(shape)
    if len(shape) not in (2, 3) or 0 in shape:
        return f"an array of shape {shape}, not (height, width, 3)"
    if len(shape) == 3 and shape[-1] in CHANNELS:
        return ""
    if len(shape) == 3 and shape[0] in CHANNELS:
        return (
            f"an array of shape {shape}, with the channels first; move them last by np.moveaxis(image, 0, -1)"
        )
    is_row = shape[-1] <= max(CHANNELS)  # an image of 3 columns is more likely a row of pixels
    return f"an array of shape {shape}, not (height, width, 3)" if len(shape) == 3 or is_row else ""


def batch_problem(shape: Sequence[int]) -> str:
    """Return why an array of this shape is not a batch of images; empty for a batch."""
    shape = tuple(shape)
    if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[-1] not in CHANNELS):
        first = len(shape) == 4 and shape[1] in CHANNELS
        moved = " The channels are first: move them last by np.moveaxis(images, 1, -1)." if first else ""
        return (
            "Expected images of shape (N, H, W), or (N, H, W, C) with 1, 3 or 4 channels, at least one. "
            f"Received: {shape}.{moved}"
        )
    return ""


def value_problem(pixels: np.ndarray) -> str:
    """Return why the values of an array are not pixels from 0 to 255; empty for pixels."""
    if pixels.dtype == np.uint8:
        return ""
    if pixels.dtype == bool:
        return "values True and False; multiply by 255"
    if pixels.dtype.kind not in "uif":
        return f"values of type {pixels.dtype}; convert them to uint8"
    low, high = pixels.min(), pixels.max()
    if not np.isfinite([low, high]).all():
        return "values that are NaN or infinite; replace them"
    if low >= -_ROUNDING and _UNIT * (low < 0) <= high <= 255 + _ROUNDING:
        return ""
    received = f"values from {low} to {high}"
    if low >= 0 and high <= 65535:
        deep = pixels.dtype.itemsize > 2  # arrays of 16 bits are scaled by the range of the training images
        convert = "convert them to uint16 if the training images have such values, or " if deep else ""
        return f"{received}, more than 8 bits; {convert}scale them to 0 to 255"
    if low >= -1.001 and high <= 1.001:
        return f"{received}; rescale them by (image + 1) * 127.5"
    return f"{received}; rescale or clip them to 0 to 255"


def scale_problem(highest: float) -> str:
    """Return that pixels were scaled to 0 to 1, judged by their highest value; empty if they were not."""
    return f"a maximum of {highest:.4g}; multiply by 255" if highest < _UNIT else ""
