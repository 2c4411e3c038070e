"""Read a list of paths as shells and programs write it, also those of Windows."""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Iterator
from typing import BinaryIO

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_paths(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list, one per line or separated by NUL bytes; file names may have any bytes."""
    first = stream.readline()
    if first.startswith(_UTF16):  # as PowerShell writes
        lines = (first + stream.read()).decode("utf-16", "replace").splitlines()
        yield from filter(None, map(_existing, lines))
        return
    for line in itertools.chain([first.removeprefix(codecs.BOM_UTF8)], stream):
        for part in line.split(b"\0"):
            if path := _existing(os.fsdecode(part).rstrip("\r\n")):
                yield path


def _existing(text: str) -> str:
    """Return a path as written if it exists, else without quotes and spaces around it, or with slashes."""
    bare = text.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\"":
        bare = bare[1:-1]
    forms = (text, bare, bare.replace("\\", "/"))
    return next(filter(os.path.exists, forms), bare)
