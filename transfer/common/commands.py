"""The frame of a command: its log, its exit code, and its messages for errors."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import TextIO

from transfer.common.errors import InputError


def run_command(
    work: Callable[[], None], *, stream: TextIO, stopped: str, level: int = logging.NOTSET
) -> int:
    """Run a command with its log on `stream`; return 0, 2 for an `InputError`, or 130 for Ctrl-C."""
    handler, log = logging.StreamHandler(stream), logging.getLogger("transfer")
    log.addHandler(handler)
    if level:
        log.setLevel(level)
    # Pillow's warnings do not mention the file. The data report does.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        work()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{stopped}\n")
        return 130
    finally:
        log.removeHandler(handler)
    return 0
