"""Read a manifest: a CSV or Parquet list of images and their labels."""

from __future__ import annotations

import logging
import os
import re
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.tasks import MULTI, REGRESSION, SINGLE
from transfer.common.text import plural
from transfer.images.cells import merged_numbers
from transfer.images.column_names import quoted, quoted_list, rank
from transfer.images.columns import AUTOMATIC, KINDS, NONE, Given, Unused, notes_on, unused
from transfer.images.image_sequences import LazySequence
from transfer.images.label_forms import label_counts
from transfer.images.label_sets import Labels, label_sets, several_labels
from transfer.images.list_groups import GroupColumn, combine
from transfer.images.list_paths import PathFinder, plain_path
from transfer.images.split_words import SPLITS, split_of
from transfer.images.splitting import SourceData, Split
from transfer.images.tables import NOT_UTF8, SAVE_AS_UTF8, Table, own_group

log = logging.getLogger(__name__)

_CHECKED_PATHS = 1_000
_FEW = 0.01  # fraction of images with several labels that may be mistakes
_NO_LABELS = ("NA", "N/A", "NULL", "null", "NaT", "?", "-", "#REF!", "#VALUE!", "#NAME?")
_URL = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass
class _Rows:
    """The columns of a list, by row."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    paths: list[str] = field(default_factory=list)
    # The paths in Unicode's composed form, made unique.
    names: list[str] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("q"))
    # Positions in `SPLITS`; -1 for rows without a split.
    splits: array[int] = field(default_factory=lambda: array("q"))
    # The cells of each column of groups.
    groups: list[list[str]] = field(default_factory=list)
    # The cell of each label, or the names of its marked columns, in the order of appearance.
    texts: list[Labels] = field(default_factory=list)


def read_manifest(
    path: Path,
    given: Given = AUTOMATIC,
    *,
    task: str = "auto",
    for_test: bool = False,
    known_labels: Collection[str] = (),
) -> SourceData:
    """Return the images, labels, splits and groups of a list, without opening an image."""
    # Test images need neither training images nor groups.
    given = given._replace(group=NONE) if for_test else given
    finder = PathFinder(str(path.expanduser().parent))
    table = Table(path, given=given, task=task, exists=lambda text: bool(finder.find(text)[0]))
    rows = _read_rows(table, finder.folder)
    in_columns = len(table.roles.labels) > 1
    several = label_sets(rows.texts, task, in_columns=in_columns, known=known_labels)
    table.raise_problems(any_labels=several is not None)
    texts = [text[0] for text in rows.texts] if several is None else []
    class_of = _classes(table.path.name, texts, task) if several is None else {}
    sets = [(class_of[text],) for text in texts] if several is None else _merged_sets(several[0])
    class_names = sorted({label for labels in sets for label in labels})
    labels = _label_array(sets, class_names, np.array(rows.labels), several=several is not None)
    groups, left_out = _groups(table, rows)
    files, skipped = _files(table, rows, finder, lambda i: "".join(sets[rows.labels[i]][:1]))
    images = Split(files, labels, rows.names, groups)
    allowed = None if for_test or task == REGRESSION else class_names
    parts = _by_split(table, images, np.array(rows.splits), rows.numbers, allowed, for_test=for_test)
    if skipped:
        parts = {
            split: part.take([i for i, name in enumerate(part.names) if name not in skipped])
            for split, part in parts.items()
        }
    others = [
        *unused(table.columns, table.roles, given),
        *(Unused(name, reason) for name, reason in left_out),
    ]
    notes = [*notes_on(others, _used(table, left_out)), *_missing_labels(class_names)]
    notes += [(note, False) for i, _ in table.roles.splits if (note := table.columns[i].split_note)]
    if several is not None:
        notes.append(_note_on_sets(labels, several[1], task))
    target = table.columns[table.roles.labels[0]].name
    own_task = SINGLE if several is None else MULTI
    return SourceData(parts, class_names, [*skipped.items()], notes=notes, task=own_task, target=target)


def _read_rows(table: Table, folder: str) -> _Rows:
    rows = _Rows()
    ids: dict[Labels, int] = {}
    shared: dict[str, str] = {}  # saves memory: one string per group instead of one per row
    counts: dict[str, int] = {}
    for row in table.all_rows():
        written, label, groups = row.path, row.label, row.groups
        if problem := _row_problem(written):
            table.add_problem(row.number, problem)
            continue
        rest = "".join((label, *groups))
        if not (written.isascii() and rest.isascii()):
            _refuse_other_encodings(table.location(row.number), folder, written, rest)
        rows.numbers.append(row.number)
        rows.paths.append(written)
        rows.names.append(_distinct(normalize("NFC", written), counts))
        cell = (label,) if label else ()
        text = tuple(normalize("NFC", one.strip()) for one in row.marked or cell)
        rows.labels.append(ids.setdefault(text, len(ids)))
        rows.splits.append(SPLITS.index(row.split) if row.split else -1)
        rows.groups = rows.groups or [[] for _ in groups]
        for column, group in zip(rows.groups, groups, strict=True):
            group = normalize("NFC", group)
            column.append(shared.setdefault(group, group))
    rows.texts = [*ids]
    return rows


def _classes(name: str, labels: Sequence[str], task: str) -> dict[str, str]:
    """Return the class of each label; raise if a label combines several classes."""
    if task == REGRESSION:
        return {label: label for label in labels}
    if several := several_labels(labels):
        raise InputError(
            f"{name}: expected one class for each image. Received {plural(len(several), 'label')} of several classes: "
            f"{quoted_list(several)}. Use --task multi for images with several labels. If such a label is one class, "
            "write it with underscores."
        )
    class_of = merged_numbers(labels)
    if merged := [f"{label} is {new}" for label, new in class_of.items() if label != new]:
        log.info("Some labels are the same number: %s.", ", ".join(merged[:5]))
    return class_of


def _merged_sets(sets: Sequence[Labels]) -> list[Labels]:
    """Return sets of labels in which equal numbers are one label."""
    merged = merged_numbers({label for labels in sets for label in labels})
    return [tuple(dict.fromkeys(merged[label] for label in labels)) for labels in sets]


def _label_array(
    sets: Sequence[Labels], class_names: Sequence[str], ids: np.ndarray, *, several: bool
) -> np.ndarray:
    """Return the labels of images as positions in the class names, or as columns of 0 and 1."""
    position = {name: i for i, name in enumerate(class_names)}
    if not several:
        return np.array([position[label] for (label,) in sets], "int64")[ids]
    columns = np.zeros((len(sets), len(class_names)), "int8")
    for row, labels in enumerate(sets):
        columns[row, [position[label] for label in labels]] = 1
    return columns[ids]


def _note_on_sets(labels: np.ndarray, separator: str, task: str) -> tuple[str, bool]:
    """Return a note on images with several labels, and whether it needs action."""
    counts = labels.sum(axis=1)
    several, without = int((counts > 1).sum()), int((counts == 0).sum())
    text = f"Found {plural(several, 'image')} with several labels"
    text += f" and {without:,} without labels: task multi." if without else ": task multi."
    text += f" Cells are separated at {separator!r}." if separator else ""
    # A few such images may be mistakes in a list of single labels.
    few = task == "auto" and several + without < _FEW * len(labels)
    return text + " If these are mistakes, correct them." * few, few


def _missing_labels(class_names: Sequence[str]) -> list[tuple[str, bool]]:
    """Return a note on classes whose names programs write for missing labels, such as "NA" in R."""
    if not (found := [name for name in class_names if name in _NO_LABELS]):
        return []
    text = f"Some class names may stand for missing labels: {quoted_list(found)}."
    return [(f"{text} If so, remove these rows.", True)]


def _groups(table: Table, rows: _Rows) -> tuple[Sequence[str], list[tuple[str, str]]]:
    """Return the group of each row, and the name and reason of each column of groups that is left out."""
    columns = [table.columns[i] for i in table.roles.groups]
    cells = [
        GroupColumn(c.name, rank(c) or 0, own)
        for c, own in zip(columns, rows.groups, strict=True)
        if any(own)
    ]
    if not cells:
        return (), []
    try:
        groups, left_out = combine(cells, chosen=table.given.group is not None)
    except InputError as error:
        raise InputError(f"{table.path.name}: {error}") from None
    return [group or own_group(name) for group, name in zip(groups, rows.names, strict=True)], left_out


def _files(
    table: Table, rows: _Rows, finder: PathFinder, label_of: Callable[[int], str]
) -> tuple[Sequence[str], dict[str, str]]:
    """Return the file of each row, and the reason for each name that means several files."""
    paths, folder = rows.paths, finder.folder
    sample = paths[:: max(1, len(paths) // _CHECKED_PATHS)]
    there = [os.path.isfile(plain_path(folder, path)) for path in sample]
    if all(there):  # no list of all files is needed, which saves memory
        return LazySequence(len(paths), lambda i: plain_path(folder, paths[i])), {}
    if not any(there) and finder.move(sample) and (finder.prefix or finder.base != folder):
        log.info(
            "No path in %s exists as written. Using the files below %r%s.",
            table.path.name,
            os.path.abspath(finder.base),
            f", without {os.path.join(*finder.prefix)!r} at the beginning" if finder.prefix else "",
        )
    moved: dict[int, str] = {}
    skipped: dict[str, str] = {}
    num_found = 0
    for i, path in enumerate(paths):
        split = SPLITS[rows.splits[i]] if rows.splits[i] >= 0 else split_of(table.path.stem)
        file, problem = finder.find(path, label_of(i), split)
        num_found += bool(file)
        if problem:
            skipped[rows.names[i]] = problem
        elif file and file != plain_path(folder, path):
            moved[i] = file
    if not num_found:
        raise _all_missing(table.location(rows.numbers[0]), finder, rows, [*skipped.values()])
    return LazySequence(len(paths), lambda i: moved.get(i) or plain_path(folder, paths[i])), skipped


def _all_missing(location: str, finder: PathFinder, rows: _Rows, problems: Sequence[str]) -> InputError:
    """Return the error for a list without a single file; a few missing images are only skipped later."""
    folder = finder.folder
    file = plain_path(folder, rows.paths[0])
    there = f" The folder has images such as {quoted_list(names)}." if (names := finder.examples()) else ""
    return InputError(
        f"{location}: {quoted(rows.paths[0])} means {os.path.abspath(file)!r}, which is not a file. "
        f"None of the {plural(len(rows.paths), 'path')} is a file{''.join(f' ({one})' for one in problems[:1])}. "
        f"Expected paths that are absolute, or relative to the folder of the list, {os.path.abspath(folder)!r}.{there} "
        "Correct the paths, or move the list."
    )


def _used(table: Table, left_out: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the names of the columns that are used, by kind."""
    roles, others = table.roles, [name for name, _ in left_out]
    indices = ((roles.path,), roles.labels, [i for i, _ in roles.splits], roles.groups)
    names = [[table.columns[i].name for i in own] for own in indices]
    return {
        kind: [name for name in own if name not in others]
        for kind, own in zip(KINDS, names, strict=True)
        if own
    }


