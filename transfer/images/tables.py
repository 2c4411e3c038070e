"""Lists of images in files: named columns from CSV or Parquet, every bad row told by its place."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError, nearest, one_line
from transfer.common.files import from_cell

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits, in small letters, in lists and as folders."""

SPLITS = tuple(dict.fromkeys(SPLIT_WORDS.values()))

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image"),
    "label": ("label", "class", "category"),
    "split": ("split", "set", "subset"),
    "group": ("group", "patient", "subject"),
}
"""What people call the columns, in small letters."""

UNDECODED = re.compile("[\udc80-\udcff]")
"""Finds bytes that are not UTF-8, as surrogateescape reads them."""

AS_UTF8 = "Save the list as UTF-8; Excel calls that 'CSV UTF-8'."

_PARQUET = (".parquet", ".pq")
_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")  # zip, which .xlsx is too; gzip; .xls
_HEAD = 65_536  # bytes; enough for any line of column names
_BATCH = 65_536  # rows of Parquet at a time
_MOST_NAMED = 5


class Table:
    """A list of images in a file: CSV in UTF-8, separated by commas, semicolons or tabs; or Parquet."""

    def __init__(self, path: Path, *, needed: Collection[str] = ("path", "label")) -> None:
        self.path = path.expanduser()
        self.needed = needed
        self._problems: list[str] = []
        self._count = 0
        try:
            self.is_parquet = _is_parquet(self.path)
        except OSError as error:
            raise self._unreadable(error) from None

    def place(self, number: int) -> str:
        """Name a row: by the line that it starts in, or by its number in Parquet, from 1."""
        return f"{self.path.name}, {'row' if self.is_parquet else 'line'} {number}"

    def add_problem(self, number: int, problem: str) -> None:
        """Note what is wrong with a row; `rows` raises it at its end, together with all others."""
        self._count += 1
        if self._count <= _MOST_NAMED:
            self._problems.append(f"{self.place(number)}: {problem}")

    def rows(self) -> Iterator[tuple[int, str, str, str, str]]:
        """Give number, path, label, split and group of each good row, `""` for what it does not say."""
        number = 0
        for number, (path, label, split, group) in self._parquet() if self.is_parquet else self._csv():
            split = split.strip().lower()
            problem = self._problem(path, label, split, group)
            if problem:
                self.add_problem(number, problem)
            else:
                yield number, path, label, SPLIT_WORDS.get(split, ""), group.strip()
        if self._problems:
            more = f"; and {self._count - _MOST_NAMED} more" if self._count > _MOST_NAMED else ""
            raise InputError(f"{'; '.join(self._problems)}{more}. Mend these rows, or take them away.")
        if not number:
            raise InputError(
                f"{self.path.name}: expected rows of images. Received none, only the columns' names. Add some."
            )

    def _problem(self, path: str, label: str, split: str, group: str) -> str:
        for column, text in (("path", path), ("label", label), ("split", split)):
            if not text and column in self.needed:
                return f"the {column} is empty"
            if "\0" in text:
                return f"a NUL byte in the {column}"
        if "\0" in group:
            return "a NUL byte in the group"
        if split and split not in SPLIT_WORDS:
            near = nearest(split, SPLIT_WORDS) if self._count < _MOST_NAMED else ()  # slow, over many rows
            return f"unknown split {short(split)}, " + (
                f"perhaps {listed(near)}" if near else f"expected one of {listed(SPLITS)}"
            )
        return ""

    def _csv(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Read text; a row's number is the line that it starts in, since quoted fields may go over
        several."""
        start, header = 1, None
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                layout = _layout(file.read(_HEAD))
                file.seek(0)
                reader = csv.reader(file, strict=True, **layout)
                for row in reader:
                    number, start = start, reader.line_num + 1
                    if not row:
                        continue
                    if header is None:
                        header = row
                        pick = itemgetter(*self._find(header))
                    elif len(row) != len(header):
                        self.add_problem(number, f"{len(row)} fields for {len(header)} columns")
                    else:
                        row.append("")  # for the columns that are not there, at -1
                        yield number, tuple(map(from_cell, pick(row)))
        except csv.Error as error:  # there is no telling where the next row starts
            self.add_problem(start, f"{error} (is a quote not closed?)")
        except OSError as error:
            raise self._unreadable(error) from None
        if header is None and not self._problems:
            raise InputError(
                f"{self.path.name}: expected the columns' names in the first line. Received only empty lines."
            )

    def _parquet(self) -> Iterator[tuple[int, Sequence[str]]]:
        import pyarrow as pa
        from pyarrow import parquet

        number = 0
        try:
            with self.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
                schema = file.schema_arrow
                found = [schema.names[i] if i >= 0 else "" for i in self._find(schema.names)]
                wanted = [name for name in found if name]
                for name in wanted:
                    self._refuse_nested(name, schema.field(name).type)
                for batch in file.iter_batches(_BATCH, columns=wanted):
                    blank = [""] * len(batch)
                    columns = [[*map(_text, batch.column(n).to_pylist())] if n else blank for n in found]
                    for row in zip(*columns, strict=True):
                        number += 1
                        yield number, row
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise self._unreadable(error) from None

    def _refuse_nested(self, name: str, kind: Any) -> None:
        from pyarrow import types

        if types.is_nested(kind) or "binary" in str(kind):
            raise InputError(
                f"{self.path.name}: expected text or numbers in the column {name!r}. Received: {str(kind)[:80]}. "
                "Write the images to files, and their paths into the column."
            )

    def _find(self, header: Sequence[str]) -> list[int]:
        """Find the columns: positions of path, label, split and group, -1 for one that is not there."""
        if any("\0" in name or UNDECODED.search(name) for name in header):
            raise InputError(
                f"{self.path.name}: expected the columns' names in UTF-8. Received other bytes. {AS_UTF8}"
            )
        names = [name.strip().lower() for name in header]
        found = []
        for column, words in COLUMNS.items():
            at = [i for i, name in enumerate(names) if name in words]
            if len(at) > 1:
                raise InputError(
                    f"{self.path.name}: expected one column for the {column}. Received "
                    f"{listed([header[i] for i in at])}, which mean the same. Rename all but one."
                )
            if not at and column in self.needed:
                raise self._missing(column, header)
            found += at or [-1]
        return found

    def _missing(self, column: str, header: Sequence[str]) -> InputError:
        first, *others = COLUMNS[column]
        by_name = {name.strip().lower(): name for name in header}
        near = dict.fromkeys(by_name[n] for word in COLUMNS[column] for n in nearest(word, by_name))
        where = "Rename it" if near else "Name the columns"
        if not self.is_parquet:
            where += " in the first line; commas, semicolons or tabs separate columns"
        return InputError(
            f"{self.path.name}: expected a column {first!r} (or {', '.join(others)}). Received the columns: "
            f"{listed([*header], most=12)}. {f'Did you mean {listed([*near])}? ' if near else ''}{where}."
        )

    def _unreadable(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or one_line(error).rstrip(".")
        return InputError(f"Cannot read {str(self.path)!r}: {reason}. Check the file, or make it anew.")


def _is_parquet(path: Path) -> bool:
    """Tell by the first bytes what a file is, and refuse what is neither Parquet nor text."""

    def refusal(what: str, remedy: str) -> InputError:
        return InputError(
            f"Expected a list of images as CSV or Parquet. Received {str(path)!r}, {what}. {remedy}"
        )

    if not path.is_file():
        if path.is_dir():
            raise refusal("a folder", "Name a file in it.")
        if path.exists():
            raise refusal("which is no file", "Save the list to a file.")
        if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # Path makes one slash of two
            raise refusal("a URL", "Download it first.")
        raise refusal("which does not exist", "Check the path.")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise refusal("which is empty", "Make it anew.")
    if head.startswith(b"PAR1") or path.suffix.lower() in _PARQUET:
        return True
    if head.startswith(_ARCHIVES):
        raise refusal("an archive or a file of Excel", "Unpack it, or save it as CSV in UTF-8.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise refusal("in UTF-16", AS_UTF8)
    if len(head) == _HEAD and b"\n" not in head and b"\r" not in head:
        raise refusal("which has no lines", "Put the columns' names and each image into a line of its own.")
    return False


def _layout(head: str) -> dict[str, Any]:
    """Tell from the line of the columns' names what separates the fields."""

    def header(delimiter: str) -> list[str]:
        return next(filter(None, csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)), [])

    def known(delimiter: str) -> tuple[int, int]:
        names = [name.strip().lower() for name in header(delimiter)]
        return sum(name in words for name in names for words in COLUMNS.values()), len(names)

    best = max(",;\t", key=known)
    spaced = all(name.startswith(" ") for name in header(best)[1:])
    return {"delimiter": best, "skipinitialspace": spaced}


def _text(value: object) -> str:
    """Give a cell of Parquet as text: nothing for null and NaN, and 3 for 3.0, as pandas stores whole
    numbers."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def lone_group(name: str) -> str:
    """Make a group for an image whose row names none."""
    return " " + name


def is_lone(group: str) -> bool:
    """Say whether a group is of `lone_group`, whatever the image is called since."""
    return group.startswith(" ")


def listed(names: Sequence[str], *, most: int = _MOST_NAMED) -> str:
    """List names for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(short, names[:most])) + more


def short(text: str) -> str:
    """Quote text for a message."""
    return repr(text if len(text) <= 80 else text[:80] + "...")
