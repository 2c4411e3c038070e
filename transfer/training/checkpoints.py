"""Training that is never lost: its whole state on disk, written so that a kill at any moment leaves the last one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.process_group import current_group, lost
from transfer.images.pipeline import Position
from transfer.training.settings import read_settings, refuse_others

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between checkpoints: what a kill loses at most."""

KEPT = 2
"""Checkpoints that stay: should the last one's disk have lied about it, there is the one before."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to end, by Ctrl-C or by the system, and did so after a step, with all of it on disk.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


@dataclass
class State:
    """Where training is."""

    phase: str
    epoch: int = 0
    step: int = 0
    log: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The same in words."""
        if self.phase == "done":
            return "all epochs were done"
        return f"{self.phase}, epoch {self.epoch + 1}, after {self.step} steps of it"


class Checkpoints:
    """The states of one training, in a folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, every: float = EVERY) -> None:
        self.folder, self.every = folder, every
        self.settings = json.loads(json.dumps(dict(settings)))
        self.written = time.monotonic()
        self._failed = False
        current_group().decision(self._refuse_others)

    def _refuse_others(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(
                f"Expected a folder for the states of training. Received: {self.folder}, a file."
            )
        about = self.folder / "settings.json"
        if about.exists():
            refuse_others(read_settings(about), self.settings, self.folder)

    def latest(self) -> State | None:
        """Read the last state that is whole; None where there is none."""
        told = current_group().arrays(self._latest)
        return State(**json.loads(bytes(told.pop("state")).decode()), arrays=told) if told else None

    def _latest(self) -> dict[str, np.ndarray]:
        for path in reversed(self._paths()):
            with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                with np.load(path, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                State(**json.loads(bytes(arrays["state"]).decode()))
                return arrays
            log.warning("%s is damaged; an earlier state is taken.", path)
        return {}

    def save(self, state: State) -> bool:
        """Write a state, and remove all but the last ones."""
        if not current_group().is_chief:
            return True
        about = {"phase": state.phase, "epoch": state.epoch, "step": state.step, "log": state.log}
        packed = np.frombuffer(json.dumps(about).encode(), "uint8")
        paths = self._paths()
        number = int(paths[-1].stem.split("-")[1]) + 1 if paths else 0
        path = self.folder / f"state-{number:08d}.npz"
        temporary = path.with_suffix(".partial")
        self.written = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_settings()
            with temporary.open("wb") as file:
                np.savez(file, **{"state": packed, **state.arrays})  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if not self._failed:
                kept = f"the last that was is {paths[-1].name}" if paths else "there is none so far"
                log.warning("No state could be written to %s (%s); %s.", self.folder, error.strerror, kept)
            self._failed = True
            return False
        for old in paths[: -(KEPT - 1)]:
            old.unlink(missing_ok=True)
        return True

    @property
    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self.written >= self.every

    def _write_settings(self) -> None:
        about = self.folder / "settings.json"
        if not about.exists():
            partial = about.with_suffix(".partial")
            partial.write_text(json.dumps(self.settings, indent=2), encoding="utf-8")
            os.replace(partial, about)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.npz"))


class Keeping(keras.callbacks.Callback):
    """Keep the state while Keras' `fit` runs, and the position from which its data go on."""

    def __init__(
        self,
        kept: Checkpoints | None,
        position: Position,
        *,
        step: int,
        per_epoch: int,
        state: Callable[[], State],
    ) -> None:
        super().__init__()
        self.kept, self.position, self.per_epoch, self._state = kept, position, per_epoch, state
        self._first, self._offset = position.epoch, step
        self._asked = 0
        self._handlers = contextlib.ExitStack()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen to signals, and write where the training starts."""
        if self.kept is not None:
            self._handlers.enter_context(self._listening())
            if not self.position.epoch and not self._offset:
                self._save(0, 0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Move the position on."""
        self.position.epoch = epoch
        if epoch != self._first:
            self._offset = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the state where it is time to; after the last step, validation comes first."""
        step = self._offset + batch + 1
        if step < self.per_epoch:
            self._keep(self.position.epoch, step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The same, between two epochs."""
        self._keep(epoch + 1, 0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Listen no more."""
        self.close()

    def ended_by(self, error: Exception) -> None:
        """Say that a signal ended a worker's training, where it did: the chief got it too, and left
        first."""
        if self._asked and lost(error):
            raise Interrupted(self._asked, "Stopped with the other workers.") from None

    def close(self) -> None:
        """Give the signals back, however the training ended."""
        self._handlers.close()

    def _keep(self, epoch: int, step: int) -> None:
        if self.kept is None or self.model.stop_training or not current_group().is_chief:
            return  # a worker that is asked to end leaves when the chief does, or is killed
        if not (self._asked or self.kept.due):
            return
        saved = self._save(epoch, step)
        if self._asked:
            where = f"epoch {epoch + 1}, step {step}" if step else f"epoch {epoch}"
            then = "its state is kept" if saved else "its state could not be written"
            raise Interrupted(self._asked, f"Stopped after {where}; {then}.")

    def _save(self, epoch: int, step: int) -> bool:
        state = self._state()
        state.epoch, state.step = epoch, step
        return self.kept is not None and self.kept.save(state)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Note the first signal, and leave the second to whoever listened before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: Any) -> None:
            self._asked = number
            log.warning("Stopping after this step; once more stops at once.")
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
