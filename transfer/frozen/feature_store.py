"""Rows of features on disk: files that are whole and checked, or not there."""

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
from transfer.frozen.row_files import SUFFIX, BrokenError, RowFile, count_rows, make_head, pack, read_head

log = logging.getLogger(__name__)

_LOOKUP = 2**16  # digests that are looked up together
_LONGEST = 2**22  # rows of a merged run: to merge 10 million would take 700 MB for a moment
_ATTEMPTS = 20
_MOST_OPEN = 64  # files of a store; macOS allows a process 256


class FeatureStore:
    """Rows of one shape, one for each image, found by the digest of the image's content."""

    def __init__(
        self,
        folder: Path,
        *,
        shape: tuple[int, ...],
        dtype: str,
        about: Mapping[str, str],
        grown: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype).newbyteorder("<")
        self._about, self._grown = dict(about), grown
        self._row_bytes = self.dtype.itemsize * prod(shape)
        self._name = blake2b(folder.name.encode(), digest_size=16).digest()
        self._files: list[RowFile] = []
        self._starts, self._end = np.zeros(0, "int64"), 0
        self._index = _Index()
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, int] = OrderedDict()  # those used last are at the end
        weakref.finalize(self, _close_all, self._open)
        self._despite_clearing(self._prepare)
        self._load()

    def __len__(self) -> int:
        return sum(len(file) for file in self._files if not file.gone)

    def find(self, digests: Sequence[str]) -> np.ndarray:
        """Say which rows are those of some images; each is read and checked when it is found first."""
        parts = [pack(digests[i : i + _LOOKUP]) for i in range(0, len(digests), _LOOKUP)]
        with self._lock:
            while True:  # until nothing that was found is broken: another file may hold the same image
                ids = np.concatenate([np.zeros(0, "int64"), *map(self._index.find, parts)])
                by_file = self._by_file(ids)
                if all([self._is_sound(file, ids[places] - file.start) for file, places in by_file]):
                    return ids

    def refresh(self) -> None:
        """See what others have appended since the store was opened."""
        with self._lock:
            self._load()

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Read rows, and check them again."""
        ids = np.asarray(ids, "int64")
        if ids.size and not 0 <= ids.min() <= ids.max() < self._end:
            raise IndexError(f"{ids.min()} to {ids.max()} of {self._end} rows")
        rows = np.empty((len(ids), self._row_bytes), "uint8")
        with self._lock:
            for file, places in self._by_file(ids):
                try:
                    for part, content in file.read(self._place(file.path), ids[places] - file.start):
                        rows[places[part]] = content
                except (OSError, BrokenError) as error:
                    self._drop(file, error)
                    raise InputError(
                        f"Features in {str(file.path)!r} were lost while they were in use: {_reason(error)}. Start "
                        "again: only these are computed anew."
                    ) from None
        return rows.view(self.dtype).reshape(len(ids), *self.shape)

    def append(self, digests: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Add rows, all of them or none, as one file."""
        packed = pack(digests)
        rows = _check_rows(np.asarray(rows), len(packed), self.shape, self.dtype)
        if not len(rows):
            return np.zeros(0, "int64")
        content = rows.reshape(len(rows), -1).view("uint8")
        head, sums = make_head(self._name, packed, content)
        with self._lock:
            path = self.folder / f"{time.time_ns():016x}-{os.urandom(4).hex()}{SUFFIX}"
            self._despite_clearing(lambda: self._write(path, head, content))
            start = self._add([RowFile(path, self._end, self._row_bytes, sums)], packed)
        self._grown(len(head) + content.size)
        return np.arange(start, start + len(rows))

    def _prepare(self) -> None:
        """Make the folder, say that it is in use, and keep others from evicting it."""
        used, about = self.folder / "used", self.folder / "about.json"
        try:
            with _explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                used.touch()
            if not about.exists():
                write_text(about, json.dumps(self._about, ensure_ascii=False, indent=1))
        except InputError:
            if not os.access(used, os.R_OK):  # a store that can only be read is good for that
                raise
        with _explained(self.folder):
            place = os.open(used, os.O_RDONLY)
        weakref.finalize(self, os.close, place)
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(place, fcntl.LOCK_SH)

    def _load(self) -> None:
        paths: list[Path] = []
        with _explained(self.folder), suppress(FileNotFoundError):  # another process cleared it just now
            known = {file.path for file in self._files}
            paths = sorted(
                path for path in self.folder.iterdir() if path.name.endswith(SUFFIX) and path not in known
            )
        # One array for all, since a list of many, and then one of them, would be millions of digests twice.
        digests = np.empty(sum(map(count_rows, paths)), pack([]).dtype)
        files, end = [], 0
        for path in paths:
            try:
                packed, sums = read_head(path, self._name, self._row_bytes)
            except (OSError, BrokenError) as error:
                _set_aside(path, error)
                continue
            digests[end : end + len(sums)] = packed
            files.append(RowFile(path, self._end + end, self._row_bytes, sums))
            end += len(sums)
        if files:
            self._add(files, digests[:end])

    def _add(self, files: list[RowFile], digests: np.ndarray) -> int:
        start, self._end = self._end, self._end + len(digests)
        self._files += files
        self._starts = np.append(self._starts, [file.start for file in files])
        self._index.add(digests, start)
        return start

    def _is_sound(self, file: RowFile, rows: np.ndarray) -> bool:
        rows = rows[~file.checked[rows]]
        if not len(rows):
            return True
        try:
            for part, _ in file.read(self._place(file.path), rows):
                file.checked[rows[part]] = True
        except (OSError, BrokenError) as error:
            self._drop(file, error)
            return False
        return True

    def _by_file(self, ids: np.ndarray) -> Iterator[tuple[RowFile, np.ndarray]]:
        """Give each file that ids are in, and where in `ids` its own stand, in the order of its rows."""
        order = np.argsort(ids, kind="stable")
        order = order[np.searchsorted(ids[order], 0) :]  # without -1
        numbers = np.searchsorted(self._starts, ids[order], side="right") - 1
        for places in np.split(np.arange(len(order)), np.flatnonzero(np.diff(numbers)) + 1):
            if len(places):
                yield self._files[numbers[places[0]]], order[places]

    def _place(self, path: Path) -> int:
        """Open a file, or take it from those that are open; one that was deleted meanwhile can still be
        read."""
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
            if len(self._open) > _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        return self._open[path]

    def _drop(self, file: RowFile, error: Exception) -> None:
        if not file.gone:
            file.gone = True
            self._index.drop(file.start, file.start + len(file))
            _set_aside(file.path, error)

    def _write(self, path: Path, head: bytes, content: np.ndarray) -> None:
        if not (self.folder / "used").exists():  # another process cleared it
            self._prepare()
        with replacing(path) as partial, _explained(self.folder), open(partial, "wb") as file:
            file.write(head)
            file.write(content.data)
            file.flush()
            os.fsync(file.fileno())

    def _despite_clearing(self, write: Callable[[], None]) -> None:
        """Do what needs the folder; again, where another process deleted it meanwhile."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                return write()
            except InputError as error:
                if not left or not isinstance(error.__context__, FileNotFoundError | FileExistsError):
                    raise


class _Index:
    """Which id a digest has, in sorted runs of numpy: a dict of 10 million would take 1.5 GB."""

    def __init__(self) -> None:
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, digests: np.ndarray, start: int) -> None:
        order = np.argsort(digests, kind="stable")
        digests, ids = digests[order], order
        ids += start
        while self.runs and len(self.runs[-1][0]) < min(2 * len(digests), _LONGEST - len(digests)):
            older, older_ids = self.runs.pop()
            digests, ids = np.concatenate([older, digests]), np.concatenate([older_ids, ids])
            order = np.argsort(digests, kind="stable")
            digests, ids = digests[order], ids[order]
        self.runs.append((digests, ids))

    def find(self, wanted: np.ndarray) -> np.ndarray:
        ids = np.full(len(wanted), -1, "int64")
        order = np.argsort(wanted, kind="stable")  # neighbours are looked up one after the other: much faster
        wanted = wanted[order]
        for digests, rows in self.runs:
            places = np.searchsorted(digests, wanted)
            places[places == len(digests)] = 0
            equal = digests[places] == wanted
            ids[order[equal]] = rows[places[equal]]
        return ids

    def drop(self, start: int, stop: int) -> None:
        kept = [(digests, ids, (ids < start) | (ids >= stop)) for digests, ids in self.runs]
        self.runs = [(digests[keep], ids[keep]) for digests, ids, keep in kept if keep.any()]


def _check_rows(rows: np.ndarray, count: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Bring rows to the store's dtype, and refuse those that could not be used."""
    if rows.shape != (count, *shape):
        raise InputError(f"Expected features of shape {(count, *shape)}. Received: {rows.shape}.")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(rows, dtype)
    bad = ~np.isfinite(cast.reshape(count, prod(shape))).all(axis=1)
    if bad.any() and np.isfinite(rows[bad]).all():
        raise InputError(
            f"The network gave values beyond {np.finfo(dtype).max:g}, the most that {dtype.name} holds, for "
            f"{bad.sum()} of {count} images. Keep its features in float32."
        )
    if bad.any():
        raise InputError(
            f"The network gave NaN or infinite values for {bad.sum()} of {count} images: no head can be trained on "
            "these. Check its weights, and that it takes raw RGB, 0 to 255."
        )
    return cast


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _cannot_write(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"Cannot write features to {str(folder)!r}: {_reason(error)}. Free space (python -m transfer.features "
        "--clear), or set the environment variable TRANSFER_CACHE to a folder that can be written to, on a disk with "
        "room. What was written before is kept."
    )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(folder, error) from None


def _set_aside(path: Path, error: Exception) -> None:
    """Say what is wrong with a file, and delete it where it can never be used."""
    if isinstance(error, FileNotFoundError):
        log.info("%s was deleted by another process; its images are computed anew.", path)
    elif isinstance(error, BrokenError):
        log.warning("%s cannot be used: %s. It is deleted, and its images are computed anew.", path, error)
        with suppress(OSError):
            path.unlink()
    else:
        log.warning("%s cannot be read: %s. Its images are computed anew.", path, _reason(error))


def _close_all(places: OrderedDict[Path, int]) -> None:
    while places:
        os.close(places.popitem()[1])
