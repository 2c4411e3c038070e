"""The frame of a command: its log, its exit code, and its messages for errors."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

from transfer.common import streams
from transfer.common.errors import InputError


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a model with custom layers, and for one without class names."""
    names = "comma-separated class names in the order of the outputs, for a model file that has none"
    parser.add_argument("--class-names", type=lambda text: text.split(","), metavar="A,B", help=names)
    text = "Python module or .py file that defines the custom layers of the run; its code is run"
    parser.add_argument("--custom-objects", metavar="MODULE", help=text)


def run_command(
    work: Callable[[], None], *, stream: TextIO, stopped: str, level: int = logging.NOTSET
) -> int:
    """Run a command with its log on `stream`; return 0, 2 for an `InputError`, or 130 for Ctrl-C."""
    handler, log = streams.LogHandler(stream), logging.getLogger("transfer")
    log.addHandler(handler)
    if level:
        log.setLevel(level)
    # Pillow's warnings do not mention the file. The data report does.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        work()
    except InputError as error:
        streams.print_text(f"{error}\n", sys.stderr)
        return 2
    except KeyboardInterrupt:
        streams.print_text(f"{stopped}\n", sys.stderr)
        return 130
    finally:
        log.removeHandler(handler)
    return 0


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP (a closed terminal) into KeyboardInterrupt, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        error = KeyboardInterrupt()
        error.signal = number  # type: ignore[attr-defined]
        raise error

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait until the end of a `with` block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}
    held: list[int] = []
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in held[:1]:
        before[number](number, None)