def _row_problem(written: str) -> str:
    if not written.strip():
        return "the path is empty"
    return f"{quoted(written)} is a URL; download the images first" if _URL.match(written) else ""


def _refuse_other_encodings(location: str, folder: str, written: str, rest: str) -> None:
    """Raise if a row is not UTF-8; the name of an existing file may consist of any bytes."""
    if NOT_UTF8.search(rest) or (
        NOT_UTF8.search(written) and not os.path.isfile(plain_path(folder, written))
    ):
        raise InputError(
            f"{location}: expected text in UTF-8, or the name of an existing file. Received {quoted(written)} in a "
            f"row with other bytes. {SAVE_AS_UTF8}"
        )


def _distinct(name: str, counts: dict[str, int]) -> str:
    """Return the name, with a number if other rows have the same path."""
    count = counts[name] = counts.get(name, 0) + 1
    return name if count == 1 else _distinct(f"{name}#{count}", counts)


def _by_split(
    table: Table,
    images: Split,
    splits: np.ndarray,
    numbers: Sequence[int],
    class_names: Sequence[str] | None,
    *,
    for_test: bool,
) -> dict[str, Split]:
    """Return the images of each split, -1 for rows without one; raise for class names that train does not have."""
    without = np.flatnonzero(splits < 0)
    if len(without) == len(images):
        return {"train": images}
    if len(without):
        raise InputError(
            f"{table.location(numbers[without[0]])}: expected a split, since other rows have one. Received "
            f"{len(without)} rows without a split. Write train, val or test in these, or remove the column."
        )
    parts = {name: images.take(np.flatnonzero(splits == i)) for i, name in enumerate(SPLITS) if i in splits}
    if for_test:
        return parts
    if "train" not in parts:
        raise InputError(
            f"{table.path.name}: expected rows with the split train. Received only: {', '.join(parts)}. Assign some "
            "rows to train, or remove the column."
        )
    if class_names is not None:
        _refuse_strange(table, images.labels, parts["train"].labels, splits, numbers, class_names)
    return parts


def _refuse_strange(
    table: Table,
    labels: np.ndarray,
    trained: np.ndarray,
    splits: np.ndarray,
    numbers: Sequence[int],
    class_names: Sequence[str],
) -> None:
    """Raise if an image has a class or a label that no training image has."""
    known = label_counts(trained, len(class_names)) > 0
    strange = labels[:, ~known].any(axis=1) if labels.ndim == 2 else ~known[labels]
    if strange.any():
        first = int(strange.argmax())
        own = np.flatnonzero(labels[first] * ~known)[0] if labels.ndim == 2 else labels[first]
        raise unknown(
            "class",
            class_names[own],
            [name for name, is_known in zip(class_names, known, strict=True) if is_known],
            hint=f"It is in {table.location(numbers[first])}, for {SPLITS[splits[first]]}, but not in train.",
        )
