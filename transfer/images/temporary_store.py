"""Images put aside on disk: what can be read only once becomes a sequence, and memory stays small."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from array import array
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from transfer.common.errors import InputError


class TemporaryStore(Sequence[Any]):
    """Images in a temporary file that has no name, and is gone with the object or the process."""

    def __init__(self) -> None:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, file.close)
        self._place = file.fileno()
        self._ends = array("q")
        self._shapes: list[tuple[int, ...] | None] = []  # None of encoded images
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def append(self, image: bytes | np.ndarray) -> int:
        """Put one image aside."""
        shape = None if isinstance(image, bytes) else image.shape
        content = image if isinstance(image, bytes) else image.tobytes()
        with self._lock:
            start = self._ends[-1] if self._ends else 0
            self._write(content, start)
            self._shapes.append(None if shape is None else self._known.setdefault(shape, shape))
            self._ends.append(start + len(content))
            return len(self._ends) - 1

    def _write(self, content: bytes, start: int) -> None:
        rest = memoryview(content)
        try:
            while rest:
                written = os.pwrite(self._place, rest, start)
                rest, start = rest[written:], start + written
        except OSError as error:
            raise InputError(
                f"Expected room for a copy of the images in {tempfile.gettempdir()}. Received: "
                f"{(error.strerror or str(error)).lower()}, after {start / 1e9:.1f} GB. Set the environment variable "
                "TMPDIR to a folder on a larger disk."
            ) from error

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        i = index(i)
        i += len(self) if i < 0 else 0
        if not 0 <= i < len(self):
            raise IndexError(f"{i} of {len(self)} images")
        start = self._ends[i - 1] if i else 0
        content = os.pread(self._place, self._ends[i] - start, start)
        shape = self._shapes[i]
        return content if shape is None else np.frombuffer(content, "uint8").reshape(shape)
