"""Cache compiled networks on disk, so that later runs skip tracing, compilation and the comparison with Keras."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from transfer.common.cache_folder import default_cache_folder, not_deleted
from transfer.common.files import written_whole

LIMIT = 2**30
"""Maximum bytes on disk, about 70 networks like EfficientNet-Lite0. The least recently used ones are deleted first."""

_SUFFIX = ".compiled"
_PROBLEM = "problem.txt"

log = logging.getLogger(__name__)


class CompiledNetwork(NamedTuple):
    """The result of compiling a network and comparing it with Keras."""

    # Compiled parts; each takes the output of the previous one.
    parts: tuple[bytes, ...]
    # Why the network cannot be used, or "".
    problem: str = ""


def key_of(*values: object) -> str:
    """Return the key of a compiled network from all that its content depends on."""
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()


def compiled_folder(cache: Path | None = None) -> Path:
    """Return the folder of compiled networks in a cache folder, or in the default one."""
    return (default_cache_folder() if cache is None else cache) / "compiled"


def read(key: str) -> CompiledNetwork | None:
    """Return a compiled network; None if there is none, or if its file is damaged."""
    path = compiled_folder() / f"{key}{_SUFFIX}"
    try:
        with zipfile.ZipFile(path) as file:  # reading compares checksums
            content = {name: file.read(name) for name in sorted(file.namelist())}
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        log.debug("Cannot use %s: %s. The network is compiled again.", path, error)
        return None
    problem = content.pop(_PROBLEM, b"").decode(errors="replace")
    return CompiledNetwork(tuple(content.values()), problem)


def write(key: str, network: CompiledNetwork) -> None:
    """Write a compiled network, unless the disk is full or not writable."""
    size = sum(map(len, network.parts))
    if size > LIMIT // 4:
        return
    folder = compiled_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete_oldest(folder, LIMIT - size)
        with written_whole(folder / f"{key}{_SUFFIX}") as partial, zipfile.ZipFile(partial, "w") as file:
            if network.problem:
                file.writestr(_PROBLEM, network.problem)
            for number, part in enumerate(network.parts):
                file.writestr(f"part-{number}", part)
    except OSError as error:
        log.debug("The compiled network is not cached in %s: %s.", folder, error)


def sizes(cache: Path) -> list[int]:
    """Return the size in bytes of each compiled network in a cache folder."""
    return [size for _, size, _ in _files(compiled_folder(cache))]


def delete_all(cache: Path) -> int:
    """Delete the compiled networks of a cache folder, and return the number of bytes freed."""
    try:
        return _delete(_files(compiled_folder(cache)))
    except OSError as error:
        raise not_deleted(error) from None


def _delete_oldest(folder: Path, limit: int) -> None:
    """Delete the least recently used networks until the rest has at most `limit` bytes."""
    files = sorted(_files(folder))
    total, oldest = sum(size for _, size, _ in files), []
    while files and total > limit:
        oldest.append(files.pop(0))
        total -= oldest[-1][1]
    _delete(oldest)


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Return the time of the last use, the size, and the path of each file, including files that a killed run left."""
    found = []
    for path in folder.glob(f"*{_SUFFIX}*"):
        with suppress(FileNotFoundError):
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    return found


def _delete(files: Sequence[tuple[float, int, Path]]) -> int:
    for _, _, path in files:
        path.unlink(missing_ok=True)
    return sum(size for _, size, _ in files)
