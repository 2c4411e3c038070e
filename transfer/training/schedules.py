"""How long to train the whole network, and how fast it learns meanwhile."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

log = logging.getLogger(__name__)

BATCH_SIZE = 32
"""Images per training step: what most published fine-tuning recipes use, and what a laptop bears."""

STEPS = {"pretrained": 400, "random": 1200}
"""Of training the whole network, at least, by what it starts from. From EfficientNet-Lite0's weights, 345 emoji at
96 px were at .72 after 130 steps and at .78 after 330; from random weights there is more to learn."""

FEWEST_EPOCHS = {"pretrained": 8, "random": 20}
"""Where so many passes are more steps."""

MOST_EPOCHS = 60
"""Where there are so few images that more would only learn them by heart."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises: Adam knows nothing yet of the gradients' sizes, and would take
its largest steps then."""


def epochs_for(num_images: int, batch_size: int, *, init: str = "pretrained") -> int:
    """Say how long to train everything, from the data's size alone, as BiT's rule does
    (arXiv:1912.11370)."""
    per_epoch = -(-num_images // batch_size)
    return max(FEWEST_EPOCHS[init], min(MOST_EPOCHS, -(-STEPS[init] // per_epoch)))


def learning_rate_at(step: int, *, peak: float, steps: int) -> float:
    """Give the learning rate of a step: a linear warm-up, then half a cosine down to 0."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def decayed_rate_at(step: int, *, first: float, every: int, factor: float) -> float:
    """Give the learning rate of a step where it is divided again and again, and stays the same in
    between."""
    return first * factor ** -(step // every)


class WarmupCosine(keras.callbacks.Callback):
    """Set the learning rate before each step (see `learning_rate_at`)."""

    def __init__(
        self,
        *,
        peak: float,
        steps: int,
        start: int = 0,
        each_step: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__()
        self.peak, self.steps, self.step = peak, steps, start
        self._each_step, self._began = each_step, 0

    @property
    def rate(self) -> float:
        """Of the step to come."""
        return learning_rate_at(self.step, peak=self.peak, steps=self.steps)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of the step to come, or of the steps that are executed together."""
        self._began = batch
        self.model.optimizer.learning_rate = self.rate
        if self._each_step is not None:
            self._each_step(self.step / self.steps)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the steps."""
        self.step += batch - self._began + 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the model with the rate that it was compiled with."""
        self.model.optimizer.learning_rate = self.peak


class StepDecay(WarmupCosine):
    """Divide the learning rate every so many steps (see `decayed_rate_at`), without a warm-up."""

    def __init__(self, *, every: int, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.every, self.factor = every, factor

    @property
    def rate(self) -> float:
        """Of the step to come."""
        return decayed_rate_at(self.step, first=self.peak, every=self.every, factor=self.factor)


class KeepBetter(keras.callbacks.Callback):
    """Take earlier weights back where validation says that the last are worse, or where the loss was
    lost."""

    def __init__(self, *, count: int, start: float | None = None) -> None:
        super().__init__()
        self.count, self.best, self.epoch = count, -1.0 if start is None else start, 0
        self.lost_at: tuple[int, int] | None = None
        self.weights: list[Any] | None = None
        self._last: float | None = None

    def state(self) -> dict[str, Any]:
        """What is known, but for the weights, for JSON; see `go_on`."""
        return {"best": self.best, "epoch": self.epoch, "last": self._last}

    def go_on(self, state: Mapping[str, Any], weights: list[Any] | None) -> None:
        """Go on where an interrupted training was."""
        self.best, self.epoch, self._last = state["best"], state["epoch"], state["last"]
        self.weights = weights

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keep what there is before training, unless it is known from before the training was
        interrupted."""
        if self.weights is None:
            self.weights = self.model.get_weights()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note it, to say where the loss was lost."""
        self._now = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End the training where the loss is not finite."""
        if self.lost_at is None and not math.isfinite((logs or {}).get("loss", 0.0)):
            self.lost_at = self._now, batch + 1
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep weights that are as good as the best so far."""
        if self.lost_at is not None:
            return
        self._last = (logs or {}).get("val_accuracy", 0.0)
        if not self.count or self._last >= self.best:
            self.best, self.epoch, self.weights = self._last, epoch + 1, self.model.get_weights()

    def settle(self) -> None:
        """Decide between the best and the last, when all epochs are done."""
        error = math.sqrt(max(0.0, self.best * (1 - self.best)) / max(1, self.count))
        worse = self._last is not None and self.count and self.best - self._last > error
        if self.weights is not None and (worse or self.lost_at is not None):
            self.model.set_weights(self.weights)
        if self.lost_at is not None:
            log.error(
                "The loss was not finite any more in epoch %d, step %d: training stopped, and the weights are those "
                "of %s. Try a third of the learning rate, clip_norm=1.0, or fewer changes to the images.",
                *self.lost_at,
                f"epoch {self.epoch}" if self.epoch else "before it",
            )
        self.weights = None
