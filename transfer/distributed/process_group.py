"""Several processes that train one model together: who is who, and what they tell each other.

Every worker runs the same program. What costs is shared: the forward pass, the test, each batch. What decides is
decided by the chief, the first worker, and told to the others; it alone writes.
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
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.cluster import listens

PIECE = 2**26
"""Bytes that are exchanged at a time."""

LEAVING = 30.0
"""Seconds that the chief waits at the end for the others to leave."""


@dataclass(frozen=True)
class BatchPart:
    """Which part of each batch a process reads, where several replicas of a model train on one batch
    together."""

    # Number of the process's first replica.
    first: int
    replicas: int
    of: int
    # Batches are all of one size, the last filled up with images that count nothing.
    whole: bool = False

    def undivided(self) -> BatchPart | None:
        """The whole of each batch, filled up where it would be."""
        return replace(self, first=0, of=1) if self.whole else None

    def of_filled(self, rows: Any) -> Any:
        """Split rows of a batch that is filled up, images or whatever belongs to them."""
        size = len(rows) // self.of
        return rows[self.first * size : (self.first + 1) * size]

    def of_batch(self, positions: np.ndarray) -> list[np.ndarray]:
        """Split a batch to train on: nearly equal parts; where there are fewer images than replicas, all
        of them for each, so that none sees nothing, and means over the replicas stay what they are."""
        if len(positions) < self.of:
            return [positions] * self.replicas
        return np.array_split(positions, self.of)[self.first : self.first + self.replicas]

    def of_all(self, positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Split images, not fewer than replicas, to test on: each once, in as many batches for each
        replica."""
        batch_parts = np.array_split(positions, self.of)
        steps = -(-len(batch_parts[0]) // batch_size)
        own = [
            np.array_split(batch_part, steps)
            for batch_part in batch_parts[self.first : self.first + self.replicas]
        ]
        return [part for step in zip(*own, strict=True) for part in step]


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as one of them sees it."""

    # Its own number.
    index: int = 0
    # Of all of them, in the order of their numbers.
    addresses: tuple[str, ...] = ("localhost",)
    all_gather: Callable[[np.ndarray], np.ndarray] = np.asarray

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this one decides and writes."""
        return self.index == 0

    def part(self, count: int) -> np.ndarray:
        """Give this worker's part of the positions from 0 to a count, as nearly equal as can be."""
        return np.array_split(np.arange(count), self.count)[self.index]

    def rows(self, own: np.ndarray) -> np.ndarray:
        """Join the rows of all workers, in the order of their numbers."""
        if self.count == 1:
            return own
        step = max(1, PIECE // (own.itemsize * max(1, int(np.prod(own.shape[1:])))))
        counts = self.all_gather(np.array([len(own)], "int32"))
        if not counts.any():  # TensorFlow dies of it
            return own
        found: list[list[np.ndarray]] = [[] for _ in range(self.count)]
        for first in range(0, int(counts.max()), step):
            sizes = np.clip(counts - first, 0, step)
            joined = self.all_gather(np.ascontiguousarray(own[first : first + step]))
            for worker, piece in enumerate(np.split(joined, np.cumsum(sizes)[:-1])):
                found[worker].append(piece)
        return np.concatenate([piece for pieces in found for piece in pieces])

    def tell(self, content: bytes) -> list[bytes]:
        """Give what each worker says, in the order of their numbers."""
        if self.count == 1:
            return [content]
        sizes = self.all_gather(np.array([len(content)], "int32"))
        words = self.rows(np.frombuffer(content + bytes(-len(content) % 4), "int32"))
        parts = np.split(words, np.cumsum(-(-sizes // 4))[:-1])
        return [part.tobytes()[:size] for part, size in zip(parts, sizes, strict=True)]

    def arrays(self, of_chief: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Let the chief compute arrays, and give them to all."""
        if self.count == 1:
            return dict(of_chief())
        file = io.BytesIO()
        if self.is_chief:
            np.savez(file, **of_chief())  # type: ignore[arg-type]
        with np.load(io.BytesIO(self.tell(file.getvalue())[0]), allow_pickle=False) as content:
            return {name: content[name] for name in content.files}

    def decision(self, of_chief: Callable[[], Any]) -> Any:
        """Let the chief decide something, for JSON, and tell all."""
        if self.count == 1:
            return of_chief()
        said: dict[str, Any] = {}
        if self.is_chief:
            try:
                said = {"value": of_chief()}
            except InputError as error:
                said = {"error": str(error)}
        said = json.loads(self.tell(json.dumps(said).encode())[0])
        if "error" in said:
            raise InputError(said["error"])
        return said["value"]

    def leave_together(self) -> None:
        """Wait for the others at the end: nobody leaves before the chief has written, and the chief,
        through which all exchanges go, leaves last."""
        try:
            self.tell(b"")
        except Exception as error:
            if self.is_chief and lost(error):  # all is written
                return
            raise
        deadline = time.monotonic() + LEAVING
        for address in self.addresses[1:] if self.is_chief else ():
            while listens(address) and time.monotonic() < deadline:
                time.sleep(0.1)

    def agree(self, about: Mapping[str, Any]) -> None:
        """Refuse to work together where something is not the same everywhere."""
        said = [json.loads(content) for content in self.tell(json.dumps(dict(about)).encode())]
        for number, other in enumerate(said[1:], 1):
            names = [n for n in {**said[0], **other} if said[0].get(n) != other.get(n)]
            if names:
                shown = "; ".join(
                    f"{n} is {said[0].get(n)!r} on the first, {other.get(n)!r} on this" for n in names
                )
                raise InputError(
                    f"Expected all workers to be started alike. Worker {number} ({self.addresses[number]}) is not: "
                    f"{shown}."
                )


_group = ProcessGroup()


def current_group() -> ProcessGroup:
    """Give the process group of this process: by itself, unless a strategy of several workers was made."""
    return _group


def join(new: ProcessGroup) -> None:
    """Make this process one of several, from now on."""
    global _group
    _group = new


def versions() -> dict[str, str]:
    """Say which versions this process runs of what its results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in ("transfer", "keras", "tensorflow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def lost(error: BaseException) -> str | None:
    """Say which worker is gone, where that is what an error means."""
    if current_group().count == 1 or not _about_peers(error):
        return None
    text = str(error)
    numbers = {int(n) for n in re.findall(r"/job:worker/(?:replica:0/)?task:(\d+)", text)}
    unhealthy = re.search(r"unhealthy.*?\n((?:\s*/job:\S+\n?)+)", text)
    if unhealthy:
        numbers = {int(n) for n in re.findall(r"task:(\d+)", unhealthy.group(1))}
    gone = sorted(n for n in numbers if n != current_group().index and n < current_group().count)
    if len(gone) != 1 and current_group().count == 2:
        gone = [1 - current_group().index]
    if not gone:
        return "Another worker is gone."
    named = ", ".join(f"{n} ({current_group().addresses[n]})" for n in gone)
    return f"Worker {named} is gone." if len(gone) == 1 else f"Workers {named} are gone."


def _about_peers(error: BaseException) -> bool:
    """Whether TensorFlow gave up because it cannot reach another process."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(error, tf.errors.OpError) and bool(_GONE.search(str(error)))


_GONE = re.compile(
    r"unhealthy|heartbeat|recvmsg|[Cc]onnection (reset|refused)|[Ss]ocket closed|failed to connect|"
    r"[Ii]ncarnation|restarted"
)


def start_again() -> int:
    """Replace this process by one with the same command, which waits for the others anew."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, 2**16)  # the port too, which the new process needs
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
