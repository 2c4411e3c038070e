"""How everything is trained: each ingredient once, with its reason and its source."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transfer.common.errors import InputError, unknown
from transfer.images.augmentation import MIXES

BATCHNORMS = ("pinned", "adapted", "live")
"""What becomes of pre-trained BatchNormalization: its statistics stay as they are, which is safe for few images; or
are first taken anew from the training images (Li et al. 2017, arXiv:1603.04779), for images that are unlike those
of the pre-training; or go on training with the rest, for very many images. From random weights they are live,
whatever is said here."""


SCHEDULES = ("cosine", "steps")
"""How the learning rate goes: it warms up and falls to 0 along a cosine; or is divided every so many epochs."""


@dataclass(frozen=True)
class Recipe:
    """What is done while everything trains, beside the learning rate's warm-up and cosine.

    Attributes:
        layer_decay: learning rate of the first block as a fraction of the head's rate, above 0 up to 1. Rates fall
            from block to block by the same factor (Howard and Ruder 2018, arXiv:1801.06146). 1: one rate for all.
        gradual_unfreezing: fraction of the training during which blocks start to train, the last block first
            (same paper), 0 to below 1. 0: all blocks train from the start.
        weight_decay: of weights but biases and normalization, decoupled from the gradient (Loshchilov and Hutter 2019,
            arXiv:1711.05101); a step takes this share of them, times the learning rate.
        clip_norm: length of the gradient of all weights together beyond which it is shortened; None leaves it.
        ema: how much of the moving average of the weights stays at each step, such as 0.99; the average is what is
            kept in the end. 0 keeps the weights themselves.
        label_smoothing: share of each label that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567).
        mix: one of `augmentation.MIXES`.
        batchnorm: one of `BATCHNORMS`.
        schedule: one of `SCHEDULES`.
        decay_factor: by what the learning rate is divided, 1 or more, with the schedule `"steps"`; this and the next
            are by default those of Esteva et al. 2017.
        decay_every: after how many epochs, each time, 1 or more.
    """

    layer_decay: float = 1.0
    gradual_unfreezing: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema: float = 0.0
    label_smoothing: float = 0.0
    mix: str = "none"
    batchnorm: str = "pinned"
    schedule: str = "cosine"
    decay_factor: float = 16.0
    decay_every: int = 30

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"Expected layer_decay above 0, up to 1. Received: {self.layer_decay!r}.")
        for name in ("gradual_unfreezing", "ema", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Expected {name} from 0 to below 1. Received: {getattr(self, name)!r}.")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"Expected weight_decay of 0 or more. Received: {self.weight_decay!r}.")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"Expected clip_norm above 0, or None. Received: {self.clip_norm!r}.")
        if self.mix not in MIXES:
            raise unknown("mix", self.mix, MIXES)
        if self.batchnorm not in BATCHNORMS:
            raise unknown("batchnorm", self.batchnorm, BATCHNORMS)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if not 1 <= self.decay_factor < math.inf:
            raise InputError(
                f"Expected decay_factor of 1 or more: it divides. Received: {self.decay_factor!r}."
            )
        if self.decay_every < 1:
            raise InputError(f"Expected decay_every of 1 epoch or more. Received: {self.decay_every!r}.")


def block_rates(recipe: Recipe, blocks: int, progress: float) -> list[float]:
    """Say how fast each block learns, as a share of the learning rate."""
    last = max(1, blocks - 1)
    depths = [(last - i) / last if blocks > 1 else 0.0 for i in range(blocks)]
    return [
        recipe.layer_decay**depth if progress >= recipe.gradual_unfreezing * depth else 0.0
        for depth in depths
    ]
