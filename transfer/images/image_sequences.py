"""Sequences of images that are read when they are indexed, by several threads at once."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from array import array
from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import numpy as np

from transfer.common.errors import InputError


class LazySequence(Sequence[Any]):
    """A sequence that calls a function to read an item."""

    def __init__(self, length: int, read: Callable[[int], Any]) -> None:
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: Any) -> Any:
        return self._read(range(self._length)[index(i)])


class TemporaryImages(Sequence[Any]):
    """Images in a temporary file without a name, which is deleted with the object or the process."""

    def __init__(self) -> None:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, file.close)
        self._descriptor = file.fileno()
        self._ends = array("q", [0])
        self._shapes: list[tuple[int, ...] | None] = []  # None for encoded images
        self._shared_shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def append(self, image: bytes | np.ndarray) -> int:
        """Write one image, encoded or as a uint8 array, to the file and return its index."""
        shape = None if isinstance(image, bytes) else image.shape
        rest = memoryview(image if isinstance(image, bytes) else image.tobytes())
        with self._lock:
            end = self._ends[-1]
            try:
                while rest:
                    written = os.pwrite(self._descriptor, rest, end)
                    rest, end = rest[written:], end + written
            except OSError as error:
                raise InputError(
                    f"Cannot write a temporary copy of the images to {tempfile.gettempdir()}: "
                    f"{(error.strerror or str(error)).lower()}, after {end / 1e9:.1f} GB. Set the environment "
                    "variable TMPDIR to a folder on a larger disk."
                ) from error
            self._shapes.append(shape and self._shared_shapes.setdefault(shape, shape))
            self._ends.append(end)
            return len(self) - 1

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        i = range(len(self))[index(i)]
        content = os.pread(self._descriptor, self._ends[i + 1] - self._ends[i], self._ends[i])
        shape = self._shapes[i]
        return content if shape is None else np.frombuffer(content, "uint8").reshape(shape)
