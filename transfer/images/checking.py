"""The check before training: every image is read once, small, so that bad ones are known by name."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from transfer.common.cache_folder import default_folder
from transfer.images.check_cache import CheckCache
from transfer.images.data_report import FEWEST, DataReport, DuplicateSet
from transfer.images.decoding import MOST_PIXELS, BadImageError, inspect_image, is_image, reason, to_rgb_array
from transfer.images.duplicates import perceptual_hash
from transfer.images.splitting import SourceData, Split

MOST_BYTES = 2**30
"""Larger files are refused unread."""

_MUCH = 2**26  # bytes, from which a file is looked at before it is read

ODD_SHARE = 0.01
"""Of all images; a format that fewer than these have is odd, since it is often a stray file."""

ODD_SIZE = 16.0
"""Times as many pixels as the median image, or as few, from which a size is odd."""

_RULES = 1  # count up when the check finds out something else about the same image: then all are checked anew
_SIZE = (64, 64)  # what the perceptual hash looks at
_THREADS = os.cpu_count() or 1
_SLICE = 128  # files that a thread looks at from outside at a time
_CHUNK = 2048  # images handed to the threads at a time: a job for each of a million would cost gigabytes


class CheckedImage(NamedTuple):
    """What the check found out about one image."""

    # Why it cannot be used.
    problem: str
    # SHA-256 of its bytes.
    digest: str = ""
    # Of `duplicates.perceptual_hash`.
    hash: bytes = b""
    format: str = ""
    mode: str = ""
    # In pixels, upright.
    width: int = 0
    # In pixels, upright.
    height: int = 0
    turned: bool = False


def check_images(images: Sequence[Any], *, progress: bool = True) -> list[CheckedImage]:
    """Check every image, some at a time."""
    bar = tqdm(total=len(images), desc="checking", unit=" images", disable=not progress or len(images) < 2000)
    found: list[CheckedImage] = []
    with (
        bar,
        CheckCache(default_folder(), rules=_rules()) as memory,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for start in range(0, len(images), _CHUNK):
            places = range(start, min(start + _CHUNK, len(images)))
            # Others are read by the threads: all of these at once may not fit into memory.
            paths = [images[i] for i in places] if isinstance(images[start], str) else []
            if paths and all(isinstance(path, str) for path in paths):
                found += _check_files(paths, memory, pool)
            else:
                found += pool.map(lambda i: check(images[i]), places)
            bar.update(len(places))
    return found


def _check_files(paths: Sequence[str], memory: CheckCache, pool: ThreadPoolExecutor) -> list[CheckedImage]:
    """Check those files that have changed since they were checked last, or were bad then."""
    slices = [paths[i : i + _SLICE] for i in range(0, len(paths), _SLICE)]
    stamps = [stamp for some in pool.map(memory.stamp, slices) for stamp in some]
    rows = memory.recall(stamps)
    new = [i for i, row in enumerate(rows) if row is None]
    fresh = list(pool.map(check, [paths[i] for i in new]))
    memory.remember([stamps[i] for i in new], [_row(one) for one in fresh])
    found = iter(fresh)
    return [next(found) if row is None else _from_row(*row) for row in rows]


def _row(one: CheckedImage) -> tuple[Any, ...] | None:
    """Give what is remembered; a problem is looked at anew each time, since it may be the disk's."""
    return None if one.problem else (one.digest, one.hash.hex(), *one[3:])


def _from_row(digest: str, hash: str, *rest: Any) -> CheckedImage:
    return CheckedImage("", digest, bytes.fromhex(hash), *rest)


def _rules() -> str:
    """Name all that the check's answer depends on but the image."""
    return repr((_RULES, CheckedImage._fields, _SIZE, MOST_BYTES, MOST_PIXELS, *_libraries()))


