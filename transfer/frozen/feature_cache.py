"""The feature cache: a folder of feature stores that is kept below a size limit."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from transfer.common.cache_folder import default_cache_folder, not_deleted
from transfer.common.errors import InputError, unknown
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.row_files import SUFFIX, count_rows

log = logging.getLogger(__name__)

LIMIT = 20 * 2**30
"""Bytes on disk: 8 million images with 1,280 float16 features (EfficientNet), a twelfth of a 256 GB disk."""

HOUR = 3600.0
"""Age in seconds after which a temporary file counts as a leftover: writing a file takes seconds."""

_SUFFIXES = (".features", ".shelf")  # version 0.1 wrote .shelf; its stores are only listed and deleted
_OURS = re.compile(r"used|about\.json|.+\.rows\d+")


@dataclass(frozen=True)
class StoreInfo:
    """A feature store, as `FeatureCache` lists it."""

    # Hash of the network, its weights, and the preprocessing.
    key: str
    about: dict[str, str]
    rows: int
    bytes: int
    last_used: datetime


class FeatureCache:
    """A folder of feature stores, one for each network, preprocessing, image size, and dtype."""

    def __init__(self, folder: Path | None = None, *, limit: int = LIMIT) -> None:
        self.folder = (default_cache_folder() if folder is None else Path(folder)).absolute()
        self.limit = limit
        self._appended = float("inf")  # bytes appended since this process last summed the sizes

    def store(
        self, key: str, *, shape: tuple[int, ...], dtype: str, about: Mapping[str, str]
    ) -> FeatureStore:
        """Open the store of a key, or make it."""
        shape = tuple(shape)
        if not re.fullmatch("[0-9a-f]{8,64}", key) or dtype not in ("float16", "float32") or 0 in shape:
            raise InputError(
                "Expected a key of 8 to 64 hexadecimal digits, a shape without zeros, and dtype float16 or float32. "
                f"Received: key={key!r}, shape={shape}, dtype={dtype!r}."
            )
        folder = self.folder / f"{key}-{dtype}-{'x'.join(map(str, shape))}{_SUFFIXES[0]}"
        return FeatureStore(folder, shape=shape, dtype=dtype, about=about, on_append=self._on_append)

    def stores(self) -> list[StoreInfo]:
        """List the stores in the order of eviction: the least recently used first."""
        return [
            StoreInfo(
                key=_key(folder),
                about=_read_about(folder),
                rows=sum(count_rows(path) for path in _sizes(folder) if path.name.endswith(SUFFIX)),
                bytes=sum(_sizes(folder).values()),
                last_used=datetime.fromtimestamp(_last_used(folder)).astimezone(),
            )
            for folder in self._folders()
        ]

    def clear(self, keys: Sequence[str] | None = None) -> int:
        """Delete all stores, or those of some keys, even if they are in use; return the bytes freed."""
        folders = self._folders()
        valid = list(dict.fromkeys(map(_key, folders)))
        for key in keys or ():
            if key not in valid:
                raise unknown("key", key, valid, hint=f"The cache is in {str(self.folder)!r}.")
        try:
            return sum(_delete(folder) for folder in folders if keys is None or _key(folder) in keys)
        except OSError as error:
            raise not_deleted(error) from None

    def evict(self) -> int:
        """Delete leftovers, then the least recently used stores down to the limit; return the bytes freed."""
        self._appended = 0
        folders = self._folders()
        freed = sum(map(_delete_leftovers, folders))
        excess = sum(sum(_sizes(folder).values()) for folder in folders) - self.limit
        for folder in folders:
            if excess <= 0:
                break
            if _is_open(folder):
                continue
            try:
                size = _delete(folder)
            except OSError as error:
                log.warning(
                    "The cache is full, and %s cannot be deleted: %s.", error.filename, error.strerror
                )
                continue
            log.info("The cache is full. Deleted the features in %s.", folder)
            excess, freed = excess - size, freed + size
        return freed

    def _on_append(self, size: int) -> None:
        self._appended += size
        if (
            self._appended > self.limit / 64
        ):  # to sum all sizes at each append would take longer than the append
            self.evict()

    def _folders(self) -> list[Path]:
        folders = [folder for suffix in _SUFFIXES for folder in self.folder.glob(f"*-*-*{suffix}")]
        return sorted(filter(Path.is_dir, folders), key=_last_used)


def _key(folder: Path) -> str:
    return folder.name.partition("-")[0]


def _read_about(folder: Path) -> dict[str, str]:
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _last_used(folder: Path) -> float:
    for path in (folder / "used", folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _sizes(folder: Path) -> dict[Path, int]:
    """Return the files of a folder with their sizes in bytes; ignore files that another process deletes."""
    sizes = {}
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                sizes[path] = path.lstat().st_size
    return sizes


def _is_open(folder: Path) -> bool:
    """Return whether a process uses the store; without locks on this disk, whether one may."""
    try:
        descriptor = os.open(folder / "used", os.O_RDWR)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return time.time() - os.fstat(descriptor).st_mtime < HOUR
    finally:
        os.close(descriptor)


def _delete(folder: Path) -> int:
    """Delete a store except foreign files and files that are being written; return the bytes freed."""
    freed = _delete_leftovers(folder)
    for path, size in _sizes(folder).items():
        if _OURS.fullmatch(path.name):
            with suppress(FileNotFoundError):
                path.unlink()
                freed += size
    with suppress(OSError):
        folder.rmdir()
    return freed


def _delete_leftovers(folder: Path) -> int:
    freed = 0
    for path, size in _sizes(folder).items():
        with suppress(OSError):
            if path.name.endswith(".partial") and time.time() - path.lstat().st_mtime > HOUR:
                path.unlink()
                freed += size
    return freed
