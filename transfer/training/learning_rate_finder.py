"""Learning-rate range test: the loss while the learning rate rises from step to step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from transfer.common.arguments import explain_arguments
from transfer.common.display import one_line
from transfer.common.errors import InputError
from transfer.common.figures import Figure
from transfer.common.text import plural
from transfer.frozen.extraction import frozen_feature_extractor
from transfer.images.datasets import ImageData, check_data
from transfer.networks.arguments import check_classifier
from transfer.training import fine_tuning
from transfer.training.fit import fit
from transfer.training.recipes import Recipe
from transfer.training.schedules import BATCH_SIZE
from transfer.training.trained import unrecorded
from transfer.training.training_plots import learning_rate_plot

STEPS = 100
"""Default number of steps from the lowest to the highest learning rate."""

LOWEST, HIGHEST = 1e-6, 1.0
"""Lowest and highest learning rate of the test."""

SMOOTHING = 0.9
"""Weight of the previous average of the losses at each step."""

DIVERGED = 4.0
"""The test ends when the average loss is this many times the smallest average so far."""

SAFETY_FACTOR = 10.0
"""The suggested rate is this many times below the rate of the smallest loss, where steps are already too long. A
schedule with a warm-up tolerates more."""


@dataclass(frozen=True)
class RateCurve:
    """The losses of a learning-rate range test, with a suggested learning rate."""

    # One value per step: the rate, the loss of its batch before the update, and the moving average of the losses.
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    averages: tuple[float, ...]

    def __repr__(self) -> str:
        return one_line(self, f"suggestion {self.suggestion:.1e}, after {plural(len(self.rates), 'step')}")

    @property
    def suggestion(self) -> float:
        """The suggested learning rate."""
        return self.rates[int(np.argmin(self.averages))] / SAFETY_FACTOR

    def plot(self) -> Figure:
        """Draw the losses against the learning rate."""
        return learning_rate_plot(self.rates, self.losses, self.averages, self.suggestion)


@explain_arguments()
def find_learning_rate(
    model: keras.Model, data: ImageData, *, steps: int = STEPS, batch_size: int = BATCH_SIZE, **options: Any
) -> RateCurve:
    """Run a learning-rate range test (Smith 2017, arXiv:1506.01186) and restore the model.

    The test trains with a learning rate that rises exponentially from 1e-6 to 1. As in `fit`, the head is trained first
    if the weights are pre-trained.

    Args:
        model: model from a builder that has not been trained yet, with trainable layers before the head. Its weights
            and optimizer are the same afterwards.
        data: images from `load_data`. Only the training images are used.
        steps: number of steps, 10 or more. The test ends early when the loss diverges.
        batch_size: images per step.
        **options: further arguments of `fit`.

    Returns:
        The learning rates, their losses and the suggested rate; `plot()` draws them.

    Raises:
        InputError: the arguments are not a model and `ImageData`, `steps` is below 10, or only the head is trainable.

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
    check_classifier(model, "find_learning_rate(model, data)")
    check_data(data, "find_learning_rate(model, data)")
    if frozen_feature_extractor(model) is not None:
        raise InputError(
            "Expected a model with trainable layers before the head. Received one in which only the head is trainable."
        )
    optimizer = model.optimizer
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    before = [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables]
    ramp = _Ramp(steps)
    # Average no weights: after a few steps it is useless, and it needs an optimizer that is not built yet.
    options["recipe"] = replace(options.get("recipe") or Recipe(), ema=0.0)
    epochs = math.ceil(steps / math.ceil(len(data.train) / batch_size))
    arguments = {"batch_size": batch_size, "verbose": 0, **options, "epochs": epochs, "callbacks": [ramp]}
    level = fine_tuning.logger.level
    fine_tuning.logger.setLevel(logging.ERROR)  # without its warning that there are no validation images
    try:
        with unrecorded(model):  # its weights are restored
            fit(model, replace(data, val=data.val.take([])), **arguments)
    finally:
        fine_tuning.logger.setLevel(level)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    return RateCurve(tuple(ramp.rates), tuple(ramp.losses), tuple(moving_averages(ramp.losses)))


def moving_averages(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average of the losses at each step, without a bias towards 0."""
    average, averages = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        averages.append(average / (1 - SMOOTHING**number))
    return averages


class _Ramp(keras.callbacks.LearningRateScheduler):
    """Raise the learning rate from step to step and collect the loss of each step."""

    # This is a LearningRateScheduler, so that `fit` adds no schedule of its own.
    def __init__(self, steps: int) -> None:
        super().__init__(lambda epoch, rate: rate)
        self.steps, self._total = steps, 0.0
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._total = 0.0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Do not log the learning rate, as the parent class does."""

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.params["phase"] == "head":  # the range test begins after the head
            return
        progress = len(self.rates) / max(1, self.steps - 1)
        self.rates.append(LOWEST * (HIGHEST / LOWEST) ** progress)
        self.model.optimizer.learning_rate = self.rates[-1]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.params["phase"] == "head":
            return
        total = float((logs or {})["loss"]) * (batch + 1)  # Keras logs the mean of the epoch so far
        loss, self._total = total - self._total, total
        diverged = not math.isfinite(loss)
        if diverged:
            self.rates.pop()
        else:
            self.losses.append(loss)
            averages = moving_averages(self.losses)
            diverged = averages[-1] > DIVERGED * min(averages)
        if diverged or len(self.rates) >= self.steps:
            self.model.stop_training = True
