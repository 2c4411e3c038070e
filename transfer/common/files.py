"""Files that are written whole or not at all, and cells of CSV files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transfer.common.errors import InputError

_DISK_ADVICE = {
    errno.ENOSPC: "Free space on this disk",
    errno.EDQUOT: "Free some of your quota on this disk",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f)",
}


@contextmanager
def written_whole(path: Path, *, unique: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` if the `with` block ends without an error."""
    # `unique` lets several processes write the same file. Without it, a killed process leaves no more than one
    # temporary file per path, which the next one overwrites.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if unique else f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Like `written_whole`, for a file that the user chose: raise an `InputError` if writing fails."""
    try:
        with written_whole(path) as partial:
            yield partial
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> InputError:
    advice = disk_advice(error, "Choose a file in a writable folder")
    return InputError(f"Cannot write {str(path)!r}: {disk_reason(error)}. {advice}.")


def check_writable(*files: str | None) -> None:
    """Raise an `InputError` before the work if a file that the user chose cannot be written after it."""
    for path in (Path(text) for text in files if text):
        if path.is_dir():
            raise InputError(f"Cannot write {str(path)!r}: it is a folder. Add the name of a file.")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.touch()
            partial.unlink()
        except OSError as error:
            raise _not_written(path, error) from error


def check_folder(folder: str | Path | None) -> None:
    """Raise an `InputError` before the work if a folder that the user chose cannot be made or written after it."""
    if folder is not None:
        whole = Path(folder).absolute()
        parent = next(place for place in (whole, *whole.parents) if place.exists())
        check_writable(str(parent / "file"))


def disk_advice(error: OSError, default: str) -> str:
    """Return the advice for a file that could not be written."""
    return _DISK_ADVICE.get(error.errno or 0, default)


def disk_reason(error: OSError) -> str:
    """Return in a few words why a file could not be read or written."""
    return (error.strerror or str(error)).lower()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


# Spreadsheets run a cell that starts with one of these as a formula, such as `=cmd|...`. An apostrophe in front of it
# makes it text. Text that already has apostrophes in front gets one more, so that reading restores every text.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def to_cell(text: str) -> str:
    """Return text as a CSV cell that no spreadsheet runs as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(text: str) -> str:
    """Return the text of a cell that `to_cell` made."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text
