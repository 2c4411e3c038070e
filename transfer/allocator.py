"""How the C library keeps the memory that a training step frees."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_KEEP_ALL = 2**31 - 1


def keep_memory(environment: Mapping[str, str] | None = None) -> bool:
    """Let this process keep the memory that it frees, for the next step.

    On a CPU each step of training asks for the same hundreds of megabytes again. glibc takes large blocks from the
    system and gives them back each time, and the system fills every page with zeros anew: a fifth of the time of a
    training, or more (`tests/benchmarks/fine_tuning.py speed`). Whether it does so depends on which threads asked
    first, so that the same training may be fast or slow. Weights are the same either way; the peak of memory grows by
    some percent; `give_back` ends that. Nothing is done under another C library, or where the user has set how memory
    is taken.

    Args:
        environment: variables that are looked at; None takes those of the process.

    Returns:
        Whether it is so from now on.

    Example:
        >>> keep_memory({"MALLOC_MMAP_MAX_": "65536"})
        False
    """
    known = os.environ if environment is None else environment
    chosen = any(name.startswith("MALLOC_") for name in known) or "malloc" in known.get("GLIBC_TUNABLES", "")
    try:
        mallopt = None if chosen else ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return mallopt is not None and all(
        [mallopt(option, value) for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEEP_ALL))]
    )


def give_back() -> bool:
    """Give what this process holds and does not use back to the system, once.

    Returns:
        Whether there was any, and a way to.

    Example:
        give_back()
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
