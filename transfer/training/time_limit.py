"""End a training at a time limit, and tell its schedule how many steps fit before."""

from __future__ import annotations

import logging
import math
import time
from numbers import Real
from typing import Any

import keras

from transfer.common.errors import InputError
from transfer.distributed.process_group import current_group

logger = logging.getLogger(__name__)


class TimeLimit:
    """The time that a call of `fit` may take, from the creation of this object on."""

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 < seconds < math.inf:
            raise InputError(
                f"Expected time_limit as seconds above 0, or None for no limit. Received: {seconds!r}."
            )
        if current_group().count > 1:
            raise InputError(
                f"Expected no time_limit with several workers, whose clocks differ. Received: {seconds!r} with "
                f"{current_group().count} workers. Leave it out, and set epochs."
            )
        self.seconds: float = float(seconds)
        self._end: float = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds left; below 0 after the limit."""
        return self._end - time.monotonic()


class StopInTime(keras.callbacks.Callback):
    """Stop a phase of a training in time for its last validation."""

    def __init__(
        self, limit: TimeLimit, *, epochs: int, per_epoch: int, validation_steps: float, start: int = 0
    ) -> None:
        super().__init__()
        # `start` steps were taken before. `validation_steps` is the time of a validation in training steps; it is used
        # until a validation was measured.
        self.limit, self.epochs, self.per_epoch, self.step = limit, epochs, per_epoch, start
        self._validation_steps, self._validation = validation_steps, 0.0  # the latter in seconds
        self._first: tuple[int, float] | None = (
            None  # steps taken and seconds left after the first, which compiles
        )
        self._begin = 0, limit.left  # number in the epoch and seconds left before the last step
        self._end = limit.left  # seconds left after the last step
        self._stopped = False

    @property
    def planned(self) -> float:
        """The number of steps of the phase, or of those that fit, by the time of the steps so far."""
        steps = self.epochs * self.per_epoch
        if self._first is None or self.step == self._first[0]:
            return steps
        first, left = self._first
        used = max(1e-9, left - self.limit.left)
        return min(steps, first + (self.step - first) * max(0.0, left - self._validation) / used)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the time."""
        self._begin = batch, self.limit.left

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop if there is no time for another step and the validation."""
        self.step += batch - self._begin[0] + 1
        self._end = self.limit.left
        seconds = self._begin[1] - self._end
        if self._first is None:
            self._first, seconds = (self.step, self._end), 0.0
        elif self._validation_steps:
            self._validation = self._validation_steps * seconds
        if self._end < seconds + self._validation:
            self._stopped = self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure the time of the validation and of the callbacks before this one."""
        self._validation, self._validation_steps = self._end - self.limit.left, 0.0

    @property
    def stopped(self) -> bool:
        """Whether the limit stopped the phase before its last step."""
        return self._stopped and self.step < self.epochs * self.per_epoch


def log_early_end(stop: StopInTime | None, done: int, epochs: int, why: str) -> None:
    """Log that a phase ended after `done` epochs, if these are not all, and why: the limit, or another reason."""
    if stop is not None and stop.stopped:
        progress = f"{stop.step / stop.per_epoch:.1f} of {epochs} epochs"
        logger.info("Stopped after %s: the time limit of %.4g s.", progress, stop.limit.seconds)
    elif done < epochs:
        logger.info("Stopped after epoch %d of %d: %s.", done, epochs, why)
