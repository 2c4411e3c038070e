"""Writing files so that nothing half-written is ever found under their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transfer.common.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file takes its own name when it is complete.

    Args:
        path: the file's own name; an older file is replaced, at once.

    Yields:
        The temporary name, in the same folder.

    Raises:
        InputError: it cannot be written; an older file is as it was.

    Example:
        >>> with replacing(Path("a.txt")) as partial:
        ...     _ = partial.write_text("a")
        >>> Path("a.txt").read_text()
        'a'
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"Cannot write {str(path)!r}: {reason}. Name a file in a folder that can be written to."
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a file of text in UTF-8, all of it or nothing.

    Args:
        path: the file.
        text: what it holds.

    Raises:
        InputError: it cannot be written.

    Example:
        >>> write_text(Path("a.txt"), "a")
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


_COMMAND = re.compile(r"'*[=+\-@\t\r]")


def to_cell(text: str) -> str:
    """Write text so that a spreadsheet that opens the CSV takes it for text, and never for a formula (`=cmd`).

    Args:
        text: such as a class or a file's name.

    Returns:
        The text, with an apostrophe before it where it could be taken for a formula; `from_cell` takes it away.

    Example:
        >>> to_cell("=1+1"), to_cell("ants"), from_cell(to_cell("'=1+1"))
        ("'=1+1", 'ants', "'=1+1")
    """
    return f"'{text}" if _COMMAND.match(text) else text


def from_cell(text: str) -> str:
    """Read what `to_cell` wrote.

    Args:
        text: of a cell.

    Returns:
        What it was written for.

    Example:
        >>> from_cell("'-ants"), from_cell("'ants'")
        ('-ants', "'ants'")
    """
    return text[1:] if text[:1] == "'" and _COMMAND.match(text) else text
