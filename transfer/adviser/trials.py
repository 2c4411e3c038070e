"""A few steps of fine-tuning, timed: what training everything costs on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transfer.cases import builders
from transfer.cases.policies import POLICIES, Case
from transfer.common.allocator import kept_memory
from transfer.common.errors import InputError
from transfer.distributed.process_group import current_group
from transfer.images.datasets import Split
from transfer.images.pipeline import make_dataset
from transfer.training.schedules import BATCH_SIZE, WarmupCosine

STEPS = 8
"""Of the trial: enough to time them. More say no more: what forty gained did not foretell what training in full did."""

_UNTIMED = 2  # steps: the first is traced and compiled, the second allocates
_FEWEST = 2  # steps that are timed


@dataclass(frozen=True)
class Trial:
    """What a few steps of fine-tuning took."""

    steps: int
    seconds_per_step: float
    seconds_start: float


def time_fine_tuning(
    images: Split,
    base: keras.Model,
    *,
    image_size: tuple[int, int],
    steps: int = STEPS,
    preprocessing: str | None = None,
    seed: int = 0,
) -> Trial:
    """Fine-tune a copy of a network for a few steps and time them."""
    if steps < _UNTIMED + _FEWEST:
        raise InputError(f"Expected {_UNTIMED + _FEWEST} steps or more. Received: {steps}.")
    options: dict[str, Any] = {"image_size": image_size, "preprocessing": preprocessing, "seed": seed}
    options["strategy"] = (
        "default" if current_group().count > 1 else None
    )  # of several workers, the chief tries by itself
    model = builders.build(Case.LARGE_SIMILAR, base, int(images.labels.max()) + 1, **options)
    dataset = make_dataset(
        images, image_size=image_size, batch_size=BATCH_SIZE, training=True, augment="light", seed=seed
    )
    clock = _Clock(peak=POLICIES[Case.LARGE_SIMILAR].learning_rate, steps=steps)
    began = time.perf_counter()
    with kept_memory():  # as training does
        model.fit(dataset.repeat(), steps_per_epoch=steps, callbacks=[clock], verbose=0, shuffle=False)
    per_step = float(np.median(np.diff(clock.ends)[_UNTIMED - 1 :]))
    return Trial(steps, per_step, max(0.0, clock.ends[0] - began - per_step))


class _Clock(WarmupCosine):
    """Follow a schedule, as training does, and note when each step ended."""

    def __init__(self, *, peak: float, steps: int) -> None:
        super().__init__(peak=peak, steps=steps)
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        self.ends.append(time.perf_counter())
