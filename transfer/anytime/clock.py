"""The wall clock of a run and its time budget."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Clock:
    """The time since the start of a command, and the budget of the whole command in seconds."""

    # None sets no limit.
    budget: float | None = None
    # The start of the command, in seconds of `time.perf_counter`.
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the start of the command."""
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds until the end of the budget; below 0 after it, infinite without a budget."""
        return math.inf if self.budget is None else self.budget - self.seconds
