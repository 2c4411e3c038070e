"""The output streams of the process: closed pipes, missing streams, other encodings."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TextIO


class Main(Protocol):
    """The function of a command."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command with these arguments, or those of the process; return the exit code."""


def command(main: Main) -> Main:
    """Decorate the function of a command, so that it runs with any output streams, or without them."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        with usable_streams():
            code = 0
            try:
                code = main(arguments)
                sys.stdout.flush()
            except OSError as error:
                if not _is_of_stdout(error):
                    raise
                _discard(sys.stdout)
                if not isinstance(error, BrokenPipeError):  # such as a full disk
                    reason = (error.strerror or str(error)).lower()
                    print_text(f"Cannot write to standard output: {reason}.\n", sys.stderr)
                    code = code or 2
            return code

    return run


def _is_of_stdout(error: OSError) -> bool:
    """Return whether an error comes from standard output: it has no file name, and writing fails again."""
    if isinstance(error, BrokenPipeError):
        return True
    if error.filename is not None:
        return False
    try:
        sys.stdout.write("\n")  # without a buffer (PYTHONUNBUFFERED), there is nothing left to flush
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def _discard(stream: TextIO) -> None:
    """Discard the buffer of a stream, and all later output."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Lasting:
    """A stream whose errors do not stop the program: after an error, it discards text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or discard it."""
        with self._errors_discarded():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write the text in the buffer, or discard it."""
        with self._errors_discarded():
            self._stream.flush()

    @contextlib.contextmanager
    def _errors_discarded(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # a closed pipe or terminal, or a full disk
            _discard(self._stream)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Keep a program running within a `with` block if its terminal, or the reader of its pipe, is gone."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Lasting(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_text(text: str, stream: TextIO | None = None) -> None:
    """Print to a stream, by default standard output; do nothing if its reader, such as `head`, has closed the pipe."""
    stream = sys.stdout if stream is None else stream
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _discard(stream)


class LogHandler(logging.StreamHandler):
    """A handler that keeps the program running if the reader of the log has closed the pipe, or the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Discard the rest of the log after an error of the stream."""
        if isinstance(sys.exc_info()[1], OSError):
            _discard(self.stream)
        else:
            super().handleError(record)


def progress_bar(*, disable: bool | None = False, **options: Any) -> Any:
    """Return a progress bar of tqdm; it is hidden in a program without standard error."""
    from tqdm.auto import tqdm

    return tqdm(disable=True if sys.stderr is None else disable, **options)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Give the process streams that take every text, within a `with` block."""
    # Python sets a stream to None in a program without a console (pythonw, services) or with closed descriptors.
    # The next open file takes a closed descriptor: TensorFlow would write its log into that file.
    _open_standard_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            stream = getattr(sys, name)
            if stream is None or stream.closed:
                setattr(sys, name, opened.enter_context(open(os.devnull, mode, encoding="utf-8")))
            elif mode == "w" and hasattr(
                stream, "reconfigure"
            ):  # the streams of notebooks and tests take every text
                stream.reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = before


def _open_standard_descriptors() -> None:
    """Open the null device under the descriptors 0, 1 and 2 that are closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def writes_unicode(stream: TextIO) -> bool:
    """Return whether a stream can write every character as it is."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "").replace("_", "").startswith("utf")


@contextlib.contextmanager
def discarded(*descriptors: int) -> Iterator[None]:
    """Discard all output to file descriptors (1, 2), also that of libraries in C++, within a `with` block."""
    _open_standard_descriptors()
    _flush()
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


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, broken or None
            stream.flush()


@contextlib.contextmanager
def quiet(name: str, level: int = logging.WARNING) -> Iterator[None]:
    """Log only warnings of a package, or only messages of another level, within a `with` block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
