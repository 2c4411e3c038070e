"""Lists of images as CSV or Parquet files, with errors that name the row."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from transfer.common.errors import InputError, nearest, one_line
from transfer.common.files import from_cell
from transfer.images.cells import flag_in, is_nan, known, split_by_flags, split_in
from transfer.images.column_names import (
    MAX_SHOWN,
    Column,
    label_columns,
    path_columns,
    quoted,
    quoted_list,
    rank,
)
from transfer.images.columns import AUTOMATIC, Given, Roles, choose
from transfer.images.decoding import EXTENSIONS
from transfer.images.split_words import SPLIT_WORDS, SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Matches the surrogates that stand for bytes that are not UTF-8."""

SAVE_AS_UTF8 = "Save the list as UTF-8; in Excel, choose 'CSV UTF-8'."

_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")  # zip (.xlsx too), gzip, .xls
_HEAD = 65_536  # bytes; enough for the line of column names
_BATCH = 65_536  # rows of Parquet that are read at a time


class Row(NamedTuple):
    """A row of a list, with "" for missing values."""

    number: int
    path: str
    label: str
    split: str
    groups: tuple[str, ...]
    # Names of the marked columns, if the labels are columns of 0 and 1.
    marked: tuple[str, ...] = ()
    # Why the row does not have exactly one label; "" if it has one.
    label_problem: str = ""


class _Problems:
    """The first problems with rows, and their number."""

    def __init__(self) -> None:
        self.first: list[tuple[int, str]] = []
        self.count = 0

    def add(self, number: int, problem: str) -> None:
        self.count += 1
        if self.count <= MAX_SHOWN:
            self.first.append((number, problem))


