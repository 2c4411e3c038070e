"""Lists of images as CSV or Parquet files, with errors that name the row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from transfer.common.errors import InputError, nearest, one_line
from transfer.common.files import from_cell
from transfer.images.split_words import SPLIT_WORDS, SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN_ALIASES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image"),
    "label": ("label", "class", "category"),
    "split": ("split", "set", "subset"),
    "group": ("group", "patient", "subject"),
}
"""Accepted names of each column, in lower case."""

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Matches the surrogates that stand for bytes that are not UTF-8."""

SAVE_AS_UTF8 = "Save the list as UTF-8; in Excel, choose 'CSV UTF-8'."

_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")  # zip (.xlsx too), gzip, .xls
_HEAD = 65_536  # bytes; enough for the line of column names
_BATCH = 65_536  # rows of Parquet that are read at a time
_MAX_QUOTED = 5


class Table:
    """A list of images: CSV in UTF-8, separated by commas, semicolons or tabs; or Parquet."""

    def __init__(self, path: Path, *, required: Collection[str] = ("path", "label")) -> None:
        self.path = path.expanduser()
        self.required = required
        self._problems: list[str] = []
        self._num_problems = 0
        try:
            self.is_parquet = _is_parquet(self.path)
        except OSError as error:
            raise self._unreadable(error) from None

    def location(self, number: int) -> str:
        """Return the file's name with a row's number, from 1; for CSV, the line where the row starts."""
        return f"{self.path.name}, {'row' if self.is_parquet else 'line'} {number}"

    def add_problem(self, number: int, problem: str) -> None:
        """Record a problem with a row; `rows` raises all problems together at its end."""
        self._num_problems += 1
        if self._num_problems <= _MAX_QUOTED:
            self._problems.append(f"{self.location(number)}: {problem}")

    def rows(self) -> Iterator[tuple[int, str, str, str, str]]:
        """Yield number, path, label, split and group of each valid row, with "" for missing values."""
        number = 0
        for number, (path, label, split, group) in self._parquet() if self.is_parquet else self._csv():
            split = split.strip().lower()
            problem = self._row_problem((path, label, split, group))
            if problem:
                self.add_problem(number, problem)
            else:
                yield number, path, label, SPLIT_WORDS.get(split, ""), group.strip()
        if self._problems:
            hidden = self._num_problems - len(self._problems)
            more = f"; and {hidden} more" if hidden else ""
            raise InputError(f"{'; '.join(self._problems)}{more}. Correct or remove these rows.")
        if not number:
            raise InputError(
                f"{self.path.name}: expected rows of images. Received only column names. Add rows."
            )

    def _row_problem(self, row: tuple[str, str, str, str]) -> str:
        for column, text in zip(COLUMN_ALIASES, row, strict=True):
            if not text and column in self.required:
                return f"the {column} is empty"
            if "\0" in text:
                return f"the {column} contains a NUL byte"
        split = row[2]
        if not split or split in SPLIT_WORDS:
            return ""
        near = nearest(split, SPLIT_WORDS) if self._num_problems < _MAX_QUOTED else ()  # slow for many rows
        hint = f"perhaps {quoted_list(near)}" if near else f"expected one of {quoted_list(SPLITS)}"
        return f"unknown split {quoted(split)}, {hint}"

    # pyarrow.csv is not used: it numbers rows instead of lines, accepts wrong quotes, reads 007 as 7, does not detect
    # the separator, and fails at file names that are not UTF-8.
    def _csv(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield the rows of a CSV file with the line where each starts; quoted fields may span lines."""
        start, header = 1, None
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                delimiter, spaced = _separator(file.read(_HEAD))
                file.seek(0)
                reader = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=spaced)
                for row in reader:
                    number, start = start, reader.line_num + 1
                    if not row:
                        continue
                    if header is None:
                        header = row
                        pick = itemgetter(*self._column_indices(header))
                    elif len(row) != len(header):
                        self.add_problem(number, f"{len(row)} fields for {len(header)} columns")
                    else:
                        row.append("")  # the value of missing columns, whose index is -1
                        yield number, tuple(map(from_cell, pick(row)))
        except csv.Error as error:  # the start of the next row is unknown, so that reading stops
            self.add_problem(start, f"{error} (is a quote not closed?)")
        except OSError as error:
            raise self._unreadable(error) from None
        if header is None and not self._problems:
            raise InputError(
                f"{self.path.name}: expected column names in the first line. Received only empty lines."
            )

    def _parquet(self) -> Iterator[tuple[int, Sequence[str]]]:
        import pyarrow as pa
        from pyarrow import parquet

        number = 0
        try:
            with self.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
                schema = file.schema_arrow
                names = [schema.names[i] if i >= 0 else "" for i in self._column_indices(schema.names)]
                present = [name for name in names if name]
                for name in present:
                    self._refuse_nested(name, schema.field(name).type)
                for batch in file.iter_batches(_BATCH, columns=present):
                    blank = [""] * len(batch)
                    columns = [[*map(_text, batch.column(n).to_pylist())] if n else blank for n in names]
                    for row in zip(*columns, strict=True):
                        number += 1
                        yield number, row
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise self._unreadable(error) from None

    def _refuse_nested(self, name: str, kind: pa.DataType) -> None:
        from pyarrow import types

        if types.is_nested(kind) or "binary" in str(kind):
            raise InputError(
                f"{self.path.name}: expected text or numbers in the column {name!r}. Received: {str(kind)[:80]}. "
                "Write the images to files and their paths to the column."
            )

    def _column_indices(self, header: Sequence[str]) -> list[int]:
        """Return the indices of path, label, split and group; -1 for a missing column."""
        if any("\0" in name or NOT_UTF8.search(name) for name in header):
            raise InputError(
                f"{self.path.name}: expected column names in UTF-8. Received other bytes. {SAVE_AS_UTF8}"
            )
        names = [name.strip().lower() for name in header]
        indices = []
        for column, aliases in COLUMN_ALIASES.items():
            matches = [i for i, name in enumerate(names) if name in aliases]
            if len(matches) > 1:
                raise InputError(
                    f"{self.path.name}: expected one column for the {column}. Received "
                    f"{quoted_list([header[i] for i in matches])}, which mean the same. Rename all but one."
                )
            if not matches and column in self.required:
                raise self._missing_column(column, header)
            indices += matches or [-1]
        return indices

    def _missing_column(self, column: str, header: Sequence[str]) -> InputError:
        first, *others = COLUMN_ALIASES[column]
        by_name = {name.strip().lower(): name for name in header}
        near = dict.fromkeys(by_name[n] for alias in COLUMN_ALIASES[column] for n in nearest(alias, by_name))
        remedy = f"Did you mean {quoted_list([*near])}? Rename it" if near else "Name the columns"
        if not self.is_parquet:
            remedy += " in the first line; commas, semicolons or tabs separate columns"
        return InputError(
            f"{self.path.name}: expected a column {first!r} (or {', '.join(others)}). Received the columns: "
            f"{quoted_list(header, limit=12)}. {remedy}."
        )

    def _unreadable(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or one_line(error).rstrip(".")
        return InputError(f"Cannot read {str(self.path)!r}: {reason}. Check the file, or create it again.")


def _is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet; raise if it is neither Parquet nor text."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD)
    if head.startswith(b"PAR1") or (head and path.suffix.lower() in (".parquet", ".pq")):
        return True
    missing = not path.exists()
    is_url = re.match(r"[A-Za-z][\w+.-]+:/", str(path))  # Path replaces // by /
    endless = len(head) == _HEAD and b"\n" not in head and b"\r" not in head
    for wrong, received, remedy in (
        (path.is_dir(), "a folder", "Name a file in it."),
        (missing and is_url, "a URL", "Download it first."),
        (missing, "which does not exist", "Check the path."),
        (not path.is_file(), "which is not a regular file", "Save the list to a file."),
        (not head, "which is empty", "Create it again."),
        (head.startswith(_ARCHIVES), "an archive or an Excel file", "Unpack it, or save it as CSV in UTF-8."),
        (head.startswith((b"\xff\xfe", b"\xfe\xff")), "in UTF-16", SAVE_AS_UTF8),
        (endless, "which has no line breaks", "Write the column names and each image on separate lines."),
    ):
        if wrong:
            raise InputError(
                f"Expected a list of images as CSV or Parquet. Received {str(path)!r}, {received}. {remedy}"
            )
    return False


def _separator(head: str) -> tuple[str, bool]:
    """Return the separator of the column names, and whether a space follows it."""

    def names(delimiter: str) -> list[str]:
        return next(filter(None, csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)), [])

    # csv.Sniffer only counts characters; the known column names are a better sign.
    def score(delimiter: str) -> tuple[int, int]:
        lowered = [name.strip().lower() for name in names(delimiter)]
        return sum(name in aliases for name in lowered for aliases in COLUMN_ALIASES.values()), len(lowered)

    best = max(",;\t", key=score)
    return best, all(name.startswith(" ") for name in names(best)[1:])


def _text(value: object) -> str:
    """Return a cell of Parquet as text: "" for null and NaN, "3" for 3.0, which pandas writes for 3."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def own_group(name: str) -> str:
    """Return the group of an image whose row has none."""
    return " " + name


def is_own_group(group: str) -> bool:
    """Return whether `own_group` made a group; groups from files have no leading space."""
    return group.startswith(" ")


def quoted_list(names: Sequence[str], *, limit: int = _MAX_QUOTED) -> str:
    """Return the first names in quotes, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(quoted, names[:limit])) + more


def quoted(text: str) -> str:
    """Return a text in quotes, shortened to 80 characters."""
    return repr(text if len(text) <= 80 else text[:80] + "...")
