"""An option of the C library glibc that saves time in training on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_NEVER = 2**31 - 1


@contextlib.contextmanager
def kept_memory(environment: Mapping[str, str] | None = None) -> Iterator[bool]:
    """Let the process keep freed memory for its next allocations, within a `with` block; yield whether it does."""
    # By default glibc returns large blocks to the system at once: each training step gets new pages, which the system
    # fills with zeros. This setting affects the whole process, so only a command may change it, not a library.
    library = None if _set_by_user(os.environ if environment is None else environment) else _glibc()
    kept = library is not None and bool(library.mallopt(_MMAP_MAX, 0))
    if library is not None and kept:
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield kept
    finally:
        if library is not None and kept:
            library.malloc_trim(0)


def _set_by_user(environment: Mapping[str, str]) -> bool:
    """Return whether an environment variable already sets options of malloc."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    return "malloc" in tunables or any(name.startswith("MALLOC_") for name in environment)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc, else None (macOS, Windows, musl)."""
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (AttributeError, OSError, TypeError):
        return None
