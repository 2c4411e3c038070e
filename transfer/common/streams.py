"""The output streams of the process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def discarded(*descriptors: int) -> Iterator[None]:
    """Discard all output to file descriptors (1, 2), also that of libraries in C++, within a `with` block."""
    sys.stdout.flush()
    sys.stderr.flush()
    copies, null = [os.dup(number) for number in descriptors], os.open(os.devnull, os.O_WRONLY)
    try:
        for number in descriptors:
            os.dup2(null, number)
        yield
    finally:
        for number, copy in zip(descriptors, copies, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)