class Table:
    """A list of images: CSV, separated by commas, semicolons, tabs or bars; or Parquet."""

    def __init__(
        self,
        path: Path,
        *,
        given: Given = AUTOMATIC,
        task: str = "auto",
        required: Collection[str] = ("path", "label"),
        exists: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self.path = path.expanduser()
        self.given = given
        self.task = task
        self.required = required
        self._exists = exists
        self._problems = _Problems()
        # Rows without a label, or with several: several labels per image allow both.
        self._label_problems = _Problems()
        self._num_rows = 0
        # The used columns by kind, set when `rows` begins.
        self.columns: list[Column] = []
        self.roles = Roles(-1, (), (), ())
        try:
            self.is_parquet = _is_parquet(self.path)
        except OSError as error:
            raise self._unreadable(error) from None

    def location(self, number: int) -> str:
        """Return the file's name with a row's number, from 1; for CSV, the line where the row starts."""
        return f"{self.path.name}, {'row' if self.is_parquet else 'line'} {number}"

    def add_problem(self, number: int, problem: str) -> None:
        """Record a problem with a row; `raise_problems` raises all problems together."""
        self._problems.add(number, problem)

    def rows(self) -> Iterator[Row]:
        """Yield each valid row; raise the problems of all others at the end."""
        yield from (row for row in self.all_rows() if not row.label_problem)
        self.raise_problems()

    def all_rows(self) -> Iterator[Row]:
        """Yield each row that is valid with any number of labels; record the problems of all rows."""
        self.roles = self._choose()
        for number, cells in self._parquet(self.roles.of_columns()) if self.is_parquet else self._csv():
            self._num_rows += 1
            row, problem = self._row(number, cells)
            if problem:
                self.add_problem(number, problem)
                continue
            if row.label_problem:
                self._label_problems.add(number, row.label_problem)
            yield row

    def raise_problems(self, *, any_labels: bool = False) -> None:
        """Raise the problems that `all_rows` found; `any_labels` allows any number of labels per image."""
        labels = _Problems() if any_labels else self._label_problems
        count = self._problems.count + labels.count
        if count:
            shown = sorted(self._problems.first + labels.first)[:MAX_SHOWN]
            more = f"; and {count - len(shown)} more" if count > len(shown) else ""
            remedy = "Correct or remove these rows."
            if labels.count and len(self.roles.labels) > 1:
                remedy = "Images with several labels, or none, need --task multi; --label-column A,B names the columns."
            elif count == labels.count > 1:
                remedy = f"Remove the {count} rows without a label; transfer.predict can label them."
            problems = "; ".join(f"{self.location(number)}: {problem}" for number, problem in shown)
            raise InputError(f"{problems}{more}. {remedy}")
        if not self._num_rows:
            raise InputError(
                f"{self.path.name}: expected rows of images. Received only column names. Add rows."
            )

    def _choose(self) -> Roles:
        """Read all rows once, and return which column is what."""
        pairs: dict[tuple[int, int], set[tuple[str, str]]] | None = None
        for _, cells in self._parquet() if self.is_parquet else self._csv():
            if pairs is None:
                pairs = {pair: set() for pair in combinations(sorted(label_columns(self.columns)), 2)}
            for column, cell in zip(self.columns, cells, strict=True):
                column.add(cell)
            for (one, other), found in pairs.items():
                found.add((cells[one].strip(), cells[other].strip()))
        self._problems = _Problems()  # found again when the rows are yielded
        if not self.columns:  # they cannot be read; the second reading reports it
            return self.roles
        try:
            return choose(
                self.columns,
                pairs or {},
                given=self.given,
                task=self.task,
                required=self.required,
                exists=self._exists,
            )
        except InputError as error:
            raise InputError(f"{self.path.name}: {error}") from None

    def _row(self, number: int, cells: Sequence[str]) -> tuple[Row, str]:
        """Return a row and its problem, or ""; `Row.label_problem` holds that of its label."""
        roles = self.roles
        path = cells[roles.path] if roles.path >= 0 else ""
        label, marked, label_problem = self._label(cells)
        split, problem = self._split(cells)
        if len(roles.labels) > 1 and (strange := [i for i in roles.labels if flag_in(cells[i]) is None]):
            i = strange[0]
            problem = f"expected 0 or 1 in the column {quoted(self.columns[i].name)}, not {quoted(cells[i].strip())}"
        groups = tuple(known(cells[i]) for i in roles.groups)
        for kind, text in (("path", path), ("label", label), ("group", "".join(groups))):
            if not text and kind in self.required and kind != "label" and not problem:
                problem = f"the {kind} is empty"
            if "\0" in text:
                problem = f"the {kind} contains a NUL byte"
        return Row(number, path, label, split, groups, marked, label_problem), problem

    def _label(self, cells: Sequence[str]) -> tuple[str, tuple[str, ...], str]:
        """Return the label of a row, the marked columns of several, and the problem with the label."""
        labels = self.roles.labels
        if len(labels) < 2:
            label = cells[labels[0]] if labels else ""
            # Split files hold the names of classes, which may be of any kind.
            if "split" not in self.required and (is_nan(label) or not label.strip()):
                label = ""
            return label, (), "the label is empty" if "label" in self.required and not label else ""
        marked = tuple(self.columns[i].name for i in labels if flag_in(cells[i]))
        if len(marked) == 1:
            return marked[0], marked, ""
        if not marked:
            names = quoted_list([self.columns[i].name for i in labels])
            return "", (), f"no class is marked among {names}"
        return "", marked, f"{len(marked)} classes are marked: {quoted_list(marked)}"

    def _split(self, cells: Sequence[str]) -> tuple[str, str]:
        """Return the split of a row and the problem with it."""
        splits = self.roles.splits
        if not splits:
            return "", ""
        text = cells[splits[0][0]].strip()
        if splits[0][1]:
            split = split_by_flags({split: bool(flag_in(cells[i])) for i, split in splits})
            names = quoted_list([self.columns[i].name for i, _ in splits])
            return split or "", "" if split else f"contradictory splits in {names}"
        split = split_in(text)
        if split or (split == "" and "split" not in self.required):
            return split or "", ""
        if not text:
            return "", "the split is empty"
        if "\0" in text:
            return "", "the split contains a NUL byte"
        near = (
            nearest(text.lower(), SPLIT_WORDS) if self._problems.count < MAX_SHOWN else ()
        )  # slow for many rows
        hint = f"perhaps {quoted_list(near)}" if near else f"expected one of {quoted_list(SPLITS)}"
        return "", f"unknown split {quoted(text)}, {hint}"

    # pyarrow.csv is not used: it numbers rows instead of lines, accepts wrong quotes, reads 007 as 7, does not detect
    # the separator, and fails at file names that are not UTF-8.
    def _csv(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows of a CSV file with the line where each starts; quoted fields may span lines."""
        start = 1
        header: list[str] = []
        try:
            with self.path.open("rb") as raw:
                encoding = "utf-16" if raw.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            with self.path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
                delimiter, spaced, skipped = _form(file.read(_HEAD))
                file.seek(0)
                reader = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=spaced)
                for row in reader:
                    number, start = start, reader.line_num + 1
                    if not row or number <= skipped:
                        continue
                    if not header:
                        header = row
                        row[0] = row[0].lstrip("# ") if row[0].startswith("#") else row[0]
                        self._set_columns(header)
                    elif cells := self._fitted(row, len(header), number):
                        yield number, cells
        except csv.Error as error:  # the start of the next row is unknown, so that reading stops
            self.add_problem(start, f"{error} (is a quote not closed?)")
        except UnicodeDecodeError as error:  # UTF-16 that ends within a character
            raise self._unreadable(error) from None
        except OSError as error:
            raise self._unreadable(error) from None
        if not header and not self._problems.count:
            raise InputError(
                f"{self.path.name}: expected column names in the first line. Received only empty lines."
            )

    def _fitted(self, row: list[str], width: int, number: int) -> list[str] | None:
        """Return the cells of a row, or None for a comment or for a wrong number of fields."""
        if len(row) != width and row[0].startswith("#"):
            return None
        while len(row) > width and not row[-1].strip():  # separators at the end of the line
            row.pop()
        if len(row) != width:
            self.add_problem(number, f"{len(row)} fields for {width} columns")
            return None
        return [from_cell(cell) if cell[:1] == "'" else cell for cell in row]

    def _parquet(self, used: Collection[int] | None = None) -> Iterator[tuple[int, list[str]]]:
        """Yield rows as `_csv` does; columns that are not used, and images, are left empty."""
        import pyarrow as pa
        from pyarrow import parquet

        number = 0
        try:
            with self.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
                schema = file.schema_arrow
                if used is None:
                    self._set_columns(schema.names)
                kinds = [schema.field(i).type for i in range(len(schema.names))]
                for i in used or ():
                    if not (i in self.roles.labels and _is_text_list(kinds[i])):
                        self._refuse_nested(schema.names[i], kinds[i])
                plain = [i for i, kind in enumerate(kinds) if not _is_nested(kind) or _is_text_list(kind)]
                present = [i for i in plain if used is None or i in used]
                for batch in file.iter_batches(_BATCH, columns=[schema.names[i] for i in present]):
                    columns: list[Sequence[str]] = [[""] * len(batch)] * len(schema.names)
                    for position, i in enumerate(present):
                        columns[i] = [*map(_text, batch.column(position).to_pylist())]
                    for row in zip(*columns, strict=True):
                        number += 1
                        yield number, [*row]
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise self._unreadable(error) from None

    def _refuse_nested(self, name: str, kind: pa.DataType) -> None:
        if _is_nested(kind):
            raise InputError(
                f"{self.path.name}: expected text or numbers in the column {name!r}. Received: {str(kind)[:80]}. "
                "Write the images to files and their paths to the column."
            )

    def _set_columns(self, header: Sequence[str]) -> None:
        """Set the columns, unless the first line is not one of column names."""
        if any("\0" in name or NOT_UTF8.search(name) for name in header):
            raise InputError(
                f"{self.path.name}: expected column names in UTF-8. Received other bytes. {SAVE_AS_UTF8}"
            )
        if self.columns:  # from the first reading
            return
        self.columns = [*map(Column, header)]
        images = [
            word for name in header for word in name.split() if word.lower().endswith(tuple(EXTENSIONS))
        ]
        if images and not path_columns(self.columns):
            raise InputError(
                f"{self.path.name}: expected column names in the first line. Received an image: {quoted(images[0])}. "
                "Add a first line such as path,label."
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
        (endless, "which has no line breaks", "Write the column names and each image on separate lines."),
    ):
        if wrong:
            raise InputError(
                f"Expected a list of images as CSV or Parquet. Received {str(path)!r}, {received}. {remedy}"
            )
    return False


def _form(head: str) -> tuple[str, bool, int]:
    """Return the separator, whether a space follows it, and the number of lines before the column names."""
    lines = head.splitlines()
    skipped = 0
    if lines and (match := re.fullmatch(r'"?sep=(.)"?', lines[0])):  # Excel writes this line
        return match[1], False, 1
    while (
        skipped + 1 < len(lines)
        and lines[skipped].startswith("#")
        and not _num_known(_best(lines[skipped][1:]))
    ):
        skipped += 1
    names = _best("\n".join(lines[skipped:]))
    return names[0], all(name.startswith(" ") for name in names[1][1:]), skipped


def _best(text: str) -> tuple[str, list[str]]:
    """Return the separator that gives the most known column names, and the names."""

    def split(delimiter: str) -> list[str]:
        return next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])

    # csv.Sniffer only counts characters; the known column names are a better sign.
    found = [(delimiter, split(delimiter)) for delimiter in ",;\t|"]
    return max(found, key=lambda one: (_num_known(one), len(one[1])))


def _num_known(found: tuple[str, Sequence[str]]) -> int:
    columns = [*map(Column, found[1])]
    known_names = {*path_columns(columns), *label_columns(columns)}
    return len(known_names | {i for i, column in enumerate(columns) if rank(column) is not None})


def _is_nested(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_nested(kind) or "binary" in str(kind)


def _is_text_list(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_list(kind) and types.is_string(kind.value_type)


def _text(value: object) -> str:
    """Return a cell of Parquet as text: "" for null and NaN, "3" for 3.0, which pandas writes for 3; lists as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def own_group(name: str) -> str:
    """Return the group of an image whose row has none."""
    return " " + name


def is_own_group(group: str) -> bool:
    """Return whether `own_group` made a group; groups from files have no leading space."""
    return group.startswith(" ")
