"""A file of features: the pictures' digests, a row for each, and checksums of everything."""

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
"""The version is in the name, too, so that two versions of the package leave each other's files alone."""

_MAGIC = b"\x93feature"
_HEAD = struct.Struct("<8sI16sQQ")  # magic, version, shelf, number of rows, bytes of each
_DIGEST = 16  # bytes kept of 32: that two of 10 million pictures share them has a chance of 1e-25
_PIECE = 2**23  # bytes that are read together


class BrokenError(Exception):
    """A file is not what was written."""


@dataclass(slots=True, eq=False)
class RowFile:
    """One file of rows, as a shelf knows it.

    Attributes:
        path: of the file.
        start: the shelf's id of its first row.
        row_bytes: of each row.
        sums: uint32 array of each row's checksum; of each, so that to use a few pictures of millions not all need be
            read.
        checked: bool array; whether this process has read the row.
        gone: it broke; rows that were found before are read as long as they are sound, others are not found.
    """

    path: Path
    start: int
    row_bytes: int
    sums: np.ndarray
    checked: np.ndarray = field(init=False)
    gone: bool = False

    def __post_init__(self) -> None:
        self.checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return len(self.sums)

    def read(self, place: int, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Read and check rows, a few at a time, neighbours at once.

        Args:
            place: the open file.
            rows: int array of shape (N,), positions in the file in ascending order.

        Yields:
            Which of `rows`, and their content as uint8 array of shape (M, row_bytes).

        Raises:
            BrokenError: they are not what was written.
        """
        size, start = self.row_bytes, _offset(len(self))
        step = max(1, _PIECE // size)
        for i in range(0, len(rows), step):
            piece = rows[i : i + step]
            edges = [0, *(np.flatnonzero(np.diff(piece) != 1) + 1).tolist(), len(piece)]
            runs = [os.pread(place, (b - a) * size, start + int(piece[a]) * size) for a, b in pairwise(edges)]
            content = np.frombuffer(b"".join(runs), "uint8")
            if content.size < len(piece) * size:
                raise BrokenError("it was cut short")
            content = content.reshape(len(piece), size)
            if not np.array_equal(_sums(content), self.sums[piece]):
                raise BrokenError("bits in it flipped")
            yield slice(i, i + step), content


def pack(digests: Sequence[str]) -> np.ndarray:
    """Bring digests to the form in which they are kept and compared.

    Args:
        digests: each of 32 hexadecimal digits or more.

    Returns:
        Array of shape (N,) of 16 bytes each, the first of each digest.

    Raises:
        InputError: something is not a digest.

    Example:
        >>> pack(["00" * 31 + "01", "ab" * 32]).itemsize
        16
    """
    text = "".join([digest[: 2 * _DIGEST] for digest in digests])
    try:
        content = bytes.fromhex(text)
    except ValueError:
        content = b""
    if len(text) != 2 * _DIGEST * len(digests) or len(text) != 2 * len(content):
        wrong = next((d for d in digests if not re.match(f"[0-9a-fA-F]{{{2 * _DIGEST}}}", d)), "")
        raise InputError(
            f"Expected digests of {2 * _DIGEST} hexadecimal digits or more, as sha256 gives. Received: {wrong!r}."
        )
    return np.frombuffer(content, f"S{_DIGEST}")


def make_head(shelf: bytes, digests: np.ndarray, content: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Make what stands in a file before its rows.

    Args:
        shelf: 16 bytes that tell this shelf from others.
        digests: of `pack`.
        content: the rows as uint8 array of shape (N, bytes of a row).

    Returns:
        The head, and the checksum of each row.

    Example:
        >>> len(make_head(bytes(16), pack(["ab" * 32]), np.zeros((1, 8), "uint8"))[0])
        68
    """
    sums = _sums(content)
    head = _HEAD.pack(_MAGIC, VERSION, shelf, *content.shape) + digests.tobytes() + sums.tobytes()
    return head + struct.pack("<I", zlib.crc32(head)), sums


def read_head(path: Path, shelf: bytes, row_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read and check what stands before the rows.

    Args:
        path: of the file.
        shelf: 16 bytes that tell the shelf from others.
        row_bytes: of each row.

    Returns:
        The digests, and the checksum of each row.

    Raises:
        BrokenError: the file is not what was written, or of another version or shelf.

    Example:
        >>> rows = np.zeros((1, 8), "uint8")
        >>> _ = Path("a").write_bytes(make_head(bytes(16), pack(["ab" * 32]), rows)[0] + rows.tobytes())
        >>> read_head(Path("a"), bytes(16), 8)[0] == pack(["ab" * 32])
        array([ True])
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise BrokenError("it is no file of features")
        _, version, of_shelf, count, of_row = _HEAD.unpack(head)
        if version != VERSION:
            raise BrokenError(f"it is of version {version}, expected {VERSION}")
        if (of_shelf, of_row) != (shelf, row_bytes):
            raise BrokenError("it belongs to another shelf")
        if os.fstat(file.fileno()).st_size != _offset(count) + count * row_bytes:
            raise BrokenError("it was cut short")
        head += file.read(_offset(count) - len(head))
    if zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
        raise BrokenError("bits in it flipped")
    digests = np.frombuffer(head, f"S{_DIGEST}", count, _HEAD.size)
    return digests, np.frombuffer(head, "<u4", count, _HEAD.size + digests.nbytes).copy()


def count_rows(path: Path) -> int:
    """Say how many rows a file has, by the first bytes of its head alone.

    Args:
        path: of the file.

    Returns:
        The number; 0 where it is not whole.

    Example:
        >>> rows = np.zeros((1, 8), "uint8")
        >>> _ = Path("a").write_bytes(make_head(bytes(16), pack(["ab" * 32]), rows)[0] + rows.tobytes())
        >>> count_rows(Path("a"))
        1
    """
    try:
        with open(path, "rb") as file:
            *_, count, row_bytes = _HEAD.unpack(file.read(_HEAD.size))
            size = os.fstat(file.fileno()).st_size
    except (OSError, struct.error):
        return 0
    return count if size == _offset(count) + count * row_bytes else 0


def _offset(count: int) -> int:
    """Where the rows begin: after the head, digests, checksums, and the checksum of these."""
    return _HEAD.size + count * (_DIGEST + 4) + 4


def _sums(content: np.ndarray) -> np.ndarray:
    return np.fromiter((zlib.crc32(row) for row in content), "<u4", len(content))
