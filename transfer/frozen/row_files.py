"""The file format of features: a header, the images' digests, a checksum for each row, and the rows."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from transfer.common.errors import InputError

VERSION = 1
SUFFIX = f".rows{VERSION}"
"""The suffix contains the version, so that versions of the package ignore each other's files."""

_MAGIC = b"\x93feature"
_HEAD = struct.Struct("<8sI16sQQ")  # magic, version, store, number of rows, bytes per row
_DIGEST = 16  # bytes of 32: two of 10 million images share them with a probability of 1e-25
_PIECE = 2**23  # bytes per read


class BrokenError(Exception):
    """A file does not hold what was written."""


@dataclass(slots=True, eq=False)
class RowFile:
    """A file of rows in a store."""

    path: Path
    # Row of the store with which this file starts.
    start: int
    row_bytes: int
    # Checksum of each row, uint32.
    sums: np.ndarray
    checked: np.ndarray = field(init=False)
    lost: bool = False

    def __post_init__(self) -> None:
        self.checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return len(self.sums)

    # Rows are not memory-mapped: if another process truncated the file, a signal would end this process, and mapped
    # rows count as its memory.
    def read(self, descriptor: int, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Read rows in pieces and compare their checksums; read neighboring rows together."""
        size, start = self.row_bytes, _offset(len(self))
        step = max(1, _PIECE // size)
        for i in range(0, len(rows), step):
            piece = rows[i : i + step]
            edges = [0, *(np.flatnonzero(np.diff(piece) != 1) + 1).tolist(), len(piece)]
            content = np.empty((len(piece), size), "uint8")
            runs = [(content[a:b].data, start + int(piece[a]) * size) for a, b in pairwise(edges)]
            if sum(os.preadv(descriptor, [run], offset) for run, offset in runs) < content.size:
                raise BrokenError("it is truncated")
            if not np.array_equal(_sums(content), self.sums[piece]):
                raise BrokenError("its checksum is wrong")
            yield slice(i, i + step), content


def pack(digests: Sequence[str]) -> np.ndarray:
    """Convert hexadecimal digests to the bytes that a store compares."""
    text = "".join([digest[: 2 * _DIGEST] for digest in digests])
    try:
        content = bytes.fromhex(text)
    except ValueError:
        content = b""
    if len(text) != 2 * _DIGEST * len(digests) or len(text) != 2 * len(content):
        wrong = next((d for d in digests if not re.match(f"[0-9a-fA-F]{{{2 * _DIGEST}}}", d)), "")
        raise InputError(
            f"Expected digests of {2 * _DIGEST} or more hexadecimal digits, such as SHA-256. Received: {wrong!r}."
        )
    return np.frombuffer(content, f"S{_DIGEST}")


def make_head(store: bytes, digests: np.ndarray, content: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return the bytes before the rows, and the checksums of the rows."""
    sums = _sums(content)
    head = _HEAD.pack(_MAGIC, VERSION, store, *content.shape) + digests.tobytes() + sums.tobytes()
    return head + struct.pack("<I", zlib.crc32(head)), sums


def read_head(path: Path, store: bytes, row_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read and check the bytes before the rows; return the digests and the checksums of the rows."""
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise BrokenError("it is not a file of features")
        _, version, of_store, count, of_row = _HEAD.unpack(head)
        if version != VERSION:
            raise BrokenError(f"it has version {version}, expected {VERSION}")
        if (of_store, of_row) != (store, row_bytes):
            raise BrokenError("it belongs to another store")
        if os.fstat(file.fileno()).st_size != _offset(count) + count * row_bytes:
            raise BrokenError("it is truncated")
        head += file.read(_offset(count) - len(head))
    if zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
        raise BrokenError("its checksum is wrong")
    digests = np.frombuffer(head, f"S{_DIGEST}", count, _HEAD.size)
    return digests, np.frombuffer(head, "<u4", count, _HEAD.size + digests.nbytes).copy()


def count_rows(path: Path) -> int:
    """Return the number of rows of a file from the first bytes of its header; 0 if it is not valid."""
    try:
        with open(path, "rb") as file:
            *_, count, row_bytes = _HEAD.unpack(file.read(_HEAD.size))
            size = os.fstat(file.fileno()).st_size
    except (OSError, struct.error):
        return 0
    return count if size == _offset(count) + count * row_bytes else 0


def _offset(count: int) -> int:
    """Return where the rows start: after the header, digests, checksums, and their checksum."""
    return _HEAD.size + count * (_DIGEST + 4) + 4


def _sums(content: np.ndarray) -> np.ndarray:
    return np.fromiter((zlib.crc32(row) for row in content), "<u4", len(content))
