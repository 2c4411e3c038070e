"""The split as a file: which image is in which split, written and given back."""

from __future__ import annotations

import csv
import logging
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from transfer.common.errors import InputError, nearest, unknown
from transfer.common.files import replacing, to_cell
from transfer.images.splitting import Split
from transfer.images.tables import SPLITS, Table, is_lone, listed, lone_group, short

log = logging.getLogger(__name__)

DIGEST = "sha256"
"""The column of the images' contents, where they are known: what was trained on is known again under any name."""

_nfc = partial(normalize, "NFC")  # file systems differ in how they write accents


def write_split(path: Path, splits: Mapping[str, Split], class_names: Sequence[str]) -> None:
    """Write which image is in which split, as CSV; `read_split` and `apply_split` give it back."""
    for split in splits:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
    parts = {split: splits[split] for split in SPLITS if split in splits}
    _positions(chain.from_iterable(p.names for p in parts.values()), lambda i: f"image {i + 1} of the data")
    try:
        with (
            replacing(path) as unfinished,
            unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            csv.writer(file).writerows(_lines(parts, class_names))
    except UnicodeEncodeError as error:
        raise InputError(f"Cannot write the split to {str(path)!r}: {error}. Rename the image.") from None


def _lines(parts: Mapping[str, Split], class_names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    grouped = any(len(part.groups) for part in parts.values())
    known = all(len(part.digests) == len(part) for part in parts.values())
    labels = [to_cell(name) for name in class_names]
    yield ("path", "label", "split", *(["group"] * grouped), *([DIGEST] * known))
    for split, part in parts.items():
        digests = part.digests if known else part.names
        for name, label, group, digest in zip(
            part.names, part.labels.tolist(), _groups(part), digests, strict=True
        ):
            row = [to_cell(name), labels[label], split]
            row += ["" if is_lone(group) else to_cell(group)] * grouped
            yield (*row, digest) if known else tuple(row)


def _groups(part: Split) -> Sequence[str]:
    return part.groups if len(part.groups) else [lone_group(name) for name in part.names]


def read_split(path: Path) -> list[tuple[str, str, str]]:
    """Read the file of a split."""
    table = Table(path, needed=("path", "label", "split"))
    rows, numbers = [], array("q")
    known: dict[str, str] = {}  # one string per label, however many rows
    for number, name, label, split, _ in table.rows():
        label = _nfc(label)
        rows.append((_nfc(name), known.setdefault(label, label), split))
        numbers.append(number)
    _positions((name for name, _, _ in rows), lambda i: table.place(numbers[i]))
    return rows


def training_digests(path: Path) -> set[str]:
    """Read the contents of the images that a split trains or validates on."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file)
            return {row[DIGEST] for row in rows if row.get(DIGEST) and row.get("split") != "test"}
    except (OSError, csv.Error):
        return set()


def apply_split(
    rows: Sequence[tuple[str, str, str]],
    parts: Mapping[str, Split],
    class_names: Sequence[str],
    *,
    skipped_names: Collection[str] = (),
) -> dict[str, Split]:
    """Split images as a file says."""
    data = _joined(parts)
    rows = [(_nfc(name), _nfc(label), split) for name, label, split in rows]
    class_names = [*map(_nfc, class_names)]
    at = _positions(map(_nfc, data.names), lambda i: f"image {i + 1} of the data")
    _positions((name for name, _, _ in rows), lambda i: f"row {i + 1} of the split")
    _refuse_unknown(rows, class_names)
    skipped = set(map(_nfc, skipped_names)) - at.keys()
    kept = [row for row in rows if row[0] not in skipped]
    _refuse_lost(rows, kept, at)
    _refuse_other_labels(kept, at, [class_names[i] for i in data.labels.tolist()])
    picked: dict[str, list[int]] = {split: [] for split in SPLITS}
    for name, _, split in kept:
        picked[split].append(at[name])
    if not picked["train"]:
        raise InputError(
            f"Expected images for train in the file of the split. Received {len(rows)} rows, {len(kept)} of them "
            "of images that can be read, and none of these is for train. Name some train."
        )
    if len(kept) < len(rows):
        log.warning("The split names %d images that cannot be read: left out.", len(rows) - len(kept))
    if len(kept) < len(data):
        log.warning(
            "The split does not name %d of the %d images: left out.", len(data) - len(kept), len(data)
        )
    return {split: data.take(positions) for split, positions in picked.items()}


def _refuse_unknown(rows: Sequence[tuple[str, str, str]], class_names: Sequence[str]) -> None:
    known = set(class_names)
    for _, label, split in rows:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if label not in known:
            raise unknown("class", label, class_names, hint="It is in the file of the split.")


def _refuse_lost(
    rows: Sequence[tuple[str, str, str]], kept: Sequence[tuple[str, str, str]], at: Mapping[str, int]
) -> None:
    """Refuse a split that was made of other data."""
    lost = [name for name, _, _ in kept if name not in at]
    if lost:
        named = {name for name, _, _ in rows}
        near = nearest(lost[0], islice((name for name in at if name not in named), 5_000))
        raise InputError(
            "Expected images of these data in the file of the split. Received "
            f"{len(lost)} of {len(rows)} that the data lack: {listed(lost)}. "
            + (f"Did you mean {listed(near)}? " if near else "")
            + "Give the data that the split was made of."
        )


def _refuse_other_labels(
    kept: Sequence[tuple[str, str, str]], at: Mapping[str, int], labels: Sequence[str]
) -> None:
    """Refuse a split whose data changed since."""
    other = [(name, label, labels[at[name]]) for name, label, _ in kept if label != labels[at[name]]]
    if other:
        shown = "; ".join(
            f"{short(name)} is {there!r} there and {here!r} here" for name, there, here in other[:5]
        )
        raise InputError(
            "Expected the labels of these data in the file of the split. Received "
            f"{len(other)} of {len(kept)} that differ: {shown}. Mend the file or the data."
        )


def _positions(names: Iterable[str], place: Callable[[int], str]) -> dict[str, int]:
    """Give the position of each name; none may be there twice, or its image could be in two splits."""
    at: dict[str, int] = {}
    for i, name in enumerate(names):
        if at.setdefault(name, i) != i:
            raise InputError(
                f"Expected every image once. Received {short(name)} twice: {place(at[name])} and {place(i)}. "
                "Take one away."
            )
    return at


def _joined(parts: Mapping[str, Split]) -> Split:
    """Put parts one behind the other."""
    each = list(parts.values())
    return replace(
        each[0],
        images=_Joined(each),
        labels=np.concatenate([part.labels for part in each]),
        names=[name for part in each for name in part.names],
        groups=[g for part in each for g in _groups(part)] if any(len(part.groups) for part in each) else (),
        digests=[d for part in each for d in part.digests] if all(len(part.digests) for part in each) else (),
    )


class _Joined(Sequence[Any]):
    """The images of several splits, each read when it is asked for."""

    def __init__(self, parts: Sequence[Split]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i: Any) -> Any:
        part = bisect_right(self.starts, i) - 1
        return self.parts[part].images[i - self.starts[part]]
