"""Manifests as a source: a list of images and their labels in a file."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.images.splitting import SourceData, Split
from transfer.images.tables import AS_UTF8, SPLITS, UNDECODED, Table, lone_group, short

_LOOKED_FOR = 1_000
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def read_manifest(path: Path) -> SourceData:
    """Read a list of images and their labels; no image is opened yet."""
    table = Table(path)
    folder = str(table.path.parent)
    written: list[str] = []
    names: list[str] = []
    groups: list[str] = []
    numbers, labels, splits = array("q"), array("q"), array("q")
    ids: dict[str, int] = {}
    known: dict[str, str] = {"": ""}  # one string per group, however many rows
    taken: dict[str, int] = {}
    for number, where, label, split, group in table.rows():
        problem = _problem(where, label)
        if problem:
            table.add_problem(number, problem)
            continue
        if not (where + label + group).isascii():
            _refuse_other_encodings(table.place(number), folder, where, label + group)
        numbers.append(number)
        written.append(where)
        names.append(_distinct(normalize("NFC", where), taken))
        labels.append(ids.setdefault(normalize("NFC", label.strip()), len(ids)))
        splits.append(SPLITS.index(split) if split else -1)
        group = normalize("NFC", group)
        groups.append(known.setdefault(group, group))
    del taken
    _refuse_all_missing(table.place(numbers[0]), folder, written[:_LOOKED_FOR])
    class_names = sorted(ids)
    place = {name: i for i, name in enumerate(class_names)}
    whole = Split(
        _Files(folder, written),
        np.array([place[name] for name in ids], "int64")[np.array(labels)],
        names,
        [group or lone_group(name) for group, name in zip(groups, names, strict=True)] if any(groups) else (),
    )
    return SourceData(_parts(table, whole, np.array(splits), numbers, class_names), class_names)


def _problem(where: str, label: str) -> str:
    if not where.strip():
        return "the path is empty"
    if not label.strip():
        return "the label is empty"
    if _URL.match(where):
        return f"{short(where)} is a URL; download the images first"
    return ""


def _refuse_other_encodings(place: str, folder: str, where: str, rest: str) -> None:
    """The name of a file may be any bytes, but where there is no such file, the list is not UTF-8."""
    if UNDECODED.search(rest) or (UNDECODED.search(where) and not os.path.isfile(_resolved(folder, where))):
        raise InputError(
            f"{place}: expected text in UTF-8, or the name of a file that exists. Received {short(where)} with "
            f"other bytes in its row. {AS_UTF8}"
        )


def _distinct(name: str, taken: dict[str, int]) -> str:
    """Keep rows of the same path apart."""
    times = taken[name] = taken.get(name, 0) + 1
    return name if times == 1 else _distinct(f"{name}#{times}", taken)


class _Files(Sequence[str]):
    """Where the paths of a manifest lead, found out when one is asked for."""

    def __init__(self, folder: str, written: list[str]) -> None:
        self.folder, self.written = folder, written

    def __len__(self) -> int:
        return len(self.written)

    def __getitem__(self, i: Any) -> Any:
        return _resolved(self.folder, self.written[i])


def _resolved(folder: str, written: str) -> str:
    """Find where a path leads: as written if that exists, else as another system would write it."""
    if written.isascii() and "\\" not in written:
        return os.path.join(folder, os.path.expanduser(written))
    slashed = written.replace("\\", "/")
    forms = [
        written,
        slashed,
        *(normalize(form, text) for text in (written, slashed) for form in ("NFC", "NFD")),
    ]
    paths = [os.path.join(folder, os.path.expanduser(form)) for form in dict.fromkeys(forms)]
    return next(filter(os.path.exists, paths), paths[0])


def _refuse_all_missing(place: str, folder: str, written: list[str]) -> None:
    """Single missing images are skipped later, but a whole list that leads nowhere is one mistake."""
    if any(os.path.isfile(_resolved(folder, one)) for one in written):
        return
    raise InputError(
        f"{place}: {short(written[0])} leads to {os.path.abspath(_resolved(folder, written[0]))!r}, which is not a "
        f"file; nor are any of the first {len(written)}. Expected paths that are absolute, or relative to the "
        f"folder of the manifest, {os.path.abspath(folder)!r}. Mend the paths, or move the manifest."
    )


def _parts(
    table: Table, whole: Split, splits: np.ndarray, numbers: Sequence[int], class_names: Sequence[str]
) -> dict[str, Split]:
    """Take the splits apart; rows that name none are at -1, and then all must be."""
    unsaid = np.flatnonzero(splits < 0)
    if len(unsaid) == len(whole):
        return {"train": whole}
    if len(unsaid):
        raise InputError(
            f"{table.place(numbers[unsaid[0]])}: expected a split, since other rows have one. Received "
            f"{len(unsaid)} rows without. Fill in train, val or test, or take the column away."
        )
    parts = {name: whole.take(np.flatnonzero(splits == i)) for i, name in enumerate(SPLITS) if i in splits}
    if "train" not in parts:
        raise InputError(
            f"{table.path.name}: expected rows of the split train. Received only: {', '.join(parts)}. Name some "
            "train, or take the column away."
        )
    trained = np.unique(parts["train"].labels)
    strange = np.flatnonzero(~np.isin(whole.labels, trained))
    if len(strange):
        first = int(strange[0])
        raise unknown(
            "class",
            class_names[whole.labels[first]],
            [class_names[i] for i in trained],
            hint=f"It is in {table.place(numbers[first])}, for {SPLITS[splits[first]]}, but no row of train has it.",
        )
    return parts
