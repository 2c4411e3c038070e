"""How long to train the whole network, its learning-rate schedules, and which weights to keep."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from transfer.common.tasks import metric_of_row, score_text
from transfer.training.time_limit import StopInTime

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
"""Default number of images per training step. Most published fine-tuning recipes use it, and it fits a laptop."""

STEPS = {"pretrained": 400, "random": 1200}
"""Minimum number of steps to train the whole network, by its initial weights. From EfficientNet-Lite0's weights, 345
emoji at 96 px reached an accuracy of 0.72 after 130 steps and 0.78 after 330. Random weights need more steps."""

MIN_EPOCHS = {"pretrained": 8, "random": 20}
"""Minimum number of epochs, by the initial weights. Large data sets take more steps than `STEPS` in these epochs."""

MAX_EPOCHS = 60
"""Maximum number of epochs. It matters only for few images, which more epochs would overfit."""

WARM_UP = 0.1
"""Fraction of the steps in which the learning rate rises. Adam's estimates of the gradients are poor at the start, when
its steps would be largest."""


MIN_WARM_UP = 10
"""Minimum number of steps of the warm-up, but at most half of all steps. The first steps of Adam are as long as the
rate, whatever the gradient. With 4 steps in total, one step of warm-up raised the validation loss by 1.6 nats."""


def epochs_for(num_images: int, batch_size: int, *, init: str = "pretrained") -> int:
    """Return the number of epochs for the whole network, from the number of images alone."""
    # The idea is BiT's HyperRule (Kolesnikov et al. 2020, arXiv:1912.11370).
    per_epoch = -(-num_images // batch_size)
    return max(MIN_EPOCHS[init], min(MAX_EPOCHS, -(-STEPS[init] // per_epoch)))


def learning_rate_at(step: int, *, peak: float, steps: float) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine to 0."""
    warm = max(1, round(WARM_UP * steps), min(MIN_WARM_UP, steps // 2))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def decayed_rate_at(step: int, *, first: float, every: int, factor: float) -> float:
    """Return the learning rate of a step that is divided by a factor after every `every` steps."""
    return first * factor ** -(step // every)


class WarmupCosine(keras.callbacks.Callback):
    """Set the learning rate before each step (a linear warm-up, then half a cosine to 0), and unfreeze blocks."""

    def __init__(
        self,
        *,
        peak: float,
        steps: int,
        start: int = 0,
        set_progress: Callable[[float], None] | None = None,
        limit: StopInTime | None = None,
        sets_rate: bool = True,
    ) -> None:
        super().__init__()
        self.peak, self.steps, self.step, self.sets_rate = peak, steps, start, sets_rate
        self._set_progress, self._first_step, self._limit = set_progress, 0, limit

    @property
    def planned(self) -> float:
        """The number of steps that the schedule spans: fewer if a time limit allows fewer."""
        return self._limit.planned if self._limit is not None else self.steps

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate_at(self.step, peak=self.peak, steps=self.planned)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the learning rate of the next step, or of the steps that are executed together."""
        self._first_step = batch
        if self.sets_rate:
            self.model.optimizer.learning_rate = self.rate
        if self._set_progress is not None:
            self._set_progress(self.step / self.planned)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the steps."""
        self.step += batch - self._first_step + 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the learning rate that the model was compiled with."""
        if self.sets_rate:
            self.model.optimizer.learning_rate = self.peak


class StepDecay(WarmupCosine):
    """Divide the learning rate by a factor after every `every` steps, without a warm-up."""

    def __init__(self, *, every: int, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.every, self.factor = every, factor

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        step = int(self.step * (self.steps / self.planned))
        return decayed_rate_at(step, first=self.peak, every=self.every, factor=self.factor)


class KeepBetter(keras.callbacks.Callback):
    """Restore earlier weights if they were clearly better on validation, or if the loss became NaN or infinite."""

    def __init__(
        self,
        *,
        num_val: int,
        start: float | None = None,
        metric: str = "accuracy",
        noise: Callable[[float], float] | None = None,
    ) -> None:
        super().__init__()
        # `start` is the validation metric before training; None ignores the weights before training. `noise` returns
        # the standard error of the metric; None is that of an accuracy.
        self.num_val, self.metric, self.epoch = num_val, metric, 0
        self.best = -math.inf if start is None else start
        self._noise = noise or (lambda value: math.sqrt(max(0.0, value * (1 - value)) / max(1, num_val)))
        self.lost_at: tuple[int, int] | None = None  # epoch and step, from 1, of a loss that is not finite
        self.weights: list[Any] | None = None
        self._last: float | None = None
        self._undefined = False  # whether the metric was not a number

    def progress(self) -> dict[str, Any]:
        """Return the state without the weights, for JSON; `resume` takes it."""
        return {"best": self.best, "epoch": self.epoch, "last": self._last}

    def resume(self, progress: Mapping[str, Any], weights: list[Any] | None) -> None:
        """Restore the state of an interrupted training."""
        self.best, self.epoch, self._last = progress["best"], progress["epoch"], progress["last"]
        self.weights = weights

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keep the weights before training, except in a resumed training."""
        if self.weights is None:
            self.weights = self.model.get_weights()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the number of the epoch."""
        self._current = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop the training if the loss is not finite."""
        if self.lost_at is None and not math.isfinite((logs or {}).get("loss", 0.0)):
            self.lost_at = self._current, batch + 1
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the weights if they are at least as good as the best so far."""
        if self.lost_at is not None:
            return
        self._last = (logs or {}).get(f"val_{self.metric}", 0.0)
        if math.isnan(self._last) and not self._undefined:
            self._undefined = True
            logger.warning(
                "The validation metric is undefined for these images: the model keeps the last weights."
            )
        if not self.num_val or self._last >= self.best:
            self.best, self.epoch, self.weights = self._last, epoch + 1, self.model.get_weights()

    def choose_weights(self) -> int | None:
        """Restore the best weights if the last are clearly worse; return their epoch, or None for the last."""
        # Clearly worse is by over one standard error. Epochs count from 1; 0 means the weights before training.
        worse = (
            self._last is not None
            and bool(self.num_val)
            and math.isfinite(self.best)
            and not self.best - self._last <= self._noise(self.best)  # also if the metric is not a number
        )
        restored = self.weights is not None and (worse or self.lost_at is not None)
        if restored:
            self.model.set_weights(self.weights)
        if self.lost_at is not None:
            logger.error(
                "The loss was not finite in epoch %d, step %d. Training stopped and restored the weights %s. Try a "
                "third of the learning rate, clip_norm=1.0, or weaker augmentation.",
                *self.lost_at,
                f"of epoch {self.epoch}" if self.epoch else "from before training",
            )
        elif restored and self.epoch:
            logger.info(
                "Restored the weights of epoch %d: validation %s %s, and %s after the last epoch.",
                self.epoch,
                *self._scores(),
            )
        elif restored:
            logger.warning(
                "Fine-tuning did not improve the validation %s. Restored the weights from before fine-tuning: %s, and "
                "%s after the last epoch.",
                *self._scores(),
            )
        self.weights = None
        return self.epoch if restored else None

    def _scores(self) -> tuple[str, str, str]:
        """Return the name of the metric, its best and its last value, for a message."""
        name = metric_of_row({self.metric: None}).metric_name
        return name, score_text(self.metric, self.best), score_text(self.metric, self._last or 0.0)
