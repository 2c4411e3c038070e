"""Check every image of a source before training: read it once, and describe it."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from transfer.common.cache_folder import default_cache_folder
from transfer.common.streams import progress_bar
from transfer.common.tasks import SINGLE
from transfer.images.check_cache import CheckCache
from transfer.images.data_report import MIN_DIFFERENT, DataReport, DuplicateSet
from transfer.images.decoding import (
    MAX_PIXELS,
    BadImageError,
    deep_extent,
    failure_reason,
    inspect_image,
    is_image,
    to_rgb_array,
)
from transfer.images.duplicates import perceptual_hash
from transfer.images.formats import HEAD_BYTES
from transfer.images.label_facts import label_facts
from transfer.images.label_forms import label_counts, label_texts
from transfer.images.pixel_range import FAR_OFF, Extent, PixelRange, range_of
from transfer.images.splitting import SourceData, Split

MAX_BYTES = 2**30
"""Maximum file size. Larger files are skipped without being read."""

RARE_FORMAT = 0.01
"""Fraction of all images. Formats with fewer images are reported, because such files are often there by mistake."""

OUTLIER_RATIO = 16.0
"""An image is reported if it has this many times the median number of pixels, or this many times fewer."""

_RULES = (
    3  # increase it when the check gives other results for the same image: this discards the cached results
)
_SIZE = (64, 64)  # size of the image that the perceptual hash uses
_LARGE = 2**26  # bytes; larger files are read only if they start like an image
_THREADS = os.cpu_count() or 1
_SLICE = 128  # number of files whose states one job looks up
_CHUNK = 2048  # images per round: one job for each of a million images would take gigabytes of memory


class CheckedImage(NamedTuple):
    """The result of checking one image."""

    # Why the image cannot be used; empty for good images.
    problem: str
    # SHA-256 of the content, in hexadecimal.
    digest: str = ""
    # From `duplicates.perceptual_hash`.
    hash: bytes = b""
    format: str = ""
    # Channels, as Pillow names them.
    mode: str = ""
    # Width and height in pixels, after rotation by EXIF data.
    width: int = 0
    height: int = 0
    # Whether EXIF data rotate or mirror the image.
    rotated: bool = False
    # The lowest and the highest value, of any channel.
    low: float = 0.0
    high: float = 255.0
    # Whether all values are whole numbers; None for images of 8 bits per channel.
    whole: bool | None = None
    single_color: bool = False
    # Whether the file has more pages or frames than the one that is read.
    more_pages: bool = False
    # PatientID of a DICOM file; empty for others.
    patient: str = ""

    @property
    def extent(self) -> Extent | None:
        """The extent of an image with more than 8 bits per channel."""
        return None if self.whole is None else Extent(self.low, self.high, self.whole)


def check_images(images: Sequence[Any], *, progress: bool = True) -> list[CheckedImage]:
    """Check images in parallel; files that have not changed since an earlier check are not read again."""
    bar = progress_bar(
        total=len(images), desc="checking", unit=" images", disable=not progress or len(images) < 2000
    )
    checked: list[CheckedImage] = []
    with (
        bar,
        CheckCache(default_cache_folder(), rules=_rules()) as known,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for start in range(0, len(images), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(images)))
            # Only paths are fetched here; images in memory might not fit all at once, so the threads fetch them.
            paths = [images[i] for i in positions] if isinstance(images[start], str) else []
            if paths and all(isinstance(path, str) for path in paths):
                checked += _check_files(paths, known, pool)
            else:
                checked += pool.map(lambda i: check(images[i]), positions)
            bar.update(len(positions))
    return checked


def _check_files(paths: Sequence[str], known: CheckCache, pool: ThreadPoolExecutor) -> list[CheckedImage]:
    """Check the files that are new, changed or had a problem, and take the others from the cache."""
    slices = [paths[i : i + _SLICE] for i in range(0, len(paths), _SLICE)]
    states = [state for some in pool.map(known.file_states, slices) for state in some]
    rows = known.load(states)
    new = [i for i, row in enumerate(rows) if row is None]
    results = list(pool.map(check, [paths[i] for i in new]))
    # Problems are not cached, because they may be the disk's.
    saved = [None if one.problem else (one.digest, one.hash.hex(), *one[3:]) for one in results]
    known.save([states[i] for i in new], saved)
    fresh = iter(results)
    return [
        next(fresh) if row is None else CheckedImage("", row[0], bytes.fromhex(row[1]), *row[2:])
        for row in rows
    ]


def _rules() -> str:
    """Return the rules, limits and versions that the result of a check depends on."""
    return repr((_RULES, CheckedImage._fields, _SIZE, MAX_BYTES, MAX_PIXELS, *_library_versions()))


@cache
def _library_versions() -> tuple[str, ...]:
    """Return the versions of libraries, without importing those that only new images need."""
    from importlib.metadata import PackageNotFoundError, version

    from PIL import features

    versions = [platform.machine(), str(features.version_codec("jpg")), str(features.version_module("webp"))]
    for name in ("Pillow", "ImageHash", "numpy", "scipy", "pillow-heif", "pydicom"):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return tuple(versions)


def check(image: str | bytes | np.ndarray) -> CheckedImage:
    """Read one image to its last byte, and describe it or return its problem."""
    if isinstance(image, np.ndarray):
        return _check_array(image)
    try:
        content = image if isinstance(image, bytes) else _content(image)
        if not content:
            return CheckedImage("empty")
        decoded = inspect_image(content, _SIZE)
    except BadImageError as error:
        return CheckedImage(str(error))
    except OSError as error:
        return CheckedImage(failure_reason(error))
    return CheckedImage("", _digest(content), perceptual_hash(decoded.pixels), *decoded[1:])


def _check_array(image: np.ndarray) -> CheckedImage:
    """Describe an image in memory."""
    height, width = image.shape[:2]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[1 if image.ndim == 2 else image.shape[2]]
    digest, hash = _digest(image.tobytes()), perceptual_hash(to_rgb_array(image, _SIZE))
    channels = image.reshape(height * width, -1)
    low, high, deep = channels.min(axis=0), channels.max(axis=0), deep_extent(image)
    return CheckedImage(
        "", digest, hash, "array", mode + (";16" if deep else ""), width, height,
        low=float(low.min()), high=float(high.max()), whole=deep and deep.whole, single_color=bool((low == high).all()),
    )  # fmt: skip


def _content(path: str) -> bytes:
    """Read a file, unless it is too large or not an image."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):  # reading a pipe would never end
        raise BadImageError("not a file")
    if info.st_size > MAX_BYTES:
        raise BadImageError(f"{info.st_size:,} bytes are more than {MAX_BYTES:,}")
    with open(path, "rb") as stream:
        if info.st_size > _LARGE and not is_image(stream.read(HEAD_BYTES)):  # such as a video or an archive
            raise BadImageError("not an image of a known format")
        stream.seek(0)
        return stream.read()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_report(
    name: str,
    source: SourceData,
    *,
    checked: Mapping[str, Sequence[CheckedImage]],
    duplicate_ids: Mapping[str, np.ndarray],
    splits: Mapping[str, Split],
) -> DataReport:
    """Return the report of a check."""
    images = [image for part in checked.values() for image in part]
    names = [image for part in checked for image in source.parts[part].names]
    parts = [part for part, of_part in checked.items() for _ in of_part]
    labels = np.concatenate([source.parts[part].labels for part in checked])
    ids = np.concatenate([duplicate_ids[part] for part in checked])
    formats = [image.format for image in images]
    sizes = np.array([(image.width, image.height) for image in images], "int64").reshape(-1, 2)
    classes = tuple(source.class_names)
    counts = {
        split: tuple(label_counts(part.labels, len(classes)).tolist()) for split, part in splits.items()
    }
    pixel_range = next((part.pixel_range for part in splits.values() if part.pixel_range), None)
    groups = Counter(group for part in checked for group in set(source.parts[part].groups))
    return DataReport(
        name=name,
        class_names=classes,
        counts=counts,
        total=len(images),
        skipped=tuple(source.skipped),
        ignored=tuple(source.ignored),
        formats=dict(Counter(formats).most_common()),
        modes=dict(Counter(image.mode for image in images).most_common()),
        rotated=sum(image.rotated for image in images),
        widths=_spread(sizes[:, 0]),
        heights=_spread(sizes[:, 1]),
        duplicates=_duplicate_sets(ids, names, label_texts(labels, classes), parts, images),
        groups=len(groups),
        shared_groups=tuple(sorted(group for group, count in groups.items() if count > 1)),
        outliers=(*_outliers(formats, sizes, names), *_bright_outliers(names, images)),
        blank=tuple(name for name, image in zip(names, images, strict=True) if image.single_color),
        format_leak=_format_leak(formats, labels, classes) if source.task == SINGLE else "",
        small_classes=_small_classes(labels, ids, classes) if list(checked) == ["train"] else (),
        notes=tuple(source.notes),
        pixel_range=(pixel_range.low, pixel_range.high) if pixel_range else (),
        low_contrast=_low_contrast(names, images, pixel_range),
        out_of_range=_out_of_range(names, images, pixel_range),
        more_pages=tuple(name for name, image in zip(names, images, strict=True) if image.more_pages),
        **label_facts(splits),
    )


