"""Text for messages, reports and pages."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from transfer.common.errors import InputError


def format_duration(seconds: float | None) -> str:
    """Return a rounded duration, such as "0.4 s", "8.2 s", "42 s", "1.7 min", "12 min" or "2.5 h"."""
    if seconds is None:
        return "unknown"
    if seconds < 59.5:
        value, unit = seconds, "s"
    elif seconds < 90 * 60:
        value, unit = seconds / 60, "min"
    else:
        value, unit = seconds / 3600, "h"
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 image" or "2,000 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def number(value: float) -> str:
    """Return a number with at most four significant digits, such as "1.235", "-0.01235" or "123,500"."""
    return f"{float(f'{value:.4g}'):,.10g}" if abs(value) >= 1e-4 or not value else f"{value:.4g}"


def shorten(name: str, most: int = 24) -> str:
    """Return a name of at most `most` letters, without the middle of a longer one."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[half + 1 - most :]}"


def shorten_all(names: Sequence[str], most: int = 24) -> list[str]:
    """Shorten names, but leave more than `most` letters where different names would look the same."""
    while len({shorten(name, most) for name in names}) < len(set(names)):
        most += 2
    return [shorten(name, most) for name in names]


def wrapped(text: str, most: int) -> str:
    """Wrap the lines of a text at `most` letters, also inside words that are longer."""
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, most) or [""])


def seconds_of(text: str | None) -> float | None:
    """Return the seconds of a time such as "90s", "5m" or "1h"; None stays None."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600}.get(str(text)[-1:].lower())
    try:
        seconds = float(str(text)[:-1] if unit else text) * (unit or 1)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"Expected a time such as 90s, 5m or 1h, above 0. Received: {text!r}.")
    return seconds
