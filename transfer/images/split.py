"""The labeled images of a split, and the contents of a source."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.display import one_line
from transfer.common.errors import LostImageError
from transfer.common.files import disk_reason
from transfer.common.tasks import SINGLE
from transfer.common.text import plural
from transfer.images.decoding import decode, to_rgb_array
from transfer.images.image_sequences import LazySequence
from transfer.images.pixel_range import PixelRange
from transfer.images.tables import own_group


@dataclass(frozen=True)
class Split:
    """The labeled images of a split; files are decoded when they are used."""

    # Paths, encoded images as bytes, or arrays of shape (H, W[, C]) with values from 0 to 255, or 16-bit.
    # Several threads index the sequence at once.
    images: Any
    # int64, shape (N,): indices into the class names. Of images with several labels, int8 of shape (N, labels): 1 for
    # each label of the image. Of a regression, float64 of shape (N,).
    labels: np.ndarray
    # Unique names: paths relative to the data folder, or numbers.
    names: Sequence[str]
    # The group of each image, such as its patient; empty if there are no groups.
    groups: Sequence[str] = ()
    # SHA-256 of each image's content, in hexadecimal; empty before the check.
    digests: Sequence[str] = ()
    # How images are resized: one of `decoding.RESIZES`.
    resize: str = "stretch"
    # The range of images with more than 8 bits per channel; None scales each by its own values.
    pixel_range: PixelRange | None = None
    # Names of the classes in the order of the labels; empty if they are unknown.
    class_names: Sequence[str] = ()
    # Requested height and width in pixels; None if none was requested.
    image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        groups = f" in {plural(len(set(self.groups)), 'group')}" if len(self.groups) else ""
        different = len(np.unique(self.labels, axis=0))
        return one_line(self, f"{plural(len(self), 'image')}{groups}; labels: {different} different")

    def take(self, positions: Sequence[int] | np.ndarray) -> Split:
        """Return the images at `positions`, in that order, without reading them."""
        chosen = np.asarray(positions, "int64").reshape(-1)
        images = self.images

        def at(items: Sequence[str]) -> Sequence[str]:
            return [items[i] for i in chosen.tolist()] if len(items) else ()

        return replace(
            self,
            images=LazySequence(len(chosen), lambda i: images[int(chosen[i])]),
            labels=self.labels[chosen],
            names=at(self.names),
            groups=at(self.groups),
            digests=at(self.digests),
        )

    def image(self, position: int, size: tuple[int, int]) -> np.ndarray:
        """Decode one image to uint8 of shape (height, width, 3)."""
        item = self.images[position]
        if isinstance(item, str) and len(self.digests):
            item = _unchanged(item, self.digests[position])
        to_pixels = to_rgb_array if isinstance(item, np.ndarray) else decode
        return to_pixels(item, size, resize=self.resize, pixel_range=self.pixel_range)


def _unchanged(path: str, digest: str) -> bytes:
    """Read an image file; raise an error if it is gone or changed since it was checked."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        folder = Path(path).parent
        what = f"Its folder {folder} is gone. " if not folder.is_dir() else ""
        raise LostImageError(
            f"Cannot read {path}: {disk_reason(error)}. {what}The check could read it. Restore it, or run the same "
            "command again without it."
        ) from None
    if hashlib.sha256(content).hexdigest() != digest:  # its features would be cached for the earlier image
        raise LostImageError(
            f"{path} changed after it was checked. Run the same command again to check all images."
        )
    return content


@dataclass(frozen=True)
class SourceData:
    """The contents of a source, before any image is opened."""

    # By split: "train", and "val" and "test" if the source has them.
    parts: dict[str, Split]
    # Class names in the order of the labels.
    class_names: list[str]
    # Name and reason of each image that cannot be used.
    skipped: Sequence[tuple[str, str]] = ()
    # Files that are not images.
    ignored: Sequence[str] = ()
    # Sentences on how the source was read, and whether each needs action.
    notes: Sequence[tuple[str, bool]] = ()
    # What the labels are: "single", "multi" or "regression".
    task: str = SINGLE
    # Name of the numbers of a regression, such as that of their column; "" if the source has none.
    target: str = ""
    # Whether an image with several labels is there several times, once for each label.
    copies_have_labels: bool = False


def concatenate(parts: Sequence[Split]) -> Split:
    """Return several splits as one, without reading images."""
    grouped = any(len(part.groups) for part in parts)
    known = all(len(part.digests) == len(part) for part in parts)
    starts = np.cumsum([0, *map(len, parts)]).tolist()

    def image(i: int) -> Any:
        part = bisect_right(starts, i) - 1
        return parts[part].images[i - starts[part]]

    return replace(
        parts[0],
        images=LazySequence(starts[-1], image),
        labels=np.concatenate([part.labels for part in parts]),
        names=[name for part in parts for name in part.names],
        groups=[group for part in parts for group in groups_of(part)] if grouped else (),
        digests=[digest for part in parts for digest in part.digests] if known else (),
    )


def groups_of(part: Split) -> Sequence[str]:
    """Return the group of each image; without groups, each image has its own."""
    return part.groups if len(part.groups) else [own_group(name) for name in part.names]
