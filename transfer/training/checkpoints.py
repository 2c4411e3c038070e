"""Checkpoints: write the complete state of a training to disk, so that an interrupted run can resume exactly."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.common.files import written_whole
from transfer.distributed.process_group import current_group, describe_lost_workers
from transfer.images.pipeline import Position
from transfer.training.settings import read_settings, require_same_settings

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 60.0
"""Seconds between two checkpoints. A killed process loses at most this much work."""

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals after which a training saves a checkpoint and stops; a closed terminal sends SIGHUP."""

NUM_KEPT = 2
"""Number of checkpoints kept on disk. If the latest one is damaged, training resumes from the one before."""


class Interrupted(KeyboardInterrupt):
    """Raised when a signal ended a training after a step; the message says whether a checkpoint was saved.

    Call `fit` again with the same arguments and the same `checkpoints` folder to resume.

    Attributes:
        signal: number of the signal: 2 for SIGINT (Ctrl-C), 15 for SIGTERM, 1 for SIGHUP (a closed terminal).

    Example:
        >>> Interrupted(15, "Stopped after epoch 3; a checkpoint was saved.").signal
        15
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps."""

    # Name of the phase as in the log, or "done" after the last phase.
    phase: str
    # Number of the epoch, from 0, and the steps of it that were taken.
    epoch: int = 0
    step: int = 0
    # The training log so far, for JSON.
    log: dict[str, Any] = field(default_factory=dict)
    # Weights and other arrays; `pack` makes the names.
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """The position in words."""
        if self.phase == "done":
            return "the training was complete"
        if not self.step:
            return f"{self.phase}, {f'after epoch {self.epoch}' if self.epoch else 'before the first step'}"
        return f"{self.phase}, epoch {self.epoch + 1}, after step {self.step}"


