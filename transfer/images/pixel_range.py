"""Map images of more than 8 bits per channel to 8 bits, by one range of values for a whole data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FAR_OFF = 8.0
"""An image is reported if the range of the data set is this many times the image's, or the reverse."""

_HUGE = 1e30  # larger values mark missing pixels, as NaN does: -3.4e38 in maps
_NO_DATA = (-99999, -32768, -32767, -9999)  # the usual marks of missing pixels in satellite images and maps


class Extent(NamedTuple):
    """The lowest and the highest value of an image with more than 8 bits per channel."""

    low: float
    high: float
    # Whether all values are whole numbers.
    whole: bool


@dataclass(frozen=True)
class PixelRange:
    """The values that become 0 and 255. Images of 8 bits keep their values."""

    low: float
    high: float
    # Before version 0.3, images with a maximum of 255 kept their values.
    dark_as_8_bit: bool = False

    def to_8_bit(self, values: np.ndarray) -> np.ndarray:
        """Scale values to 0 to 255 as uint8; values outside the range are clipped, missing ones become 0."""
        if values.dtype == np.uint16 and values.size > 2**16 and not self.dark_as_8_bit:
            return self.to_8_bit(np.arange(2**16, dtype="uint16"))[values]  # a table is faster and smaller
        low, high = self.low, self.high
        if self.dark_as_8_bit and values.max() <= 255:
            low, high = 0.0, 255.0
        inside = np.clip(np.nan_to_num(values.astype("float32"), nan=low), low, high)
        return np.rint((inside - low) * (255.0 / max(high - low, 1e-30))).astype("uint8")

    def problem(self, extent: Extent) -> str:
        """Return why an image would be nearly white or clipped to a few values, or an empty string."""
        size = max(self.high - self.low, 1e-30)
        if max(extent.high - self.low, self.high - extent.low) < FAR_OFF * size:
            return ""
        return f"values {_text(extent)} are far outside the range {_text(self)}"

    def is_narrow(self, extent: Extent) -> bool:
        """Return whether an image uses so little of the range that it becomes nearly one color."""
        return extent.low < extent.high and (extent.high - extent.low) * FAR_OFF <= self.high - self.low

    def mismatch(self, extent: Extent) -> str:
        """Return why an image differs from the training images in its range, or an empty string."""
        if self.is_narrow(extent):
            return f"values {_text(extent)} use at most 1/{FAR_OFF:.0f} of the range {_text(self)}"
        return self.problem(extent)

    def __str__(self) -> str:
        return _text(self)


BEFORE_0_3 = PixelRange(0.0, 65535.0, dark_as_8_bit=True)
"""The range of runs that do not store one."""


def extent_of(values: np.ndarray, no_data: float | None = None) -> Extent:
    """Return the extent of an image, without missing values; `no_data` is the file's own mark of these."""
    is_whole = np.issubdtype(values.dtype, np.integer)
    known = values if is_whole else values[np.abs(values) < _HUGE]  # false for NaN
    for mark in (*_NO_DATA, no_data):
        if mark is not None and known.size and mark in (known.min(), known.max()):
            known = known[known != mark]
    if not known.size:
        return Extent(0.0, 0.0, bool(is_whole))
    low, high = float(known.min()), float(known.max())
    return Extent(low, high, bool(is_whole or (known == np.rint(known)).all()))


def find_range(extents: Iterable[Extent]) -> PixelRange | None:
    """Return the range of a set of images; None if there are none of more than 8 bits."""
    extents = list(extents)
    if not extents:
        return None
    low, high = min(extent.low for extent in extents), max(extent.high for extent in extents)
    return range_of(Extent(low, high, all(extent.whole for extent in extents)))


def range_of(extent: Extent) -> PixelRange:
    """Return the range for the lowest and the highest value of images."""
    low, high, whole = extent
    if low < 0:  # such as Hounsfield units
        return PixelRange(low, max(high, low + 1))
    if high <= 1:
        return PixelRange(0.0, 1.0)
    if whole:  # the values that 8, 10, 12, 14, 16, ... bits can hold
        bits = max(8, int(high).bit_length())
        return PixelRange(0.0, float(2 ** (bits + bits % 2) - 1))
    # A maximum such as 1.2, as in reflectances, is not that of 0 to 255.
    return PixelRange(0.0, 255.0) if 255 / FAR_OFF < high <= 255 else PixelRange(low, high)


def _text(values: PixelRange | Extent) -> str:
    return f"{values.low:,.6g} to {values.high:,.6g}"
