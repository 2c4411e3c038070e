"""Lists of pictures in a file: manifests as a source, and the split as a file, written and given back."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from transfer.errors import InputError, nearest, unknown
from transfer.splitting import Split

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image"),
    "label": ("label", "class", "category"),
    "split": ("split", "set", "subset"),
    "group": ("group", "patient", "subject"),
}
_MEANINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_PARQUET = (".parquet", ".pq")
_HEAD = 65_536  # enough for any line of column names
_LOOKED_FOR = 1_000
_MOST_SHOWN = 5
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8
_AS_UTF8 = "Save it as UTF-8; Excel calls that 'CSV UTF-8'."


def read_manifest(path: Path) -> tuple[dict[str, Split], list[str]]:
    """Read a list of pictures and their labels; no picture is opened yet.

    The first line names the columns: `path` (or `file`, `filename`, `file_name`, `filepath`, `image`) and
    `label` (`class`, `category`); perhaps `split` (`set`, `subset`) with `train`, `val` and `test` in the
    spellings that people use; perhaps `group` (`patient`, `subject`), whose pictures are never separated.
    Letter case and spaces around these do not matter, further columns neither. Paths are absolute or relative to
    the folder of the manifest, and may lead out of it: trust a manifest as you trust a program.

    Args:
        path: CSV in UTF-8, separated by commas, semicolons or tabs; or Parquet.

    Returns:
        The pictures per split, `"train"` alone where there is no column for it; and the class names, sorted.
        Pictures are called by their paths as written, with `#2` behind the second of the same path. Those
        that do not exist are in it too: the check of files reports them.

    Raises:
        InputError: it cannot be read, lacks columns or rows, has rows that are wrong (five are named), a
            class that is not in train, or none of its first pictures exists.

    Example:
        >>> Path("b.png").touch()
        >>> _ = Path("photos.csv").write_text("path,label\\nb.png,cat\\nc.png,dog\\n")
        >>> parts, names = read_manifest(Path("photos.csv"))
        >>> len(parts["train"]), names
        (2, ['cat', 'dog'])
    """
    table = _Table(path, exact=False)
    parts: dict[str, _Part] = {}
    labels: dict[str, int] = {}
    groups: dict[str, str] = {}
    taken: dict[str, int] = {}
    early: list[tuple[int, str]] = []
    for number, written, label, split, group in table:
        part = parts.get(split) or parts.setdefault(split, _Part(number))
        label_id = labels.setdefault(label, len(labels))
        part.first.setdefault(label_id, number)
        part.written.append(written)
        part.names.append(_distinct(written, taken))
        part.labels.append(label_id)
        part.groups.append(groups.setdefault(group, group))  # one string per group, however many rows
        if len(early) < _LOOKED_FOR:
            early.append((number, written))
    parts = _with_train(table, parts)
    _refuse_all_missing(table, early)
    names = _class_names(table, parts, list(labels))
    place = {name: i for i, name in enumerate(names)}
    places = np.array([place.get(label, -1) for label in labels], "int64")
    grouped = any(groups)
    folder = str(table.path.parent)
    return {
        split: parts[split].as_split(folder, places, grouped) for split in SPLITS if split in parts
    }, names


@dataclass
class _Part:
    """The rows of one split, column by column, since there may be a million of them."""

    number: int  # of its first row in the file
    written: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("q"))
    groups: list[str] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)  # the first row of each label

    def as_split(self, folder: str, places: np.ndarray, grouped: bool) -> Split:
        groups = [g or _alone(name) for g, name in zip(self.groups, self.names, strict=True)]
        labels = places[np.frombuffer(self.labels, "int64")]
        return Split(_Files(folder, self.written), labels, self.names, groups if grouped else ())


def _distinct(name: str, taken: dict[str, int]) -> str:
    """Keep rows of the same path apart.

    They are not merged: a picture under two labels or in two splits is a mistake in the data, which the
    check for copies can only report where both are still there.
    """
    if name in taken:
        number = taken[name] + 1
        while f"{name}#{number}" in taken:
            number += 1
        taken[name] = number
        name = f"{name}#{number}"
    taken[name] = 1
    return name


def _alone(name: str) -> str:
    """Make a group for one picture; that of no other, since groups that are read never start with a space."""
    return " " + name


class _Files(Sequence[str]):
    """Where the paths of a manifest lead, found out when one is asked for."""

    def __init__(self, folder: str, written: list[str]) -> None:
        self.folder, self.written = folder, written

    def __len__(self) -> int:
        return len(self.written)

    def __getitem__(self, i: Any) -> Any:
        return _resolved(self.folder, self.written[i])


def _resolved(folder: str, written: str) -> str:
    path = os.path.join(folder, os.path.expanduser(written))
    if "\\" in written and not os.path.exists(path):  # from Windows; elsewhere a name may hold a backslash
        other = os.path.join(folder, os.path.expanduser(written.replace("\\", "/")))
        return other if os.path.exists(other) else path
    return path


def _with_train(table: _Table, parts: dict[str, _Part]) -> dict[str, _Part]:
    """Settle which split each row is in; the rows that do not say are under `""`."""
    if set(parts) == {""}:
        return {"train": parts[""]}
    if "" in parts:
        raise InputError(
            f"{table.place(parts[''].number)}: expected a split, since other rows have one. Received "
            f"{len(parts[''].names)} rows without. Fill in train, val or test, or take the column away."
        )
    if "train" not in parts:
        raise InputError(
            f"{table.path.name}: expected rows of the split train. Received only: {', '.join(sorted(parts))}."
        )
    return parts


def _refuse_all_missing(table: _Table, early: list[tuple[int, str]]) -> None:
    """Single missing pictures are skipped later, but a whole list that leads nowhere is one mistake."""
    folder = str(table.path.parent)
    if any(os.path.isfile(_resolved(folder, written)) for _, written in early):
        return
    number, written = early[0]
    raise InputError(
        f"{table.place(number)}: {written!r} leads to {os.path.abspath(_resolved(folder, written))!r}, which is "
        f"not a file; nor are any of the first {len(early)}. Paths must be absolute, or relative to the folder of "
        f"the manifest, {os.path.abspath(folder)!r}. Mend the paths, or move the manifest."
    )


def _class_names(table: _Table, parts: dict[str, _Part], labels: list[str]) -> list[str]:
    names = sorted(labels[i] for i in parts["train"].first)
    for split, part in parts.items():
        for i, number in part.first.items():
            if i not in parts["train"].first:
                hint = f"It is in {table.place(number)}, for {split}, but no row of train has it."
                raise unknown("class", labels[i], names, hint=hint)
    return names


def write_split(path: Path, splits: Mapping[str, Split], class_names: Sequence[str]) -> None:
    """Write which picture is in which split, as CSV; `read_split` and `apply_split` give it back.

    In the folder that the names are relative to, the file is a manifest as well.

    Args:
        path: the file; it appears at once and complete, and replaces an older one.
        splits: `"train"`, `"val"` and `"test"`, or some of them; the file has their order.
        class_names: in the order of the labels.

    Raises:
        InputError: two pictures have the same name, or the file cannot be written.

    Example:
        >>> train = Split([b"", b""], np.array([1, 0]), ["b.png", "a.png"])
        >>> write_split(Path("split.csv"), {"train": train}, ["cat", "dog"])
        >>> read_split(Path("split.csv"))
        [('b.png', 'dog', 'train'), ('a.png', 'cat', 'train')]
    """
    for split in splits:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
    parts = {split: splits[split] for split in SPLITS if split in splits}
    _numbered(_joined(parts).names, lambda i: f"picture {i + 1} of the data")
    grouped = any(len(part.groups) for part in parts.values())
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write("path,label,split,group\n" if grouped else "path,label,split\n")
            for split, part in parts.items():
                labels = [class_names[i] for i in part.labels.tolist()]
                rows: Iterable[tuple[str, ...]] = zip(part.names, labels, strict=True)
                if grouped:  # a picture that is alone has no group to name
                    groups = (
                        "" if g == _alone(n) else g for g, n in zip(_groups(part), part.names, strict=True)
                    )
                    rows = ((n, label, split, g) for (n, label), g in zip(rows, groups, strict=True))
                else:
                    rows = ((n, label, split) for n, label in rows)
                file.writelines(",".join(map(_quoted, row)) + "\n" for row in rows)
        os.replace(partial, path)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Cannot write the split to '{path}': {reason}.") from None
    finally:
        partial.unlink(missing_ok=True)


def _quoted(text: str) -> str:
    """Quote a field where it needs it; csv.writer with plain line ends does not quote a lone carriage return."""
    return '"' + text.replace('"', '""') + '"' if re.search('[,;\t"\r\n]|^ | $', text) else text


def _groups(part: Split) -> Sequence[str]:
    return part.groups if len(part.groups) else [_alone(name) for name in part.names]


def read_split(path: Path) -> list[tuple[str, str, str]]:
    """Read the file of a split.

    Args:
        path: as `write_split` writes it, or any manifest with a column for the split.

    Returns:
        Rows of name, label and split (`"train"`, `"val"` or `"test"`), in the order of the file.

    Raises:
        InputError: it cannot be read, lacks columns or rows, has rows that are wrong (five are named), or a
            picture twice.

    Example:
        >>> _ = Path("split.csv").write_text("path,label,split\\na.png,cat,train\\n")
        >>> read_split(Path("split.csv"))
        [('a.png', 'cat', 'train')]
    """
    table = _Table(path, exact=True)
    rows, numbers = [], array("q")
    for number, name, label, split, _ in table:
        rows.append((name, label, split))
        numbers.append(number)
    _numbered((name for name, _, _ in rows), lambda i: table.place(numbers[i]))
    return rows


def apply_split(
    rows: Sequence[tuple[str, str, str]],
    parts: Mapping[str, Split],
    class_names: Sequence[str],
    *,
    skipped_names: Collection[str] = (),
) -> dict[str, Split]:
    """Split pictures as a file says.

    Args:
        rows: of name, label and split, as `read_split` gives them.
        parts: the pictures; which split they were in does not matter.
        class_names: in the order of their labels.
        skipped_names: pictures that could not be read; rows of these are passed over.

    Returns:
        `"train"`, `"val"` and `"test"`, each in the order of the rows. Pictures that no row names are left out.

    Raises:
        InputError: rows and pictures do not fit: a class or a picture that the data lack, another label than
            the data's, a picture twice, or nothing to train on.

    Example:
        >>> data = Split([b"1", b"2", b"3"], np.array([0, 1, 1]), ["a.png", "b.png", "c.png"])
        >>> rows = [("c.png", "dog", "train"), ("a.png", "cat", "train"), ("b.png", "dog", "test")]
        >>> {split: part.names for split, part in apply_split(rows, {"train": data}, ["cat", "dog"]).items()}
        {'train': ['c.png', 'a.png'], 'val': [], 'test': ['b.png']}
    """
    data = _joined(parts)
    at = _numbered(data.names, lambda i: f"picture {i + 1} of the data")
    _numbered((name for name, _, _ in rows), lambda i: f"row {i + 1} of the split")
    skipped = set(skipped_names) - at.keys()
    kept = [row for row in rows if row[0] not in skipped]
    _refuse_misfits(rows, kept, at, data.labels, class_names)
    picked: dict[str, list[int]] = {split: [] for split in SPLITS}
    for name, _, split in kept:
        picked[split].append(at[name])
    if not picked["train"]:
        raise InputError(
            f"Expected pictures for train in the file of the split. Received {len(rows)} rows, {len(kept)} of them "
            "of pictures that can be read, and none of these is for train."
        )
    if len(kept) < len(rows):
        log.warning("The split names %d pictures that cannot be read: left out.", len(rows) - len(kept))
    if len(kept) < len(data):
        log.warning(
            "The split does not name %d of the %d pictures: left out.", len(data) - len(kept), len(data)
        )
    return {split: data.take(positions) for split, positions in picked.items()}


def _refuse_misfits(
    rows: Sequence[tuple[str, str, str]],
    kept: Sequence[tuple[str, str, str]],
    at: Mapping[str, int],
    labels: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Refuse a split that was made of other data, or of data that changed since."""
    known = set(class_names)
    for _, label, split in rows:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if label not in known:
            raise unknown("class", label, class_names, hint="It is in the file of the split.")
    lost = [name for name, _, _ in kept if name not in at]
    if lost:
        named = {name for name, _, _ in rows}
        near = nearest(lost[0], islice((name for name in at if name not in named), 5_000))
        raise InputError(
            "Expected pictures of these data in the file of the split. Received "
            f"{len(lost)} of {len(rows)} that the data lack: {_listed(lost)}. "
            + (f"Did you mean {_listed(near)}? " if near else "")
            + "Give the data that the split was made of."
        )
    other = [
        (n, label, class_names[labels[at[n]]]) for n, label, _ in kept if label != class_names[labels[at[n]]]
    ]
    if other:
        shown = "; ".join(
            f"{n!r} is {in_file!r} there and {in_data!r} here" for n, in_file, in_data in other[:5]
        )
        raise InputError(
            "Expected the labels of these data in the file of the split. Received "
            f"{len(other)} of {len(rows)} that differ: {shown}. Mend the file or the data."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(repr(name) for name in names[:_MOST_SHOWN]) + more


def _numbered(names: Iterable[str], place: Callable[[int], str]) -> dict[str, int]:
    """Give the position of each name; none may be there twice, or its picture could be in two splits."""
    at: dict[str, int] = {}
    for i, name in enumerate(names):
        if at.setdefault(name, i) != i:
            raise InputError(
                f"Expected every picture once. Received {name!r} twice: {place(at[name])} and {place(i)}. Take "
                "one away."
            )
    return at


def _joined(parts: Mapping[str, Split]) -> Split:
    """Put parts one behind the other."""
    each = list(parts.values())
    return replace(
        each[0],
        pictures=_Joined(each),
        labels=np.concatenate([part.labels for part in each]),
        names=[name for part in each for name in part.names],
        groups=[g for part in each for g in _groups(part)] if any(len(part.groups) for part in each) else (),
    )


class _Joined(Sequence[Any]):
    """The pictures of several splits, each read when it is asked for."""

    def __init__(self, parts: Sequence[Split]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i: Any) -> Any:
        part = bisect_right(self.starts, i) - 1
        return self.parts[part].pictures[i - self.starts[part]]


class _Table:
    """A file with named columns; iterating gives its rows, checked, and refuses it at the end for bad ones.

    A row is its number, path, label, split and group, `""` for what it does not say. Where `exact`, as names
    of pictures need it, paths and labels are kept as they are, bytes that are not UTF-8 included (as
    surrogates), and the split is needed.
    """

    def __init__(self, path: Path, *, exact: bool) -> None:
        self.path, self.exact = path.expanduser(), exact
        self.problems: list[str] = []
        self.count = 0  # of problems
        self.needed = ("path", "label", "split") if exact else ("path", "label")
        try:
            self.is_parquet = _is_parquet(self.path)
        except OSError as error:
            raise self.refused(error) from None

    def place(self, number: int) -> str:
        return f"{self.path.name}, {'row' if self.is_parquet else 'line'} {number}"

    def refused(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        return InputError(f"Cannot read '{self.path}': {reason}. Check the file, or make it anew.")

    def __iter__(self) -> Iterator[tuple[int, str, str, str, str]]:
        number = 0
        try:
            for number, (name, label, split, group) in self._parquet() if self.is_parquet else self._csv():
                label = label if self.exact else label.strip()
                problem = self._problem(name, label, split, group)
                if problem:
                    self._add(number, problem)
                    continue
                yield number, name, label, _MEANINGS.get(split.strip().lower(), ""), group.strip()
        except OSError as error:
            raise self.refused(error) from None
        if self.problems:
            more = f"; and {self.count - _MOST_SHOWN} more" if self.count > _MOST_SHOWN else ""
            raise InputError(f"{'; '.join(self.problems)}{more}. Mend these rows, or take them away.")
        if not number:
            raise InputError(
                f"{self.path.name}: expected rows of pictures. Received none, only the columns' names."
            )

    def _add(self, number: int, problem: str) -> None:
        self.count += 1
        if self.count <= _MOST_SHOWN:
            self.problems.append(f"{self.place(number)}: {problem}")

    def _problem(self, name: str, label: str, split: str, group: str) -> str:
        text = f"{name}{label}{split}{group}"
        if not name or not (self.exact or name.strip()):
            return "the path is empty"
        if not label:
            return "the label is empty"
        if "\0" in text:
            return "a NUL byte"
        if not self.exact and not text.isascii() and _UNDECODED.search(text):
            # The name of a file may be any bytes, but more often the list is not UTF-8.
            here = os.path.isfile(_resolved(str(self.path.parent), name))
            if not here or _UNDECODED.search(label + split + group):
                return f"{_short(name)} with label {_short(label)} is not UTF-8"
        if not self.exact and _URL.match(name):
            return f"{_short(name)} is a URL; download the pictures first"
        if split.strip().lower() not in _MEANINGS and (self.exact or split.strip()):
            return str(unknown("split", split, _MEANINGS)) if split.strip() else "the split is empty"
        return ""

    def _csv(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Read text; a row's number is the line that it starts in, since quoted fields may go over several."""
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            layout = _layout(file.read(_HEAD))
            file.seek(0)
            rows = csv.reader(file, strict=True, **layout)
            start, header = 1, None
            try:
                for row in rows:
                    number, start = start, rows.line_num + 1
                    if not row:
                        continue
                    if header is None:
                        header = row
                        pick = itemgetter(*self._find(row))
                    elif len(row) != len(header):
                        self._add(number, f"{len(row)} fields, where the columns are {len(header)}")
                    else:
                        row.append("")  # for the columns that are not there, at -1
                        yield number, pick(row)
            except csv.Error as error:
                self._add(start, f"{error}; is a quote not closed?")
        if header is None and not self.problems:
            raise InputError(
                f"{self.path.name}: expected a first line with the columns' names. Received none."
            )

    def _parquet(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        import pyarrow as pa
        from pyarrow import parquet

        number = 0
        try:
            with parquet.ParquetFile(self.path) as file:
                schema = file.schema_arrow
                found = [schema.names[i] if i >= 0 else "" for i in self._find(schema.names)]
                for name in filter(None, found):
                    self._refuse_nested(name, schema.field(name).type)
                for batch in file.iter_batches(_HEAD, columns=[name for name in found if name]):
                    blank = [""] * len(batch)
                    columns = [[*map(_text, batch.column(n).to_pylist())] if n else blank for n in found]
                    for row in zip(*columns, strict=True):
                        number += 1
                        yield number, row
        except InputError:
            raise
        except (pa.ArrowException, ValueError) as error:  # ValueError: text that is not UTF-8
            raise self.refused(error) from None

    def _refuse_nested(self, name: str, kind: Any) -> None:
        from pyarrow import types

        plain = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_nested(plain) or "binary" in str(plain):
            raise InputError(
                f"{self.path.name}: expected text or numbers in the column {name!r}. Received: {str(kind)[:80]}. "
                "Write the pictures to files, and their paths into the column."
            )

    def _find(self, header: Sequence[str]) -> list[int]:
        """Find the columns: positions of path, label, split and group, -1 for one that is not there."""
        if any("\0" in name or _UNDECODED.search(name) for name in header):
            raise InputError(
                f"{self.path.name}, line 1: expected text in UTF-8. Received other bytes. {_AS_UTF8}"
            )
        names = [name.strip().lower() for name in header]
        found = []
        for meaning, words in _COLUMNS.items():
            at = [i for i, name in enumerate(names) if name in words]
            if len(at) > 1:
                raise InputError(
                    f"{self.path.name}: expected one column for the {meaning}. Received "
                    f"{' and '.join(repr(header[i]) for i in at)}, which mean the same. Rename one."
                )
            if not at and meaning in self.needed:
                near = sorted({n for word in words for n in nearest(word, names)})
                raise InputError(
                    f"{self.path.name}: expected a column {meaning!r} (or {', '.join(words[1:])}). Received the "
                    f"columns: {', '.join(map(_short, header[:12]))}{', ...' if len(header) > 12 else ''}. "
                    + (f"Did you mean {_listed(near)}? " if near else "")
                    + "Name the columns in the first line."
                )
            found += at or [-1]
        return found


def _is_parquet(path: Path) -> bool:
    """Tell by the first bytes what a file is, and refuse what is neither Parquet nor text."""
    wanted = "Expected a list of pictures as CSV or Parquet."
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a file" if path.exists() else "which does not exist"
        raise InputError(f"{wanted} Received '{path}', {what}. Check the path.")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise InputError(f"{wanted} Received '{path}', which is empty.")
    if head.startswith(b"PAR1") or path.suffix.lower() in _PARQUET:
        return True
    if head.startswith(b"PK\3\4"):
        raise InputError(
            f"{wanted} Received '{path}', a zip archive or a file of Excel. Save it as CSV in UTF-8."
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{wanted} Received '{path}' in UTF-16. {_AS_UTF8}")
    if len(head) == _HEAD and b"\n" not in head and b"\r" not in head:
        raise InputError(f"{wanted} Received '{path}', which has no lines.")
    return False


def _layout(head: str) -> dict[str, Any]:
    """Tell from the line of the columns' names what separates the fields."""

    def header(delimiter: str) -> list[str]:
        rows = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
        return next(filter(None, rows), [])

    def known(delimiter: str) -> tuple[int, int]:
        names = [name.strip().lower() for name in header(delimiter)]
        return sum(name in words for name in names for words in _COLUMNS.values()), len(names)

    best = max(",;\t", key=known)
    spaced = all(name.startswith(" ") for name in header(best)[1:])
    return {"delimiter": best, "skipinitialspace": spaced}


def _text(value: object) -> str:
    """Give a cell of Parquet as text: nothing for null and NaN, and 3 for 3.0, as pandas stores whole numbers."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
