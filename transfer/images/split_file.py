"""Write and read split files: CSV files that assign each image to a split."""

from __future__ import annotations

import contextlib
import csv
import logging
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from unicodedata import normalize

from transfer.common.errors import InputError, nearest, unknown
from transfer.common.files import from_cell, replacing, to_cell
from transfer.common.text import plural
from transfer.images.column_names import quoted, quoted_list
from transfer.images.label_forms import label_texts
from transfer.images.split_words import SPLITS
from transfer.images.splitting import Split, concatenate, groups_of
from transfer.images.tables import Table, is_own_group

log = logging.getLogger(__name__)

DIGEST = "sha256"
"""Column of the images' digests: `evaluate` recognizes training images by their content, under any name."""

Row = tuple[str, str, str]
"""Name, label and split of an image."""

_nfc = partial(normalize, "NFC")  # file systems write accents in different ways


def write_split(path: Path, splits: Mapping[str, Split], class_names: Sequence[str]) -> None:
    """Write the split of each image as CSV, or leave the old file if writing fails."""
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
    """Yield the lines of a split file; groups and digests are written only if there are any."""
    grouped = any(len(part.groups) for part in parts.values())
    known = all(len(part.digests) == len(part) for part in parts.values())
    yield ("path", "label", "split", *(["group"] * grouped), *([DIGEST] * known))
    for split, part in parts.items():
        digests = part.digests if known else part.names
        for name, label, group, digest in zip(
            part.names, label_texts(part.labels, class_names), groups_of(part), digests, strict=True
        ):
            row = [to_cell(name), to_cell(label), split]
            row += ["" if is_own_group(group) else to_cell(group)] * grouped
            yield (*row, digest) if known else tuple(row)


def read_split(path: Path) -> list[Row]:
    """Read the rows of a split file; every image may be in it once."""
    table = Table(path, required=("path", "label", "split"))
    rows, numbers = [], array("q")
    known: dict[str, str] = {}  # rows share one string per label, which saves memory
    for row in table.all_rows():
        label = _nfc(row.label)  # "" for an image without labels
        rows.append((_nfc(row.path), known.setdefault(label, label), row.split))
        numbers.append(row.number)
    table.raise_problems(any_labels=True)
    _positions((name for name, _, _ in rows), lambda i: table.location(numbers[i]))
    return rows


def training_digests(path: Path) -> set[str]:
    """Read the digests of a split file's training and validation images; empty if there are none."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file)
            return {row[DIGEST] for row in rows if row.get(DIGEST) and row.get("split") != "test"}
    except (OSError, csv.Error):
        return set()


def describe_changes(path: Path, splits: Mapping[str, Split]) -> str:
    """Return which images are gone, new or changed since a split file was written; empty if none are."""
    now = {
        _nfc(name): part.digests[i] if len(part.digests) else ""
        for part in splits.values()
        for i, name in enumerate(part.names)
    }
    earlier: dict[str, str] = {}
    with (
        contextlib.suppress(OSError, csv.Error),
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        earlier = {_nfc(from_cell(row["path"])): row.get(DIGEST) or "" for row in csv.DictReader(file)}
    if not earlier:
        return ""
    changes = {
        "gone": [name for name in earlier if name not in now],
        "new": [name for name in now if name not in earlier],
        "changed": [name for name in now if earlier.get(name, now[name]) != now[name]],
    }
    return "; ".join(
        f"{plural(len(names), 'image')} {'is' if len(names) == 1 else 'are'} {what}: {quoted_list(names)}"
        for what, names in changes.items()
        if names
    )


def apply_split(
    rows: Sequence[Row],
    parts: Mapping[str, Split],
    class_names: Sequence[str],
    *,
    skipped_names: Collection[str] = (),
) -> dict[str, Split]:
    """Assign images to splits by the rows of a split file; images without a row are left out."""
    data = concatenate([*parts.values()])
    rows = [(_nfc(name), _nfc(label), split) for name, label, split in rows]
    texts = [*map(_nfc, label_texts(data.labels, class_names))]
    known = (
        [*map(_nfc, class_names)]
        if data.labels.dtype.kind == "i" and data.labels.ndim == 1
        else [*dict.fromkeys(texts)]
    )
    at = _positions(map(_nfc, data.names), lambda i: f"image {i + 1} of the data")
    _positions((name for name, _, _ in rows), lambda i: f"row {i + 1} of the split")
    for split, label in dict.fromkeys((split, label) for _, label, split in rows):
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if label not in known:
            raise unknown("class", label, known, hint="Check the split file.")
    skipped = set(map(_nfc, skipped_names)) - at.keys()
    kept = [row for row in rows if row[0] not in skipped]
    _refuse_missing(rows, kept, at)
    _refuse_other_labels(kept, at, texts)
    positions: dict[str, list[int]] = {split: [] for split in SPLITS}
    for name, _, split in kept:
        positions[split].append(at[name])
    if not positions["train"]:
        raise InputError(
            f"Expected training images in the split file. Received: {plural(len(rows), 'row')}, {len(kept)} of them "
            "with a readable image, none of these in train. Assign images to train."
        )
    if len(kept) < len(rows):
        log.warning(
            "Skipped %s of the split file without a readable image.", plural(len(rows) - len(kept), "row")
        )
    if len(kept) < len(data):
        log.warning(
            "Left out %d of %d images that are not in the split file.", len(data) - len(kept), len(data)
        )
    return {split: data.take(chosen) for split, chosen in positions.items()}


def _refuse_missing(rows: Sequence[Row], kept: Sequence[Row], at: Mapping[str, int]) -> None:
    """Raise an error if the data lack images of the split file."""
    missing = [name for name, _, _ in kept if name not in at]
    if missing:
        named = {name for name, _, _ in rows}
        near = nearest(missing[0], islice((name for name in at if name not in named), 5_000))
        raise InputError(
            f"Expected images of these data in the split file. Received {len(missing)} of {len(rows)} that are not in "
            f"the data: {quoted_list(missing)}. "
            + (f"Did you mean {quoted_list(near)}? " if near else "")
            + "Use the data that the split was made from."
        )


def _refuse_other_labels(kept: Sequence[Row], at: Mapping[str, int], labels: Sequence[str]) -> None:
    """Raise an error if labels in the data and in the split file differ."""
    other = [(name, label, labels[at[name]]) for name, label, _ in kept if label != labels[at[name]]]
    if other:
        shown = "; ".join(
            f"{quoted(name)} is {in_file!r} in the file and {in_data!r} in the data"
            for name, in_file, in_data in other[:5]
        )
        raise InputError(
            f"Expected the labels of the data in the split file. Received {len(other)} of {len(kept)} that differ: "
            f"{shown}. Correct the file or the data."
        )


def _positions(names: Iterable[str], place: Callable[[int], str]) -> dict[str, int]:
    """Return the position of each name; raise an error for a name that occurs twice."""
    at: dict[str, int] = {}
    for i, name in enumerate(names):
        if at.setdefault(name, i) != i:  # otherwise the image could be in two splits
            raise InputError(
                f"Expected every image once. Received {quoted(name)} twice: {place(at[name])} and {place(i)}. "
                "Remove one."
            )
    return at
