"""Errors about wrong input, and suggestions for names that do not exist."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
from collections.abc import Iterable, Iterator

log = logging.getLogger(__name__)

DISTRIBUTION = "transfer-cases"
"""The name of this package for pip; `transfer` on PyPI is another project."""


class InputError(ValueError):
    """Wrong input: an argument, option, file or data set that cannot be used.

    The message says what was wrong, what was received, and what to do. The commands print the message alone and exit
    with code 2. Any other exception is a bug, and keeps its traceback.

    Example:
        >>> import transfer
        >>> try:
        ...     transfer.load_data("no/such/folder")
        ... except transfer.InputError as error:
        ...     print("The input is wrong.")
        The input is wrong.
    """


class LostImageError(InputError):
    """An image that was read before, and is gone or changed now."""


def install_hint(extra: str) -> str:
    """Return the command that installs the packages of an extra, from any folder."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def unknown(what: str, name: object, valid: Iterable[str], *, hint: str = "") -> InputError:
    """Return the error for a name that does not exist; the message suggests similar names, or lists some."""
    valid = list(valid)
    suggestions, shown = nearest(str(name), valid), ", ".join(map(repr, valid[:12]))
    if suggestions:
        advice = f"Did you mean {', '.join(map(repr, suggestions))}?"
    else:
        advice = f"Expected one of {shown}{', ...' * (len(valid) > 12)}." if valid else "There are none."
    return InputError(" ".join(filter(None, [f"Unknown {what} {name!r}.", advice, hint])))


def nearest(name: str, valid: Iterable[str], *, most: int = 5) -> list[str]:
    """Return the valid names that are most similar to a name, best first; letter case does not matter."""
    by_lower: dict[str, list[str]] = {}
    for known in valid:
        by_lower.setdefault(known.lower(), []).append(known)
    similar = difflib.get_close_matches(name.lower(), by_lower, n=most)
    return [known for lower in similar for known in by_lower[lower]][:most]


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that led to an error: TensorFlow raises its own errors if Ctrl-C stops its tracing."""
    context = error.__context__
    while context is not None and not isinstance(context, KeyboardInterrupt):
        context = context.__context__
    return context


def one_line(error: Exception, *, most: int = 400) -> str:
    """Return the message of another library's error in one line of at most `most` characters."""
    text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} ..."


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Run an optional step; if it fails, log its error in one sentence, and continue."""
    try:
        yield
    except Exception as error:  # libraries that draw may raise anything, such as MemoryError
        if (interrupt := interrupt_behind(error)) is not None:
            raise interrupt from None
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        log.warning("Left out %s: %s%s", what, kind, one_line(error))
