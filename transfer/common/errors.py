"""What every message about bad input has in common: one class, one way to suggest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the caller gave is wrong; the message says how to mend it.

    The commands print the message alone and leave with exit code 2; any other
    exception is a fault of ours and keeps its traceback.
    """


def unknown(what: str, name: object, valid: Iterable[str], *, hint: str = "") -> InputError:
    """Make the error for a name that does not exist, with the nearest names first."""
    valid = list(valid)
    near = nearest(str(name), valid)
    if near:
        help_ = "Did you mean " + ", ".join(repr(n) for n in near) + "?"
    else:
        shown = ", ".join(repr(n) for n in valid[:12])
        help_ = (
            f"Expected one of {shown}{', ...' if len(valid) > 12 else ''}." if valid else "There are none."
        )
    return InputError(" ".join(filter(None, [f"Unknown {what} {name!r}.", help_, hint])))


def nearest(name: str, valid: Iterable[str], *, most: int = 5) -> list[str]:
    """Give the valid names that look most like `name`, best first."""
    by_lower: dict[str, list[str]] = {}
    for v in valid:
        by_lower.setdefault(v.lower(), []).append(v)
    near = difflib.get_close_matches(name.lower(), by_lower, n=most)
    return [v for n in near for v in by_lower[n]][:most]


def one_line(error: Exception, *, most: int = 400) -> str:
    """Give the words of somebody else's error in one line, for a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} ..."


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 image" or "2,000 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
