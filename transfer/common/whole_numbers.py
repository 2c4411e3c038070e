"""Whole numbers among the arguments of users."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def at_least(least: int, number: Any) -> bool:
    """Return whether a value is a whole number, also of NumPy, and not below the least."""
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= least
