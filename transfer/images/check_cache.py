"""Cache the results of checking files in an SQLite table, which may be deleted at any time."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

from transfer.common.cache_folder import not_deleted

try:
    import sqlite3
except ImportError:  # Python may be built without it; nothing is cached then
    sqlite3 = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

MAX_BYTES = 2**29
"""Limit of the database on disk, enough for about 1.5 million files. Beyond it, the least recently used quarter of the
rows is deleted."""

SETTLED_NS = 2 * 10**9
"""Minimum age of a file's last change, in nanoseconds. A later change could have the same time stamp, because the clock
of a FAT disk ticks every 2 s."""

_NAME = "checked-2.sqlite"  # increase the number when the table changes
_TABLE = (
    "CREATE TABLE IF NOT EXISTS checks (id INTEGER PRIMARY KEY, checksum BLOB, used INTEGER, result BLOB)"
)
_TIMEOUT = 0.5  # seconds to wait for other processes; a write takes about 10 ms
_DAY = 86_400

Result = TypeVar("Result")


class FileState(NamedTuple):
    """The state of a file before it was read."""

    # Id of the row in the table, made from path and rules.
    id: int
    # Path, rules, size, times and inode.
    state: bytes


class CheckCache:
    """Results of checking files, valid while path, size, times and inode of a file stay the same."""

    # Errors of the database never stop a run: a damaged one is replaced once, and one that cannot be read or written
    # is not used. Checksums detect damaged rows. Several processes may use the database; an object is for one thread.

    def __init__(self, folder: Path, *, rules: str) -> None:
        self.path = folder / _NAME
        self._rules = blake2b(rules.encode(), digest_size=32).digest()
        self._connection: sqlite3.Connection | None = None
        self._readable = self._writable = sqlite3 is not None
        self._replaced = False

    def __enter__(self) -> CheckCache:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def file_states(self, paths: Sequence[str]) -> list[FileState | None]:
        """Return the states of files before they are read, in any thread; None if missing or changed just now."""
        now, states = time.time_ns(), list[FileState | None]()
        for path in paths:
            try:
                states.append(self._file_state(os.fsencode(os.path.abspath(path)), os.stat(path), now))
            except (OSError, ValueError):  # ValueError: a NUL byte
                states.append(None)
        return states

    def _file_state(self, path: bytes, info: os.stat_result, now: int) -> FileState | None:
        modified, changed = info.st_mtime_ns, info.st_ctime_ns  # ctime changes even if mtime was set back
        if now - max(modified, changed) < SETTLED_NS:
            return None
        name = blake2b(self._rules + path, digest_size=16).digest()
        state = b"%b %d %d %d %d" % (name, info.st_size, modified, changed, info.st_ino)
        # Ids of files in one folder are neighbors, so that looking them up reads few pages. Files with the same id
        # replace each other.
        id = crc32(os.path.dirname(path)) << 32 | int.from_bytes(name[:4])
        return FileState(id - 2**63, state)

    def load(self, states: Sequence[FileState | None]) -> list[list[Any] | None]:
        """Return the cached result of each file, or None."""
        ids = ",".join(str(state.id) for state in states if state)
        query = f"SELECT id, checksum, used, result FROM checks WHERE id IN ({ids})"
        rows = self._run(lambda database: database.execute(query).fetchall(), write=False) if ids else None
        cached = {id: row for id, *row in rows or ()}
        results: list[list[Any] | None] = [None] * len(states)
        today, stale = int(time.time()) // _DAY, []
        for i, state in enumerate(states):
            checksum, used, result = cached.get(state.id, (None,) * 3) if state else (None,) * 3
            if state and type(result) is bytes and checksum == _checksum(state.state, result):
                results[i] = json.loads(result)
                if used != today:
                    stale.append((today, state.id))
        self._write("UPDATE checks SET used = ? WHERE id = ?", stale)  # once a day, not in every run
        return results

    def save(self, states: Sequence[FileState | None], results: Sequence[Sequence[Any] | None]) -> None:
        """Cache the results of files that have a state; results are lists for JSON, or None."""
        today, rows = int(time.time()) // _DAY, []
        for state, result in zip(states, results, strict=True):
            if state and result is not None:
                content = json.dumps(result, separators=(",", ":")).encode()
                rows.append((state.id, _checksum(state.state, content), today, content))
        self._write("INSERT OR REPLACE INTO checks VALUES (?, ?, ?, ?)", sorted(rows))
        if rows:
            self._run(_shrink, write=True)

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write all rows or none."""

        def work(database: sqlite3.Connection) -> None:
            with database:
                database.executemany(statement, rows)

        if rows:
            self._run(work, write=True)

    def _run(self, work: Callable[[sqlite3.Connection], Result], *, write: bool) -> Result | None:
        """Run `work` on the database, with a new one if it is damaged; return None if that fails."""
        while self._writable if write else self._readable:
            try:
                self._connection = self._connection or _connect(self.path)
                return work(self._connection)
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # messages may quote damaged text
                log.debug("Cannot use the cache of checks in %s: %s.", self.path, error)
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # higher bits hold details
                damaged = code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
                damaged = damaged or isinstance(error, UnicodeDecodeError)
                if damaged and not self._replaced:
                    self._replaced = True
                    self._close()
                    with suppress(OSError):
                        _delete(self.path.parent, f"{_NAME}*")  # with its journal
                        continue
                # A locked, full or read-only database can still be read.
                self._writable = False
                self._readable = write and not damaged and self._connection is not None
        return None

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def delete_check_cache(folder: Path) -> int:
    """Delete the databases of a folder, and return the number of bytes freed."""
    try:
        return _delete(folder, "checked-*.sqlite*")  # those of other versions too
    except OSError as error:
        raise not_deleted(error) from None


def _delete(folder: Path, pattern: str) -> int:
    """Delete the files of a folder that match a pattern, and return their size in bytes."""
    freed = 0
    for file in folder.glob(pattern):
        with suppress(FileNotFoundError):
            size = file.lstat().st_size
            file.unlink()
            freed += size
    return freed


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database, and create it if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_TIMEOUT)
    try:
        connection.text_factory = bytes  # a flipped bit can turn a blob into text that is not UTF-8
        connection.execute("PRAGMA synchronous = OFF")  # faster; a power cut may damage the database
        connection.execute(_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _shrink(database: sqlite3.Connection) -> None:
    """Delete the least recently used quarter of the rows if the database is too large."""
    size = "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, "
    if database.execute(size + "pragma_page_size").fetchone()[0] > MAX_BYTES:
        with database:
            database.execute(
                "DELETE FROM checks WHERE id IN "
                "(SELECT id FROM checks ORDER BY used LIMIT (SELECT COUNT(*) / 4 + 1 FROM checks))"
            )


def _checksum(state: bytes, content: bytes) -> bytes:
    """Return a checksum of a file's state and result."""
    return blake2b(state + content, digest_size=16).digest()
