"""Pass the events of all phases of a training to the user's Keras callbacks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import keras
import numpy as np

from transfer.cases.compiling import learning_rate_of
from transfer.cases.decisions import task_of_model
from transfer.cases.shaped_labels import SHAPED
from transfer.common.errors import InputError, install_hint
from transfer.common.keras_private import has_schedule
from transfer.distributed.strategies import scope_of

LOGGERS = (keras.callbacks.CSVLogger, keras.callbacks.TensorBoard)
"""Callbacks that see all phases as one training, so that they write one file and their steps do not overlap."""

RATE_CALLBACKS = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
"""Callbacks that set the learning rate."""


class UserCallbacks:
    """The user's callbacks in a training: their model is the whole model, and epochs count over all phases."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], model: keras.Model) -> None:
        _check_tensorboard(callbacks)
        # The loggers come last: they see what the others added to the logs.
        self.callbacks = sorted(callbacks, key=lambda one: isinstance(one, LOGGERS))
        self.model = model
        self._ready = self._logging = False

    @property
    def set_rate(self) -> bool:
        """Whether one of the callbacks sets the learning rate."""
        return any(isinstance(one, RATE_CALLBACKS) for one in self.callbacks)

    def phase(
        self, name: str, *, first_epoch: int = 0, head: HeadLink | None = None
    ) -> list[keras.callbacks.Callback]:
        """Return the callbacks of a phase for Keras' `fit`; `first_epoch` is the number of epochs before it."""
        return [_Phase(self, name, first_epoch, head)] if self.callbacks else []

    def report(self, name: str, row: Mapping[str, Any]) -> None:
        """Report a phase without epochs, such as a head that was solved, as one epoch with the metrics of its row."""
        logs = {key: value for key, value in row.items() if isinstance(value, float)}
        for phase in self.phase(name):
            phase.set_params({"epochs": 1, "steps": None, "verbose": 0})
            phase.on_train_begin()
            phase.on_epoch_begin(0)
            phase.on_epoch_end(0, logs)
            phase.on_train_end(logs)

    def restored_epoch(self) -> int | None:
        """Return the epoch whose weights a callback restored at the end of the last phase, from 0 over all phases."""
        for one in self.callbacks:
            if isinstance(one, keras.callbacks.EarlyStopping) and one.best_weights is not None:
                return int(one.best_epoch)
        return None

    def close(self) -> None:
        """End the training for the loggers, however it ended."""
        if self._logging:
            self._logging = False
            for one in self.callbacks:
                if isinstance(one, LOGGERS):
                    one.on_train_end()

    def send(self, event: str, *arguments: Any) -> None:
        """Call a method of all callbacks."""
        if not self._ready:
            self._ready = True
            _build_metrics(self.model)
            for one in self.callbacks:
                one.set_model(self.model)
        began = self._logging
        if event == "on_train_begin":
            self.model.stop_training, self._logging = False, True
        # Callbacks may add to the logs, which belong to Keras.
        arguments = tuple(dict(one) if isinstance(one, dict) else one for one in arguments)
        for one in self.callbacks:
            skipped = event == "on_train_end" or (event == "on_train_begin" and began)
            if not (skipped and isinstance(one, LOGGERS)):
                getattr(one, event)(*arguments)


def _check_tensorboard(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Raise before the training if a callback's package is missing: Keras would raise after the first epoch."""
    if find_spec("tensorboard") is None and any(
        isinstance(c, keras.callbacks.TensorBoard) for c in callbacks
    ):
        raise InputError(
            f"keras.callbacks.TensorBoard needs the package tensorboard, which is not installed. Install it with "
            f"{install_hint('notebooks')}, or use keras.callbacks.CSVLogger."
        )


class HeadLink:
    """Keep the head in the whole model and a head in training equal while the user's callbacks run."""

    def __init__(
        self,
        model: keras.Model,
        head: keras.Model,
        convert: Callable[[list[np.ndarray]], list[np.ndarray]],
        revert: Callable[[list[np.ndarray]], list[np.ndarray]],
    ) -> None:
        # `convert` turns weights of the head in training into those of the model's head; `revert` does the opposite.
        self.model, self.head, self._convert, self._revert = model, head, convert, revert
        self._sent: list[np.ndarray] = []

    def to_model(self) -> None:
        """Copy the weights and the learning rate to the whole model."""
        self._sent = self._convert(self.head.get_weights())
        self.model.layers[-1].set_weights(self._sent)
        _copy_rate(self.head.optimizer, self.model.optimizer)

    def from_model(self) -> None:
        """Copy weights that a callback changed, and the learning rate, back to the head in training."""
        now = self.model.layers[-1].get_weights()
        if any(not np.array_equal(a, b) for a, b in zip(now, self._sent, strict=True)):
            self.head.set_weights(self._revert(now))
        _copy_rate(self.model.optimizer, self.head.optimizer)


@contextlib.contextmanager
def restored_rate(optimizer: keras.Optimizer) -> Iterator[None]:
    """Restore the learning rate of an optimizer after a phase in which it does not train."""
    if has_schedule(optimizer):
        yield
        return
    rate = learning_rate_of(optimizer)
    try:
        yield
    finally:
        optimizer.learning_rate = rate


def _copy_rate(source: keras.Optimizer, target: keras.Optimizer) -> None:
    """Copy a learning rate, unless a schedule sets it."""
    if not has_schedule(target):
        target.learning_rate = learning_rate_of(source)


def _build_metrics(model: keras.Model) -> None:
    """Build the metrics of a model: callbacks look up whether a larger value of a metric is better."""
    predicted = np.full((1, model.output_shape[-1]), 1 / model.output_shape[-1], "float32")
    labels = np.zeros_like(predicted) if task_of_model(model) in SHAPED else np.zeros(1, "int64")
    with scope_of(model):
        model.compute_metrics(None, labels, keras.ops.convert_to_tensor(predicted))
    model.reset_metrics()


class _Phase(keras.callbacks.Callback):
    """Pass the events of one phase to the user's callbacks."""

    def __init__(self, owner: UserCallbacks, name: str, first_epoch: int, head: HeadLink | None) -> None:
        super().__init__()
        self.owner, self.name, self.first_epoch, self.head = owner, name, first_epoch, head

    def set_params(self, params: dict[str, Any] | None) -> None:
        """Add the name of the phase to the parameters of the callbacks."""
        super().set_params(params)
        self.owner.send("set_params", {**(params or {}), "phase": self.name})

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send("on_train_begin", logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send("on_train_end", logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on, with the number of the epoch over all phases."""
        self._send("on_epoch_begin", self.first_epoch + epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on, with the number of the epoch over all phases."""
        self._send("on_epoch_end", self.first_epoch + epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send_batch("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send_batch("on_train_batch_end", batch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send_batch("on_test_begin", logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send_batch("on_test_end", logs)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send_batch("on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass the event on."""
        self._send_batch("on_test_batch_end", batch, logs)

    def _send(self, event: str, *arguments: Any) -> None:
        """Send an event at which callbacks may read or change weights and learning rates."""
        if self.head is not None:
            self.head.to_model()
        self._send_batch(event, *arguments)
        if self.head is not None:
            self.head.from_model()

    def _send_batch(self, event: str, *arguments: Any) -> None:
        """Send an event, and stop the training if a callback asks for it."""
        self.owner.send(event, *arguments)
        if self.owner.model.stop_training and isinstance(self.model, keras.Model):
            self.model.stop_training = True
