"""Read a manifest: a CSV or Parquet list of images and their labels."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.images.image_sequences import LazySequence
from transfer.images.split_words import SPLITS
from transfer.images.splitting import SourceData, Split
from transfer.images.tables import NOT_UTF8, SAVE_AS_UTF8, Table, own_group, quoted

_CHECKED_PATHS = 1_000
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def read_manifest(path: Path) -> SourceData:
    """Return the images, labels, splits and groups of a list, without opening an image."""
    table = Table(path)
    folder = str(table.path.parent)
    paths: list[str] = []
    names: list[str] = []
    groups: list[str] = []
    numbers, labels, splits = array("q"), array("q"), array("q")
    ids: dict[str, int] = {}
    shared: dict[str, str] = {}  # saves memory: one string per group instead of one per row
    counts: dict[str, int] = {}
    for number, written, label, split, group in table.rows():
        if problem := _row_problem(written, label):
            table.add_problem(number, problem)
            continue
        if not (written + label + group).isascii():
            _refuse_other_encodings(table.location(number), folder, written, label + group)
        numbers.append(number)
        paths.append(written)
        names.append(_distinct(normalize("NFC", written), counts))
        labels.append(ids.setdefault(normalize("NFC", label.strip()), len(ids)))
        splits.append(SPLITS.index(split) if split else -1)
        group = normalize("NFC", group)
        groups.append(shared.setdefault(group, group))
    del counts
    _refuse_all_missing(table.location(numbers[0]), folder, paths[:_CHECKED_PATHS])
    class_names = sorted(ids)
    position = {name: i for i, name in enumerate(class_names)}
    images = Split(
        LazySequence(len(paths), lambda i: _resolve(folder, paths[i])),
        np.array([position[name] for name in ids], "int64")[np.array(labels)],
        names,
        [group or own_group(name) for group, name in zip(groups, names, strict=True)] if any(groups) else (),
    )
    return SourceData(_by_split(table, images, np.array(splits), numbers, class_names), class_names)


def _row_problem(written: str, label: str) -> str:
    if not written.strip():
        return "the path is empty"
    if not label.strip():
        return "the label is empty"
    return f"{quoted(written)} is a URL; download the images first" if _URL.match(written) else ""


def _refuse_other_encodings(location: str, folder: str, written: str, rest: str) -> None:
    """Raise if a row is not UTF-8; the name of an existing file may consist of any bytes."""
    if NOT_UTF8.search(rest) or (NOT_UTF8.search(written) and not os.path.isfile(_resolve(folder, written))):
        raise InputError(
            f"{location}: expected text in UTF-8, or the name of an existing file. Received {quoted(written)} in a "
            f"row with other bytes. {SAVE_AS_UTF8}"
        )


def _distinct(name: str, counts: dict[str, int]) -> str:
    """Return the name, with a number if other rows have the same path."""
    count = counts[name] = counts.get(name, 0) + 1
    return name if count == 1 else _distinct(f"{name}#{count}", counts)


def _resolve(folder: str, written: str) -> str:
    """Return an image's path: as written if that exists, else with slashes or Unicode's other normal form."""
    if written.isascii() and "\\" not in written:
        return os.path.join(folder, os.path.expanduser(written))
    slashed = written.replace("\\", "/")
    forms = [written, slashed, *(normalize(f, text) for text in (written, slashed) for f in ("NFC", "NFD"))]
    paths = [os.path.join(folder, os.path.expanduser(form)) for form in dict.fromkeys(forms)]
    return next(filter(os.path.exists, paths), paths[0])


def _refuse_all_missing(location: str, folder: str, paths: Sequence[str]) -> None:
    """Raise if none of the first paths is a file; a few missing images are only skipped later."""
    resolved = [_resolve(folder, path) for path in paths]
    if not any(map(os.path.isfile, resolved)):
        raise InputError(
            f"{location}: {quoted(paths[0])} means {os.path.abspath(resolved[0])!r}, which is not a file. None "
            f"of the first {len(paths)} paths is a file. Expected paths that are absolute, or relative to the folder "
            f"of the list, {os.path.abspath(folder)!r}. Correct the paths, or move the list."
        )


def _by_split(
    table: Table, images: Split, splits: np.ndarray, numbers: Sequence[int], class_names: Sequence[str]
) -> dict[str, Split]:
    """Return the images of each split; `splits` is -1 for rows without a split."""
    without = np.flatnonzero(splits < 0)
    if len(without) == len(images):
        return {"train": images}
    if len(without):
        raise InputError(
            f"{table.location(numbers[without[0]])}: expected a split, since other rows have one. Received "
            f"{len(without)} rows without a split. Write train, val or test in these, or remove the column."
        )
    parts = {name: images.take(np.flatnonzero(splits == i)) for i, name in enumerate(SPLITS) if i in splits}
    if "train" not in parts:
        raise InputError(
            f"{table.path.name}: expected rows with the split train. Received only: {', '.join(parts)}. Assign some "
            "rows to train, or remove the column."
        )
    trained = np.unique(parts["train"].labels)
    strange = np.flatnonzero(~np.isin(images.labels, trained))
    if len(strange):
        first = int(strange[0])
        raise unknown(
            "class",
            class_names[images.labels[first]],
            [class_names[i] for i in trained],
            hint=f"It is in {table.location(numbers[first])}, for {SPLITS[splits[first]]}, but not in train.",
        )
    return parts