def _low_contrast(
    names: Sequence[str], images: Sequence[CheckedImage], pixel_range: PixelRange | None
) -> tuple[str, ...]:
    """Return images whose values differ by at most an eighth of the range: nearly black, or nearly flat."""
    found = []
    for name, image in zip(names, images, strict=True):
        extent = image.extent or Extent(image.low, image.high, True)
        used = (pixel_range or range_of(extent)) if image.extent else PixelRange(0.0, 255.0)
        if not image.single_color and used.is_narrow(extent):
            found.append(name)
    return tuple(found)


def _bright_outliers(names: Sequence[str], images: Sequence[CheckedImage]) -> list[tuple[str, str]]:
    """Return images of more than 8 bits that alone make the range much wider than the others need."""
    deep = [(name, image.high) for name, image in zip(names, images, strict=True) if image.extent]
    usual = float(np.median([high for _, high in deep])) if deep else 0.0
    return [(name, f"values up to {high:,.6g}") for name, high in deep if high >= FAR_OFF * usual > 0]


def _out_of_range(
    names: Sequence[str], images: Sequence[CheckedImage], pixel_range: PixelRange | None
) -> tuple[tuple[str, str], ...]:
    """Return images of more than 8 bits that the range clips to nearly one value, with the reason."""
    if pixel_range is None:
        return ()
    pairs = ((name, image.extent) for name, image in zip(names, images, strict=True))
    return tuple((name, why) for name, extent in pairs if extent and (why := pixel_range.problem(extent)))


