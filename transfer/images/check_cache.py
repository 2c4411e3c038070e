"""What was found out about files, kept from run to run: a small database that may be lost at any time."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

from transfer.common.errors import InputError

try:
    import sqlite3
except ImportError:  # a Python that was built without it goes without a memory
    sqlite3 = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

MOST_BYTES = 2**29
"""On disk; about two million files. Beyond it, a quarter of the rows goes, those not used longest."""

SETTLED_NS = 2 * 10**9
"""Nanoseconds that a file must have been left alone: a younger one may change again within the same tick of the disk's
clock, which is 2 s on FAT, and look as before."""

_NAME = "checked-1.sqlite"  # count up when the table's layout changes
_PATIENCE = 0.5  # seconds to wait for other processes; they write for hundredths of one
_LOOKUP = 500  # rows asked for together; old SQLite takes 999 at most
_DAY = 86_400

_NOTHING = (None, None, None)
_TABLE = "CREATE TABLE IF NOT EXISTS kept (id INTEGER PRIMARY KEY, seal BLOB, used INTEGER, content BLOB)"

Result = TypeVar("Result")


class Stamp(NamedTuple):
    """What a file was like when it was looked at."""

    id: int
    state: bytes
    settled: bool


class CheckCache:
    """Rows of a check of files, each found again while its file has the same path, size, times and
    inode."""

    def __init__(self, folder: Path, *, rules: str) -> None:
        self.path = folder / _NAME
        self._rules = blake2b(rules.encode(), digest_size=32).digest()
        self._connection: sqlite3.Connection | None = None
        self._readable = self._writable = sqlite3 is not None
        self._renewed = False

    def __enter__(self) -> CheckCache:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def stamp(self, paths: Sequence[str]) -> list[Stamp | None]:
        """Look at files from outside, in any thread; do it before they are read, since they may change
        meanwhile."""
        now, here = time.time_ns(), None
        stamps: list[Stamp | None] = []
        for path in paths:
            try:
                found = os.stat(path)
                if not os.path.isabs(path):
                    here = here or os.getcwd()
                    path = os.path.join(here, path)
                stamps.append(self._stamp(os.fsencode(path), found, now))
            except (OSError, ValueError):  # ValueError: a NUL byte, or what no file can be called
                stamps.append(None)
        return stamps

    def recall(self, stamps: Sequence[Stamp | None]) -> list[list[Any] | None]:
        """Give what was remembered."""
        settled = [stamp.id for stamp in stamps if stamp and stamp.settled]
        if not settled:
            return [None] * len(stamps)
        kept = self._attempt(lambda connection: _select(connection, settled), write=False) or {}
        today, sound, unused = int(time.time()) // _DAY, {}, []
        for place, stamp in enumerate(stamps):
            seal, used, content = kept.get(stamp.id, _NOTHING) if stamp else _NOTHING
            if stamp and stamp.settled and type(content) is bytes and seal == _seal(stamp.state, content):
                sound[place] = content
                if used != today:  # written once a day, not at every run
                    unused.append((today, stamp.id))
        if unused:
            statement = "UPDATE kept SET used = ? WHERE id = ?"
            self._attempt(lambda connection: _write(connection, statement, unused), write=True)
        rows: list[list[Any] | None] = [None] * len(stamps)
        for place, row in zip(sound, json.loads(b"[%b]" % b",".join(sound.values())), strict=True):
            rows[place] = row
        return rows

    def remember(self, stamps: Sequence[Stamp | None], rows: Sequence[Sequence[Any] | None]) -> None:
        """Keep rows for the next run."""
        today, new = int(time.time()) // _DAY, []
        for stamp, row in zip(stamps, rows, strict=True):
            if stamp and stamp.settled and row is not None:
                content = json.dumps(row, separators=(",", ":")).encode()
                new.append((stamp.id, _seal(stamp.state, content), today, content))
        if new:
            statement = "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)"
            self._attempt(lambda connection: _write(connection, statement, sorted(new)), write=True)
            self._attempt(_shrink, write=True)

    def _stamp(self, path: bytes, found: os.stat_result, now: int) -> Stamp:
        name = blake2b(self._rules + path, digest_size=16).digest()
        # Of the times, the second tells of content that was changed and then dated back.
        changed, touched = found.st_mtime_ns, found.st_ctime_ns
        state = b"%b %d %d %d %d" % (name, found.st_size, changed, touched, found.st_ino)
        # Rows of one folder lie together, so that to find them is to read few pages; two of one id replace each other.
        id = crc32(path.rpartition(b"/")[0]) << 32 | int.from_bytes(name[:4])
        return Stamp(id - 2**63, state, now - max(changed, touched) >= SETTLED_NS)

    def _attempt(self, work: Callable[[sqlite3.Connection], Result], *, write: bool) -> Result | None:
        """Do something with the database, anew where it is broken; None where that does not work."""
        for _ in range(2):
            if not (self._writable if write else self._readable):
                break
            try:
                if self._connection is None:
                    self._connection = _connect(self.path)
                return work(self._connection)
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # messages quote what is broken
                log.debug("The memory of checks in %s: %s.", self.path, error)
                self._recover(error, write=write)
        return None

    def _recover(self, error: Exception, *, write: bool) -> None:
        """Delete what is broken, once; do without what is locked, full or closed."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it is detail
        broken = code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        broken = broken or isinstance(error, UnicodeDecodeError)
        if broken and not self._renewed:
            self._renewed = True
            self._close()
            with suppress(OSError):
                _delete(self.path)
                return
        self._writable = False
        self._readable = self._readable and write and self._connection is not None and not broken

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def forget(folder: Path) -> int:
    """Delete what was remembered."""
    try:
        return _delete(folder / _NAME)
    except OSError as error:
        raise InputError(
            f"Cannot delete {str(error.filename)!r}: {(error.strerror or str(error)).lower()}. Ask its owner, or "
            "set the environment variable TRANSFER_CACHE to a folder of your own."
        ) from None


