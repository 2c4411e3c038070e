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
    """Give a temporary name to write to; the file takes its own name when it is complete."""
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
    """Write a file of text in UTF-8, all of it or nothing."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


_COMMAND = re.compile(r"'*[=+\-@\t\r]")


def to_cell(text: str) -> str:
    """Write text so that a spreadsheet that opens the CSV takes it for text, and never for a formula
    (`=cmd`)."""
    return f"'{text}" if _COMMAND.match(text) else text


def from_cell(text: str) -> str:
    """Read what `to_cell` wrote."""
    return text[1:] if text[:1] == "'" and _COMMAND.match(text) else text