@cache
def _libraries() -> tuple[str, ...]:
    """Their versions, read without loading those that only new images need."""
    from importlib.metadata import PackageNotFoundError, version

    from PIL import features

    found = [platform.machine(), str(features.version_codec("jpg")), str(features.version_module("webp"))]
    for name in ("Pillow", "ImageHash", "numpy", "scipy"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return tuple(found)


def check(image: str | bytes | np.ndarray) -> CheckedImage:
    """Say whether one image can be read to its last byte, and what it is."""
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
        mode = "L" if image.ndim == 2 or image.shape[2] == 1 else "RGB"
        pixels = to_rgb_array(image, _SIZE)
        return CheckedImage("", _digest(image.tobytes()), perceptual_hash(pixels), "array", mode, width, height)
    try:
        content = image if isinstance(image, bytes) else _content(image)
        if not content:
            return CheckedImage("empty")
        seen = inspect_image(content, _SIZE)
    except BadImageError as error:
        return CheckedImage(str(error))
    except OSError as error:
        return CheckedImage(reason(error))
    return CheckedImage("", _digest(content), perceptual_hash(seen.pixels), *seen[1:])


def _content(path: str) -> bytes:
    kind = os.stat(path)
    if not stat.S_ISREG(kind.st_mode):  # a pipe would never end
        raise BadImageError("not a file")
    if kind.st_size > MOST_BYTES:
        raise BadImageError(f"{kind.st_size:,} bytes are more than {MOST_BYTES:,}")
    with open(path, "rb") as stream:
        if kind.st_size > _MUCH and not is_image(stream.read(16)):  # a film or an archive, say
            raise BadImageError("not an image of a known format")
        stream.seek(0)
        return stream.read()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_report(
    name: str,
    found: SourceData,
    *,
    checked: Mapping[str, Sequence[CheckedImage]],
    same: Mapping[str, np.ndarray],
    splits: Mapping[str, Split],
) -> DataReport:
    """Sum up what the check found out."""
    every = [c for part in checked.values() for c in part]
    names = [image for part in checked for image in found.parts[part].names]
    where = [part for part, of_part in checked.items() for _ in of_part]
    labels = np.concatenate([found.parts[part].labels for part in checked])
    numbers = np.concatenate([same[part] for part in checked])
    formats = [c.format for c in every]
    sizes = np.array([(c.width, c.height) for c in every], "int64").reshape(-1, 2)
    classes = len(found.class_names)
    counts = {s: tuple(np.bincount(part.labels, minlength=classes).tolist()) for s, part in splits.items()}
    groups = Counter(group for part in checked for group in set(found.parts[part].groups))
    return DataReport(
        name=name,
        class_names=tuple(found.class_names),
        counts=counts,
        total=len(every),
        skipped=tuple(found.skipped),
        ignored=tuple(found.ignored),
        formats=_counted(formats),
        modes=_counted(c.mode for c in every),
        turned=sum(c.turned for c in every),
        widths=_spread(sizes[:, 0]),
        heights=_spread(sizes[:, 1]),
        same=_same(numbers, names, [found.class_names[y] for y in labels], where, every),
        groups=len(groups),
        split_groups=tuple(sorted(group for group, count in groups.items() if count > 1)),
        odd=_odd(formats, sizes, names),
        blank=tuple(image for image, c in zip(names, every, strict=True) if not c.hash),
        format_tells=_format_tells(formats, labels, found.class_names),
        few=_few(labels, numbers, found.class_names) if list(checked) == ["train"] else (),
    )


def _few(labels: np.ndarray, numbers: np.ndarray, class_names: Sequence[str]) -> tuple[str, ...]:
    different = np.unique(np.stack([labels, numbers], axis=1), axis=0)[:, 0]
    counts = np.bincount(different, minlength=len(class_names))
    return tuple(name for name, count in zip(class_names, counts, strict=True) if count < FEWEST)


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    if not len(values):
        return 0, 0, 0
    return int(values.min()), int(np.median(values)), int(values.max())


def _same(
    numbers: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    splits: Sequence[str],
    checked: Sequence[CheckedImage],
) -> tuple[DuplicateSet, ...]:
    order = np.argsort(numbers, kind="stable")
    ends = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1))
    found = []
    for start, end in pairwise(ends.tolist()):
        members = sorted(order[start:end].tolist(), key=lambda i: names[i])
        if len(members) > 1:
            shown, of, where = (tuple(each[i] for i in members) for each in (names, classes, splits))
            found.append(DuplicateSet(shown, of, where, exact=len({checked[i].digest for i in members}) == 1))
    return tuple(sorted(found))


def _odd(formats: Sequence[str], sizes: np.ndarray, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Find images unlike the others: stray thumbnails, placeholders, originals of a camera."""
    if not names:
        return ()
    counts = Counter(formats)
    usual = counts.most_common(1)[0][0]
    pixels = sizes.prod(axis=1)
    median = max(float(np.median(pixels)), 1.0)
    far = ~((median / ODD_SIZE < pixels) & (pixels < median * ODD_SIZE))
    rare = {kind for kind, count in counts.items() if kind != usual and count < ODD_SHARE * len(names)}
    found = []
    for name, kind, size, strange in zip(names, formats, sizes.tolist(), far.tolist(), strict=True):
        what = []
        if kind in rare:
            what.append(f"{kind} among {usual}")
        if strange:
            what.append(f"{size[0]}x{size[1]} pixels")
        if what:
            found.append((name, ", ".join(what)))
    return tuple(found)


def _format_tells(formats: Sequence[str], labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Say whether files' format gives classes away, which a network would learn instead of what they
    show."""
    by_class: dict[int, Counter[str]] = {}
    for label, kind in zip(labels.tolist(), formats, strict=True):
        by_class.setdefault(label, Counter())[kind] += 1
    usual = {}
    for label, counts in sorted(by_class.items()):
        kind, count = counts.most_common(1)[0]
        if count > 0.9 * counts.total():
            usual[class_names[label]] = kind
    kinds = sorted(set(usual.values()))
    if len(kinds) < 2:
        return ""
    example = [next(name for name in usual if usual[name] == kind) for kind in kinds[:2]]
    return f"{example[0]} is nearly all {kinds[0]}, {example[1]} nearly all {kinds[1]}"
