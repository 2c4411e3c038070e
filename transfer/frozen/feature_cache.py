"""What frozen networks made of images, kept on disk from run to run: a folder of stores, within a limit."""

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

from transfer.common.cache_folder import default_folder
from transfer.common.errors import InputError, unknown
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.row_files import SUFFIX, count_rows

log = logging.getLogger(__name__)

LIMIT = 20 * 2**30
"""Bytes on disk: 8 million images at EfficientNet's 1,280 numbers in float16, and a twelfth of a laptop's 256 GB."""

HOUR = 3600.0
"""Seconds after which a temporary file belongs to no living run: each is written in seconds."""

_OURS = re.compile(r"used|about\.json|.+\.rows\d+|\..+\.partial")


@dataclass(frozen=True)
class StoreInfo:
    """What there is to know of a store without opening it."""

    # Of what made its rows.
    key: str
    about: dict[str, str]
    rows: int
    bytes: int
    last_used: datetime


class FeatureCache:
    """A folder of stores, one for each network, preprocessing and image size."""

    def __init__(self, folder: Path | None = None, *, limit: int = LIMIT) -> None:
        self.folder = (default_folder() if folder is None else Path(folder)).absolute()
        self.limit = limit
        self._unseen = float("inf")  # bytes appended by this process since the sizes were summed

    def store(
        self, key: str, *, shape: tuple[int, ...], dtype: str, about: Mapping[str, str]
    ) -> FeatureStore:
        """Open the store of one network, and make it where there is none."""
        shape = tuple(shape)
        if not re.fullmatch("[0-9a-f]{8,64}", key) or dtype not in ("float16", "float32") or 0 in shape:
            raise InputError(
                "Expected a key of 8 to 64 hexadecimal digits, a shape that is not empty, and the dtype float16 or "
                f"float32. Received: key={key!r}, shape={shape}, dtype={dtype!r}."
            )
        folder = self.folder / f"{key}-{dtype}-{'x'.join(map(str, shape))}.shelf"
        return FeatureStore(folder, shape=shape, dtype=dtype, about=about, grown=self._grown)

    def stores(self) -> list[StoreInfo]:
        """List the stores in the order in which they would be evicted."""
        return [
            StoreInfo(
                key=_key(folder),
                about=_read_about(folder),
                rows=sum(count_rows(path) for path in _files(folder) if path.name.endswith(SUFFIX)),
                bytes=_size(folder),
                last_used=datetime.fromtimestamp(_last_used(folder)).astimezone(),
            )
            for folder in self._folders()
        ]

    def clear(self, keys: Sequence[str] | None = None) -> int:
        """Delete stores, also those that are open somewhere: what a run has not read yet, it has lost."""
        folders = self._folders()
        valid = list(dict.fromkeys(map(_key, folders)))
        for key in keys or ():
            if key not in valid:
                raise unknown("key", key, valid, hint=f"The cache is in {str(self.folder)!r}.")
        try:
            return sum(_delete(folder) for folder in folders if keys is None or _key(folder) in keys)
        except OSError as error:
            raise InputError(
                f"Cannot delete {str(error.filename)!r}: {(error.strerror or str(error)).lower()}. Ask its owner, or "
                "set the environment variable TRANSFER_CACHE to a folder of your own."
            ) from None

    def evict(self) -> int:
        """Delete the stores opened longest ago until the rest is within the limit, and what killed runs
        left."""
        self._unseen = 0
        folders = self._folders()
        freed = sum(map(_delete_leftovers, folders))
        excess = sum(map(_size, folders)) - self.limit
        for folder in folders:
            if excess <= 0:
                break
            if _is_open(folder):
                continue
            try:
                size = _delete(folder)
            except OSError as error:
                log.warning("Cannot delete %s, and the cache is full: %s.", error.filename, error.strerror)
                continue
            log.info("Deleted the features in %s: the cache is full.", folder)
            excess, freed = excess - size, freed + size
        return freed

    def _grown(self, size: int) -> None:
        self._unseen += size
        if (
            self._unseen > self.limit / 64
        ):  # summing all sizes at each append would take longer than appending
            self.evict()

    def _folders(self) -> list[Path]:
        return sorted((f for f in self.folder.glob("*-*-*.shelf") if f.is_dir()), key=_last_used)


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


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:  # another process deleted it just now
        return []


def _size(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def _is_open(folder: Path) -> bool:
    """Tell whether a living process has the store open; or may have, where the disk knows no locks."""
    try:
        place = os.open(folder / "used", os.O_RDWR)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return time.time() - os.fstat(place).st_mtime < HOUR
    finally:
        os.close(place)


def _delete(folder: Path) -> int:
    """Delete a store, but for files that are not ours and for what another process is writing just now."""
    freed = _delete_leftovers(folder)
    for path in _files(folder):
        if _OURS.fullmatch(path.name) and not path.name.endswith(".partial"):
            with suppress(FileNotFoundError):
                size = path.lstat().st_size
                path.unlink()
                freed += size
    with suppress(OSError):
        folder.rmdir()
    return freed


def _delete_leftovers(folder: Path) -> int:
    freed = 0
    for path in _files(folder):
        with suppress(OSError):
            stat = path.lstat()
            if path.name.endswith(".partial") and time.time() - stat.st_mtime > HOUR:
                path.unlink()
                freed += stat.st_size
    return freed