def _small_classes(labels: np.ndarray, ids: np.ndarray, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes with too few different images."""
    if labels.dtype.kind == "f":
        return ()
    if labels.ndim == 2:
        counts = np.array([len(np.unique(ids[column > 0])) for column in labels.T])
    else:
        different = np.unique(np.stack([labels, ids], axis=1), axis=0)[:, 0]
        counts = np.bincount(different, minlength=len(class_names))
    return tuple(name for name, count in zip(class_names, counts, strict=True) if count < MIN_DIFFERENT)


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    """Return the minimum, median and maximum."""
    return (int(values.min()), int(np.median(values)), int(values.max())) if len(values) else (0, 0, 0)


def _duplicate_sets(
    ids: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    parts: Sequence[str],
    images: Sequence[CheckedImage],
) -> tuple[DuplicateSet, ...]:
    """Return the sets of images with equal ids."""
    order = np.argsort(ids, kind="stable")
    ends = np.flatnonzero(np.diff(ids[order], prepend=-1, append=-1))
    sets = []
    for start, end in pairwise(ends.tolist()):
        members = sorted(order[start:end].tolist(), key=names.__getitem__)
        if len(members) > 1:
            columns = [tuple(column[i] for i in members) for column in (names, classes, parts)]
            exact = len({images[i].digest for i in members}) == 1
            sets.append(DuplicateSet(columns[0], columns[1], columns[2], exact))
    return tuple(sorted(sets))


def _outliers(formats: Sequence[str], sizes: np.ndarray, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return images of unusual format or size, such as stray thumbnails, placeholders or camera originals."""
    if not names:
        return ()
    counts = Counter(formats)
    usual = counts.most_common(1)[0][0]
    pixels = sizes.prod(axis=1)
    median = max(float(np.median(pixels)), 1.0)
    normal = (median / OUTLIER_RATIO < pixels) & (pixels < median * OUTLIER_RATIO)
    rare = {kind for kind, count in counts.items() if kind != usual and count < RARE_FORMAT * len(names)}
    found = []
    for name, kind, (width, height), is_normal in zip(
        names, formats, sizes.tolist(), normal.tolist(), strict=True
    ):
        reasons = [f"{kind} among {usual}"] * (kind in rare) + [f"{width}x{height} pixels"] * (not is_normal)
        if reasons:
            found.append((name, ", ".join(reasons)))
    return tuple(found)


def _format_leak(formats: Sequence[str], labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Return two classes that differ in their usual file format, or an empty string."""
    by_class: dict[int, Counter[str]] = {}
    for label, kind in zip(labels.tolist(), formats, strict=True):
        by_class.setdefault(label, Counter())[kind] += 1
    example: dict[str, str] = {}  # the first class of each format
    for label, counts in sorted(by_class.items()):
        kind, count = counts.most_common(1)[0]
        if count > 0.9 * counts.total():
            example.setdefault(kind, class_names[label])
    (first, second) = [*sorted(example), "", ""][:2]
    if not second:
        return ""
    return f"{example[first]} is nearly all {first}, {example[second]} is nearly all {second}"
