"""Several processes that train one model together: their ranks, data exchange, and lost workers.

Every worker runs the same program. The workers divide the forward pass, the evaluation and each batch. The chief, which
is the first worker, makes the decisions, sends them to the others, and is the only one that writes files.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NoReturn, TypeVar

import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.cluster import is_listening

PIECE = 2**26
"""Maximum number of bytes that workers exchange in one step."""

LEAVING = 30.0
"""Seconds that the chief waits at the end for the other workers to exit."""

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, and the number of this one among them."""

    index: int = 0
    addresses: tuple[str, ...] = ("localhost",)  # host:port, in the order of the workers
    all_gather: Callable[[np.ndarray], np.ndarray] = (
        np.asarray
    )  # joins arrays of different lengths along axis 0
    strategy: Any = None  # TensorFlow's strategy, which a process can create only once

    @property
    def count(self) -> int:
        """The number of workers."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this worker decides and writes."""
        return self.index == 0

    def own_part(self, count: int) -> np.ndarray:
        """Return this worker's part of the positions 0 to `count` - 1; parts differ in size by one at most."""
        return np.array_split(np.arange(count), self.count)[self.index]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Join the rows of all workers, in the order of the workers."""
        if self.count == 1:
            return rows
        step = max(1, PIECE // (rows.itemsize * max(1, int(np.prod(rows.shape[1:])))))
        counts = self.all_gather(np.array([len(rows)], "int32"))
        if not counts.any():  # TensorFlow crashes if no worker has a row
            return rows
        gathered: list[list[np.ndarray]] = [[] for _ in range(self.count)]
        for first in range(0, int(counts.max()), step):
            sizes = np.clip(counts - first, 0, step)
            joined = self.all_gather(np.ascontiguousarray(rows[first : first + step]))
            for worker, piece in enumerate(np.split(joined, np.cumsum(sizes)[:-1])):
                gathered[worker].append(piece)
        return np.concatenate([piece for pieces in gathered for piece in pieces])

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Return the contents of all workers, in the order of the workers."""
        if self.count == 1:
            return [content]
        sizes = self.all_gather(np.array([len(content)], "int32"))
        words = self.gather(np.frombuffer(content + bytes(-len(content) % 4), "int32"))
        parts = np.split(words, np.cumsum(-(-sizes // 4))[:-1])
        return [part.tobytes()[:size] for part, size in zip(parts, sizes, strict=True)]

    def broadcast_arrays(self, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the arrays that the chief computes; the other workers compute nothing."""
        if self.count == 1:
            return dict(compute())
        file = io.BytesIO()
        if self.is_chief:
            np.savez(file, **compute())  # type: ignore[arg-type]
        with np.load(io.BytesIO(self.gather_bytes(file.getvalue())[0]), allow_pickle=False) as content:
            return {name: content[name] for name in content.files}

    def broadcast(self, decide: Callable[[], T]) -> T:
        """Return the JSON value that the chief computes; raise its `InputError` on all workers."""
        if self.count == 1:
            return decide()
        message: dict[str, T | str] = {}
        if self.is_chief:
            try:
                message = {"value": decide()}
            except InputError as error:
                message = {"error": str(error)}
        received = json.loads(self.gather_bytes(json.dumps(message).encode())[0])
        if "error" in received:
            raise InputError(received["error"])
        return received["value"]

    def leave_together(self) -> None:
        """Wait at the end until the chief has written its files; the chief exits last."""
        try:
            self.gather_bytes(b"")
        except Exception as error:
            if self.is_chief and describe_lost_workers(error):  # the chief has written everything
                return
            raise
        deadline = time.monotonic() + LEAVING
        for address in self.addresses[1:] if self.is_chief else ():  # all exchanges go through the chief
            while is_listening(address) and time.monotonic() < deadline:
                time.sleep(0.1)

    def require_equal(self, options: Mapping[str, object]) -> None:
        """Raise an `InputError` if an option or version is not the same on all workers."""
        first, *others = [json.loads(text) for text in self.gather_bytes(json.dumps(dict(options)).encode())]
        for number, other in enumerate(others, 1):
            names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
            if names:
                shown = "; ".join(
                    f"{n} is {first.get(n)!r} on worker 0, {other.get(n)!r} here" for n in names
                )
                raise InputError(
                    "Expected the same options and versions on all workers. "
                    f"Received from worker {number} ({self.addresses[number]}): {shown}."
                )


_group = ProcessGroup()


def current_group() -> ProcessGroup:
    """Return this process's group: itself alone, unless a strategy of several workers was made."""
    return _group


def set_group(group: ProcessGroup) -> None:
    """Make this process one of several workers, until it ends."""
    global _group
    _group = group


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in ("transfer", "keras", "tensorflow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# TensorFlow has no error class for a lost process: only the message shows it.
_LOST = re.compile(
    r"unhealthy|heartbeat|recvmsg|[Cc]onnection (reset|refused)|[Ss]ocket closed|failed to connect|"
    r"[Ii]ncarnation|restarted"
)


def describe_lost_workers(error: BaseException) -> str | None:
    """Return a sentence about the lost workers, or None if an error has another cause."""
    group, tf, text = current_group(), sys.modules.get("tensorflow"), str(error)
    if group.count == 1 or tf is None or not isinstance(error, tf.errors.OpError) or not _LOST.search(text):
        return None
    unhealthy = re.search(r"unhealthy.*?\n((?:\s*/job:\S+\n?)+)", text)
    if unhealthy:
        numbers = re.findall(r"task:(\d+)", unhealthy.group(1))
    else:
        numbers = re.findall(r"/job:worker/(?:replica:0/)?task:(\d+)", text)
    lost = sorted({int(n) for n in numbers} & set(range(group.count)) - {group.index})
    if len(lost) != 1 and group.count == 2:
        lost = [1 - group.index]
    if not lost:
        return "The connection to another worker was lost."
    shown = ", ".join(f"{n} ({group.addresses[n]})" for n in lost)
    return f"Worker {shown} was lost." if len(lost) == 1 else f"Workers {shown} were lost."


def restart_process() -> NoReturn:
    """Replace this process by a new one with the same command line, which waits for the other workers again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, 2**16)  # the new process needs the port
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
