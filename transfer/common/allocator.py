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
    """Let the process keep the memory that a training step frees, for the next step.

    On a CPU each step asks for the same hundreds of megabytes again. glibc takes large blocks from the system and gives
    them back each time, and the system fills every page with zeros anew: a fifth of the time of a training, or more
    (`tests/benchmarks/fine_tuning.py speed`). Whether it does so depends on which threads asked first, so that the same
    training may be fast or slow. Weights are the same either way. What is free at the end goes back at once; the
    process keeps memory from then on too. Nothing is done under another C library, or where the user has set how memory
    is taken.

    Args:
        environment: variables that are looked at; None takes those of the process.

    Yields:
        Whether memory is kept.

    Example:
        >>> with kept_memory({"MALLOC_MMAP_MAX_": "65536"}) as kept:
        ...     kept
        False
    """
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
