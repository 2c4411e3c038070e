"""Nominal speeds of this machine, remembered between runs, so that equal commands make equal plans."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from transfer.common.cache_folder import default_cache_folder
from transfer.common.errors import InputError
from transfer.common.files import write_text

FASTER = 0.7
"""A new measurement replaces a remembered time only below this fraction of it. Other work slows measurements down, but
nothing speeds them up."""

TIMES = 1e-9, 1e4
"""Shortest and longest time per image in seconds that is believed."""

_NAME = "speeds.json"


class Speeds:
    """Nominal times in seconds by kind of work, network and image size, in a file of the user's cache folder."""

    def __init__(self, folder: Path | None = None, machine: str = "") -> None:
        self._path = (default_cache_folder() if folder is None else folder) / _NAME
        self._machine = machine or this_machine()
        self._all: dict[str, dict[str, float]] = {}
        with contextlib.suppress(OSError, ValueError):
            read = json.loads(self._path.read_text(encoding="utf-8"))
            self._all = (
                {name: _valid(times) for name, times in read.items()} if isinstance(read, dict) else {}
            )
        self._times = self._all.get(self._machine, {})

    def find(self, work: str, network: str, image_size: int) -> float | None:
        """Return the remembered time, scaled by the number of pixels from another image size; None if none is known."""
        parts = (name.rpartition(" ") for name in self._times)
        sizes = {int(size) for start, _, size in parts if start == f"{work} {network}"}
        # Small images take more time per pixel, so scaling up from them gives no time that is too short.
        usable = {size for size in sizes if size <= image_size} or {min(sizes, default=0)} - {0}
        times = (self._times[_key(work, network, size)] * (image_size / size) ** 2 for size in usable)
        return min(times, default=None)

    def measured(
        self, seconds: float | None, work: str, network: str, image_size: int, *, nominal: float | None = None
    ) -> None:
        """Remember a measured time if none is known, or if it is much shorter than the one that plans use."""
        known = self.find(work, network, image_size) if nominal is None else nominal
        if seconds and seconds > 0 and (known is None or seconds < FASTER * known):
            self._times[_key(work, network, image_size)] = float(f"{seconds:.4g}")

    def save(self) -> None:
        """Write the times; a folder that cannot be written is ignored."""
        text = json.dumps({**self._all, self._machine: dict(sorted(self._times.items()))}, indent=1)
        with contextlib.suppress(OSError, InputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, text + "\n")


def _valid(times: Any) -> dict[str, float]:
    """Return the times of a machine without those of a damaged file: of no image size, or not of `TIMES`."""
    known = times if isinstance(times, dict) else {}
    return {
        name: float(seconds)
        for name, seconds in known.items()
        if isinstance(seconds, int | float)
        and TIMES[0] <= seconds <= TIMES[1]
        and (size := name.rpartition(" ")[2]).isdecimal()
        and int(size) > 0
    }


def _key(work: str, network: str, image_size: int) -> str:
    return f"{work} {network} {image_size}"


def this_machine() -> str:
    """Return a name for machines of equal speed: the processor, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} {platform.machine()} {cores} cores"