def pack(name: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return a list of arrays as a dict with the keys NAME/0, NAME/1, ... for a checkpoint."""
    return {f"{name}/{number}": array for number, array in enumerate(arrays)}


def unpack(arrays: Mapping[str, np.ndarray], name: str) -> list[np.ndarray] | None:
    """Return the list that `pack` stored under a name, or None if there is none."""
    count = sum(key.startswith(f"{name}/") for key in arrays)
    return [arrays[f"{name}/{number}"] for number in range(count)] or None


class Checkpoints:
    """The checkpoints of one training in a folder of their own."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, seconds_between: float = SECONDS_BETWEEN
    ) -> None:
        self.folder, self.seconds_between = folder, seconds_between
        self.settings = json.loads(json.dumps(dict(settings)))
        self._written = time.monotonic()
        self._failed = False
        current_group().broadcast(self._check_folder)

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"Expected a folder for checkpoints. Received a file: {self.folder}.")
        if self._settings_path.exists():
            require_same_settings(read_settings(self._settings_path), self.settings, self.folder)

    def latest(self) -> Checkpoint | None:
        """Return the latest checkpoint that is not damaged, or None if there is none."""
        arrays = current_group().broadcast_arrays(self._read_latest)
        return Checkpoint(**json.loads(bytes(arrays.pop("state"))), arrays=arrays) if arrays else None

    def _read_latest(self) -> dict[str, np.ndarray]:
        for path in reversed(self._paths()):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
                with np.load(path, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                Checkpoint(**json.loads(bytes(arrays["state"])))
                return arrays
            logger.warning("The checkpoint %s is damaged. Trying the one before it.", path)
        return {}

    def save(self, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint and remove old ones; warn once and return False if the disk refuses."""
        if not current_group().is_chief:
            return True
        header = {name: getattr(checkpoint, name) for name in ("phase", "epoch", "step", "log")}
        arrays = {"state": np.frombuffer(json.dumps(header).encode(), "uint8"), **checkpoint.arrays}
        paths = self._paths()
        number = int(paths[-1].stem.split("-")[1]) + 1 if paths else 0
        self._written = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._settings_path.exists():
                text = json.dumps(self.settings, indent=2).encode()
                _write(self._settings_path, lambda file: file.write(text))
            _write(self.folder / f"state-{number:08d}.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        except OSError as error:
            if not self._failed:
                latest = f"The latest one is {paths[-1].name}" if paths else "There is none yet"
                reason = f"{error.strerror}). {latest}"
                logger.warning(
                    "Cannot write a checkpoint to %s (%s. Training continues.", self.folder, reason
                )
            self._failed = True
            return False
        for old in paths[: 1 - NUM_KEPT]:
            old.unlink(missing_ok=True)
        return True

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self._written >= self.seconds_between

    @property
    def _settings_path(self) -> Path:
        return self.folder / "settings.json"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.npz"))


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all, and wait until it is on the disk."""
    with written_whole(path, unique=False) as partial, partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


class CheckpointCallback(keras.callbacks.Callback):
    """Save checkpoints and stop on signals while Keras' `fit` runs; keep the position of the data up to date."""

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        snapshot: Callable[[], Checkpoint],
        position: Position,
        first_step: int,
        per_epoch: int,
    ) -> None:
        super().__init__()
        self.checkpoints, self.position, self._snapshot = checkpoints, position, snapshot
        self.first_epoch, self.first_step, self.per_epoch = position.epoch, first_step, per_epoch
        self._signal = 0
        self._handlers = contextlib.ExitStack()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Install the signal handlers and save the start of the phase."""
        if self.checkpoints is not None:
            self._install_handlers()
            if not self.position.epoch and not self.first_step:
                self._save(0, 0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Update the position."""
        self.position.epoch = epoch
        if epoch != self.first_epoch:
            self.first_step = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time to, except after the last step, which validation follows."""
        step = self.first_step + batch + 1
        if step < self.per_epoch:
            self._save_if_due(self.position.epoch, step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time to."""
        self._save_if_due(epoch + 1, 0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the signal handlers."""
        self.close()

    def raise_if_interrupted(self, error: Exception) -> None:
        """Raise Interrupted if an error means that the chief left after a signal that this worker got too."""
        if self._signal and describe_lost_workers(error):
            raise Interrupted(self._signal, "Stopped with the other workers.") from None

    def close(self) -> None:
        """Restore the signal handlers, however the training ended."""
        self._handlers.close()

    def _save_if_due(self, epoch: int, step: int) -> None:
        # A worker that gets a signal does not stop by itself: it stops when the chief does, or is killed.
        if self.checkpoints is None or self.model.stop_training or not current_group().is_chief:
            return
        if not (self._signal or self.checkpoints.due):
            return
        saved = self._save(epoch, step)
        if self._signal:
            place = f"epoch {epoch + 1}, step {step}" if step else f"epoch {epoch}"
            result = "a checkpoint was saved" if saved else "no checkpoint could be written"
            raise Interrupted(self._signal, f"Stopped after {place}; {result}.")

    def _save(self, epoch: int, step: int) -> bool:
        checkpoint = replace(self._snapshot(), epoch=epoch, step=step)
        return self.checkpoints is not None and self.checkpoints.save(checkpoint)

    def _install_handlers(self) -> None:
        """Note the first signal and leave the second to the handlers that were installed before."""
        before: dict[int, Any] = {}

        def note(number: int, frame: object) -> None:
            self._signal = number
            logger.warning(
                "Stopping after this training step, with a checkpoint. Press Ctrl-C again to stop at once, without one."
            )
            signal.signal(number, before[number])

        if threading.current_thread() is threading.main_thread():  # no other thread may install handlers
            for number in STOP_SIGNALS:
                before[number] = signal.getsignal(number)
                if before[number] == signal.SIG_IGN:  # such as SIGHUP under nohup
                    continue
                self._handlers.callback(signal.signal, number, before[number])
                signal.signal(number, note)
