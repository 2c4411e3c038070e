"""Timing of fine-tuning: a few steps on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transfer.cases import builders
from transfer.cases.policies import POLICIES, Case
from transfer.common.errors import InputError
from transfer.common.streams import progress_bar
from transfer.common.tasks import SINGLE
from transfer.distributed.process_group import current_group
from transfer.images.datasets import Split
from transfer.images.pipeline import make_dataset, plain_errors
from transfer.training.schedules import BATCH_SIZE, WarmupCosine

STEPS = 8
"""Steps of a trial, enough to time them. The gain of a trial of 40 steps did not predict the gain of full training."""

_UNTIMED_STEPS = 2  # the first step is traced and compiled, the second allocates memory
_MIN_STEPS = _UNTIMED_STEPS + 2


@dataclass(frozen=True)
class Trial:
    """Measured time of a few steps of fine-tuning."""

    steps: int
    seconds_per_step: float
    seconds_start: float  # time until the end of the first step, minus the time of a step


@plain_errors()
def time_fine_tuning(
    images: Split,
    base: keras.Model,
    *,
    image_size: tuple[int, int],
    num_classes: int | None = None,
    task: str = SINGLE,
    steps: int = STEPS,
    preprocessing: str | None = None,
    seed: int = 0,
) -> Trial:
    """Fine-tune a copy of a network for a few steps and time them."""
    if steps < _MIN_STEPS:
        raise InputError(f"Expected {_MIN_STEPS} steps or more. Received: {steps}.")
    model = builders.build(
        Case.LARGE_SIMILAR,
        base,
        int(images.labels.max()) + 1 if num_classes is None else num_classes,
        task=task,
        image_size=image_size,
        preprocessing=preprocessing,
        strategy="default" if current_group().count > 1 else None,  # only the chief runs the trial
        seed=seed,
    )
    dataset = make_dataset(
        images, image_size=image_size, batch_size=BATCH_SIZE, training=True, augment="light", seed=seed
    )
    timer = _StepTimer(peak=POLICIES[Case.LARGE_SIMILAR].learning_rate, steps=steps)
    start = time.perf_counter()
    with progress_bar(total=steps, desc="trial of fine-tuning", unit=" steps", leave=False) as timer.bar:
        model.fit(dataset.repeat(), steps_per_epoch=steps, callbacks=[timer], verbose=0, shuffle=False)
    per_step = float(np.median(np.diff(timer.ends)[_UNTIMED_STEPS - 1 :]))
    return Trial(steps, per_step, max(0.0, timer.ends[0] - start - per_step))


class _StepTimer(WarmupCosine):
    """Follow the learning-rate schedule of training and record the end of each step."""

    def __init__(self, *, peak: float, steps: int) -> None:
        super().__init__(peak=peak, steps=steps)
        self.ends: list[float] = []
        self.bar: Any = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        self.ends.append(time.perf_counter())
        self.bar.update()
