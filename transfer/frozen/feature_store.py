"""Rows of features on disk, found by the digest of an image; damaged files are noticed and never used."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from math import prod
from pathlib import Path

import numpy as np

from transfer.common.errors import InputError
from transfer.common.files import replacing, write_text
from transfer.frozen.row_files import SUFFIX, BrokenError, RowFile, make_head, pack, read_head

log = logging.getLogger(__name__)

_LOOKUP = 2**16  # digests per look-up
_ATTEMPTS = 20
_MOST_OPEN = 64  # files of a store; macOS allows 256 open files per process


class FeatureStore:
    """Rows of one shape and dtype, one per image; safe for several threads and processes."""

    def __init__(
        self,
        folder: Path,
        *,
        shape: tuple[int, ...],
        dtype: str,
        about: Mapping[str, str],
        on_append: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype).newbyteorder("<")
        self._about, self._on_append = dict(about), on_append
        self._row_bytes = self.dtype.itemsize * prod(shape)
        self._name = blake2b(folder.name.encode(), digest_size=16).digest()
        self._files: list[RowFile] = []
        self._starts, self._end = np.zeros(0, "int64"), 0
        # The index is two sorted arrays: a dict of 10 million digests would take 1.5 GB.
        self._digests, self._ids = pack([]), np.zeros(0, "int64")
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, int] = OrderedDict()  # file descriptors, the most recently used last
        weakref.finalize(self, _close_all, self._open)
        self._retry(self._prepare)
        self._load()

    def __len__(self) -> int:
        return sum(len(file) for file in self._files if not file.lost)

    def find(self, digests: Sequence[str]) -> np.ndarray:
        """Return the row of each image, or -1; check each row when it is found for the first time."""
        parts = [pack(digests[i : i + _LOOKUP]) for i in range(0, len(digests), _LOOKUP)]
        with self._lock:
            while True:  # until no row is damaged: another file may hold the same image
                ids = np.concatenate([np.zeros(0, "int64"), *map(self._look_up, parts)])
                by_file = self._by_file(ids)
                if all([self._is_sound(file, ids[places] - file.start) for file, places in by_file]):
                    return ids

    def refresh(self) -> None:
        """Load the rows that other processes have appended since the store was opened."""
        with self._lock:
            self._load()

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Read rows and check them again."""
        ids = np.asarray(ids, "int64")
        if ids.size and not 0 <= ids.min() <= ids.max() < self._end:
            raise IndexError(f"{ids.min()} to {ids.max()} of {self._end} rows")
        rows = np.empty((len(ids), self._row_bytes), "uint8")
        with self._lock:
            for file, places in self._by_file(ids):
                try:
                    for part, content in file.read(self._descriptor(file.path), ids[places] - file.start):
                        rows[places[part]] = content
                except (OSError, BrokenError) as error:
                    self._drop(file, error)
                    raise InputError(
                        f"Features in {str(file.path)!r} were lost during use: {_reason(error)}. Run the command "
                        "again: only these features are computed again."
                    ) from None
        return rows.view(self.dtype).reshape(len(ids), *self.shape)

    def append(self, digests: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Write rows as one file, all of them or none; return their ids."""
        packed = pack(digests)
        rows = _check_rows(np.asarray(rows), len(packed), self.shape, self.dtype)
        if not len(rows):
            return np.zeros(0, "int64")
        content = rows.reshape(len(rows), -1).view("uint8")
        head, sums = make_head(self._name, packed, content)
        with self._lock:
            path = self.folder / f"{time.time_ns():016x}-{os.urandom(4).hex()}{SUFFIX}"
            self._retry(lambda: self._write(path, head, content))
            start = self._end
            self._add([(path, packed, sums)])
        self._on_append(len(head) + content.size)
        return np.arange(start, self._end)

    def _prepare(self) -> None:
        """Make the folder, mark it as used, and lock it against eviction."""
        used, about = self.folder / "used", self.folder / "about.json"
        with _explained(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                used.touch()
                if not about.exists():
                    write_text(about, json.dumps(self._about, ensure_ascii=False, indent=1))
            except (OSError, InputError):
                if not os.access(used, os.R_OK):  # a read-only store can be read
                    raise
            descriptor = os.open(used, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    def _load(self) -> None:
        """Add the files that this object does not know yet."""
        paths, known = [], {file.path for file in self._files}
        with _explained(self.folder), suppress(FileNotFoundError):  # another process has cleared the cache
            paths = sorted(p for p in self.folder.iterdir() if p.name.endswith(SUFFIX) and p not in known)
        files = []
        for path in paths:
            try:
                files.append((path, *read_head(path, self._name, self._row_bytes)))
            except (OSError, BrokenError) as error:
                _set_aside(path, error)
        self._add(files)

    def _add(self, files: Sequence[tuple[Path, np.ndarray, np.ndarray]]) -> None:
        """Add files, each with its digests and checksums, to the index."""
        digests = np.concatenate([pack([]), *(packed for _, packed, _ in files)])
        order = np.argsort(digests, kind="stable")
        places = np.searchsorted(self._digests, digests[order], side="right")
        self._digests = np.insert(self._digests, places, digests[order])
        self._ids = np.insert(self._ids, places, self._end + order)
        for path, _, sums in files:
            self._files.append(RowFile(path, self._end, self._row_bytes, sums))
            self._starts = np.append(self._starts, self._end)
            self._end += len(sums)

    def _look_up(self, wanted: np.ndarray) -> np.ndarray:
        ids = np.full(len(wanted), -1, "int64")
        order = np.argsort(wanted, kind="stable")  # looking up in sorted order is much faster
        places = np.searchsorted(self._digests, wanted[order])
        order, places = order[places < len(self._ids)], places[places < len(self._ids)]
        found = self._digests[places] == wanted[order]
        ids[order[found]] = self._ids[places[found]]
        return ids

    def _is_sound(self, file: RowFile, rows: np.ndarray) -> bool:
        """Check those of the rows that were not checked before."""
        rows = rows[~file.checked[rows]]
        try:
            for part, _ in file.read(self._descriptor(file.path), rows) if len(rows) else ():
                file.checked[rows[part]] = True
        except (OSError, BrokenError) as error:
            self._drop(file, error)
            return False
        return True

    def _by_file(self, ids: np.ndarray) -> Iterator[tuple[RowFile, np.ndarray]]:
        """Yield each file that holds some of the ids, with their positions in the order of its rows."""
        order = np.argsort(ids, kind="stable")
        order = order[np.searchsorted(ids[order], 0) :]  # without -1
        numbers = np.searchsorted(self._starts, ids[order], side="right") - 1
        for places in np.split(np.arange(len(order)), np.flatnonzero(np.diff(numbers)) + 1):
            if len(places):
                yield self._files[numbers[places[0]]], order[places]

    def _descriptor(self, path: Path) -> int:
        """Return a descriptor that stays open: the file can be read after another process deletes it."""
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
            if len(self._open) > _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        return self._open[path]

    def _drop(self, file: RowFile, error: Exception) -> None:
        if not file.lost:
            file.lost = True
            keep = (self._ids < file.start) | (self._ids >= file.start + len(file))
            self._digests, self._ids = self._digests[keep], self._ids[keep]
            _set_aside(file.path, error)

    def _write(self, path: Path, head: bytes, content: np.ndarray) -> None:
        if not (self.folder / "used").exists():  # another process has cleared the cache
            self._prepare()
        with replacing(path) as partial, _explained(self.folder), open(partial, "wb") as file:
            file.write(head)
            file.write(content.data)
            file.flush()
            os.fsync(file.fileno())

    def _retry(self, write: Callable[[], None]) -> None:
        """Call a function that needs the folder; repeat it if another process deletes the folder."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                return write()
            except InputError as error:
                if not left or not isinstance(error.__context__, FileNotFoundError | FileExistsError):
                    raise


def _check_rows(rows: np.ndarray, count: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Convert rows to the dtype of the store; raise InputError if their shape or values cannot be used."""
    if rows.shape != (count, *shape):
        raise InputError(f"Expected features of shape {(count, *shape)}. Received: {rows.shape}.")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(rows, dtype)
    bad = ~np.isfinite(cast.reshape(count, prod(shape))).all(axis=1)
    if bad.any() and np.isfinite(rows[bad]).all():
        raise InputError(
            f"The network returned values above {np.finfo(dtype).max:g}, the largest {dtype.name}, for {bad.sum()} of "
            f"{count} images. Store its features as float32."
        )
    if bad.any():
        raise InputError(
            f"The network returned NaN or infinity for {bad.sum()} of {count} images; no head can be trained on them. "
            "Check the network's weights, and that it takes raw RGB values from 0 to 255."
        )
    return cast


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn an OSError into an InputError with a remedy."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Cannot write features to {str(folder)!r}: {_reason(error)}. Free disk space (python -m transfer.features "
            "--clear), or set the environment variable TRANSFER_CACHE to a writable folder on a disk with enough room. "
            "Features that were written before are kept."
        ) from None


def _set_aside(path: Path, error: Exception) -> None:
    """Log why a file cannot be read, and delete it if it is damaged."""
    if isinstance(error, FileNotFoundError):
        log.info("Another process deleted %s. Its features are computed again.", path)
    elif isinstance(error, BrokenError):
        log.warning(
            "Cannot use %s: %s. The file is deleted, and its features are computed again.", path, error
        )
        with suppress(OSError):
            path.unlink()
    else:
        log.warning("Cannot read %s: %s. Its features are computed again.", path, _reason(error))


def _close_all(descriptors: OrderedDict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