def _delete(path: Path) -> int:
    freed = 0
    for file in (path, path.with_name(path.name + "-journal")):
        try:
            size = file.lstat().st_size
            file.unlink()
            freed += size
        except (FileNotFoundError, NotADirectoryError):
            continue
    return freed


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_PATIENCE)
    try:
        connection.text_factory = bytes  # a flipped bit may make text of bytes, and not of UTF-8
        connection.execute("PRAGMA synchronous = OFF")  # after a power cut it may be broken, and starts anew
        connection.execute(_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _select(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, tuple[Any, Any, Any]]:
    found: dict[int, tuple[Any, Any, Any]] = {}
    for start in range(0, len(ids), _LOOKUP):
        some = ids[start : start + _LOOKUP]
        marks = ",".join("?" * len(some))
        query = f"SELECT id, seal, used, content FROM kept WHERE id IN ({marks})"
        found.update((row[0], row[1:]) for row in connection.execute(query, some).fetchall())
    return found


def _write(connection: sqlite3.Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with connection:  # all of them or none
        connection.executemany(statement, rows)


def _shrink(connection: sqlite3.Connection) -> None:
    """Counted are pages rather than rows, since that takes no time."""
    pages, unused, size = (
        connection.execute(f"PRAGMA {what}").fetchone()[0]
        for what in ("page_count", "freelist_count", "page_size")
    )
    if (pages - unused) * size > MOST_BYTES:
        with connection:
            connection.execute(
                "DELETE FROM kept WHERE id IN "
                "(SELECT id FROM kept ORDER BY used LIMIT (SELECT COUNT(*) / 4 + 1 FROM kept))"
            )


def _seal(state: bytes, content: bytes) -> bytes:
    return blake2b(state + content, digest_size=16).digest()
