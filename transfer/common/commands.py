"""What commands that print and write have in common: how they say what happens, and how they end."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from transfer.common.errors import InputError


def run_command(work: Callable[[], None], *, stream: Any, stopped: str, level: int = logging.NOTSET) -> int:
    """Do what a command is asked."""
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
