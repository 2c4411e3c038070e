"""Which learning rate a network bears: the loss while it rises from step to step (Smith 2017, arXiv:1506.01186)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.images.datasets import ImageData
from transfer.training.fit import fit
from transfer.training.recipes import Recipe
from transfer.training.schedules import BATCH_SIZE
from transfer.training.training_plots import learning_rate_plot

STEPS = 100
"""From the lowest rate to the highest."""

LOWEST, HIGHEST = 1e-6, 1.0
"""Rates that are tried."""

SMOOTH = 0.9
"""How much of the average of the losses stays at each step."""

LOST = 4.0
"""Times the least loss beyond which nothing more is to be seen."""

SAFE = 10.0
"""The rate that is suggested is so many times below that of the least loss, where steps are already too long. It is on
the safe side of what a schedule with a warm-up bears."""


@dataclass(frozen=True)
class RateCurve:
    """What was seen."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    # Average of the losses so far, later ones counting more.
    smooth: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """A rate to begin with."""
        return self.rates[int(np.argmin(self.smooth))] / SAFE

    def plot(self) -> Any:
        """Draw it."""
        return learning_rate_plot(self.rates, self.losses, self.smooth, self.suggestion)


def find_learning_rate(
    model: keras.Model, data: ImageData, *, steps: int = STEPS, batch_size: int = BATCH_SIZE, **options: Any
) -> RateCurve:
    """Train for some steps with a learning rate that rises, and put everything back.

    As in `fit`, the head is trained before, where the weights are pre-trained.

    Args:
        model: of the builders, not trained yet, of which more than a head trains; it is as before afterwards.
        data: of `load_data`.
        steps: from the lowest rate to the highest, 10 or more; they end where the loss gets out of hand.
        batch_size: images per step.
        **options: more arguments of `fit`.

    Returns:
        The curve, with a suggestion.

    Raises:
        InputError: too few steps, or only a head trains, which needs no rate.

    Example:
        >>> from transfer.cases.builders import large_similar
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> curve = find_learning_rate(large_similar(base, 12), load_data("emoji"), steps=10)
        >>> 0 < curve.suggestion < 1
        True
    """
    if steps < 10:
        raise InputError(f"Expected steps of 10 or more. Received: {steps}.")
    if len(model.trainable_weights) <= 2:
        raise InputError("Only the head trains, which is solved exactly and needs no learning rate.")
    optimizer = model.optimizer
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    before = [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables]
    ramp = _Ramp(steps)
    options["recipe"] = replace(
        options.get("recipe") or Recipe(), ema=0.0
    )  # it averages nothing in so few steps
    epochs = math.ceil(steps / math.ceil(len(data.train) / batch_size))
    given = {"batch_size": batch_size, "verbose": 0, **options, "epochs": epochs, "callbacks": [ramp]}
    quiet = logging.getLogger("transfer.training.fine_tuning")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # of validation, which is left out here
    try:
        fit(model, replace(data, val=data.val.take([])), **given)
    finally:
        quiet.setLevel(level)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    return RateCurve(tuple(ramp.rates), tuple(ramp.losses), tuple(smoothed(ramp.losses)))


def smoothed(losses: Sequence[float]) -> list[float]:
    """Average losses over the steps before, without a bias towards the start."""
    average, found = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = SMOOTH * average + (1 - SMOOTH) * loss
        found.append(average / (1 - SMOOTH**number))
    return found


class _Ramp(keras.callbacks.LearningRateScheduler):
    """Raise the rate from step to step, and note each step's own loss."""

    def __init__(self, steps: int) -> None:
        super().__init__(lambda epoch, rate: rate)
        self.steps, self._total = steps, 0.0
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._total = 0.0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Leave out what the class does."""

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        share = len(self.rates) / max(1, self.steps - 1)
        self.rates.append(LOWEST * (HIGHEST / LOWEST) ** share)
        self.model.optimizer.learning_rate = self.rates[-1]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        mean = float((logs or {})["loss"])  # of the epoch so far
        loss, self._total = mean * (batch + 1) - self._total, mean * (batch + 1)
        lost = not math.isfinite(loss)
        if lost:
            self.rates.pop()
        else:
            self.losses.append(loss)
            lost = smoothed(self.losses)[-1] > LOST * min(smoothed(self.losses))
        if lost or len(self.rates) >= self.steps:
            self.model.stop_training = True
