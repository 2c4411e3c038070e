"""What commands that print and write have in common: how they say what happens, and how they end."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from transfer.common.errors import InputError


def carried_out(work: Callable[[], None], *, stream: Any, stopped: str, level: int = logging.NOTSET) -> int:
    """Do what a command is asked.

    Args:
        work: does it.
        stream: to which the package's log goes meanwhile.
        stopped: what to say after Ctrl-C.
        level: of that log; 0 leaves it as it is.

    Returns:
        The exit code: 0; 2 after bad input, of which standard error has one clear message; 130 after Ctrl-C.

    Example:
        >>> carried_out(lambda: None, stream=sys.stdout, stopped="Stopped.")
        0
    """
    told, above = logging.StreamHandler(stream), logging.getLogger("transfer")
    above.addHandler(told)
    if level:
        above.setLevel(level)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; what matters is in the report
    try:
        work()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{stopped}\n")
        return 130
    finally:
        above.removeHandler(told)
    return 0
