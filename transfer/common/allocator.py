"""How the C library keeps the memory that a training step frees."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_KEEP_ALL = 2**31 - 1


@contextlib.contextmanager
def kept_memory(environment: Mapping[str, str] | None = None) -> Iterator[bool]:
    """Let the process keep the memory that a training step frees, for the next step."""
    library = None if _chosen(os.environ if environment is None else environment) else _library()
    kept = library is not None and bool(library.mallopt(_MMAP_MAX, 0))
    if library is not None and kept:
        library.mallopt(_TRIM_THRESHOLD, _KEEP_ALL)
    try:
        yield kept
    finally:
        if library is not None and kept:
            library.malloc_trim(0)


def _chosen(environment: Mapping[str, str]) -> bool:
    """Whether the user has said how memory is to be taken."""
    return any(name.startswith("MALLOC_") for name in environment) or "malloc" in environment.get(
        "GLIBC_TUNABLES", ""
    )


def _library() -> Any:
    """The C library, where it is glibc."""
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (AttributeError, OSError, TypeError):  # macOS and musl, Windows
        return None
