"""The recipe of fine-tuning: its options, their ranges, their sources, and the learning rate of each block."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transfer.common.display import changed_options, one_line
from transfer.common.errors import InputError, unknown
from transfer.images.augmentation import MIXES

BATCHNORMS = ("pinned", "adapted", "live")
"""Treatments of the statistics of pre-trained BatchNormalization; `Recipe` explains them."""

SCHEDULES = ("cosine", "steps")
"""Learning-rate schedules; `Recipe` explains them."""


@dataclass(frozen=True)
class Recipe:
    """Options of fine-tuning. By default, every optional technique is off.

    A recipe applies to fine-tuning and to training from scratch. When only the head is trained, `fit` uses its
    `label_smoothing` and `batchnorm` alone.

    Attributes:
        layer_decay: layer-wise learning-rate decay (Howard and Ruder 2018, arXiv:1801.06146): learning rate of the
            first block divided by that of the head, above 0 and up to 1. The rates of the blocks in between grow by a
            constant factor. 1 gives all blocks the same rate.
        gradual_unfreezing: gradual unfreezing (Howard and Ruder 2018): fraction of the training after which all blocks
            train, from 0 to below 1. The last block starts first, and the others follow one by one. 0 trains all
            blocks from the start.
        weight_decay: decoupled weight decay, 0 or more (Loshchilov and Hutter 2019, arXiv:1711.05101). Each step
            subtracts this fraction of the weights times the learning rate. Biases and normalization are not decayed.
        clip_norm: gradient clipping: largest global norm of the gradient, above 0. Larger gradients are scaled down
            to it. None does not clip. Not available on several devices with TensorFlow.
        ema: exponential moving average (EMA) of the weights: decay per step, such as 0.99, from 0 to below 1. The
            trained model has the averages. 0 keeps no average.
        label_smoothing: label smoothing (Szegedy et al. 2016, arXiv:1512.00567): fraction of each label that is spread
            over all classes, from 0 to below 1.
        mix: mixing of the images in a batch: `"none"`, `"mixup"` (Zhang et al. 2018, arXiv:1710.09412) or `"cutmix"`
            (Yun et al. 2019, arXiv:1905.04899).
        batchnorm: statistics of pre-trained BatchNormalization. `"pinned"` keeps them, which is safe with few images.
            `"adapted"` replaces them once by those of the training images (Li et al. 2017, arXiv:1603.04779): use it
            for images unlike the pre-training data. `"live"` updates them during training: use it for very many
            images; in Python, build the model with `pin_batchnorm=False`. Training from random weights always updates
            them.
        schedule: learning-rate schedule: `"cosine"` warms up linearly and falls to 0 along half a cosine; `"steps"`
            divides the rate by `decay_factor` after every `decay_every` epochs.
        decay_factor: divisor of the learning rate in the schedule `"steps"`, 1 or more. The default is that of Esteva
            et al. (2017), doi:10.1038/nature21056.
        decay_every: epochs between two divisions, 1 or more. The default is that of Esteva et al. (2017).

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> recipe = Recipe(layer_decay=0.1, weight_decay=1e-4)
        >>> recipe.schedule
        'cosine'
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

    def __repr__(self) -> str:
        return one_line(self, changed_options(self))

    def __post_init__(self) -> None:
        """Raise InputError if an option is out of its range."""
        expected = {
            "layer_decay above 0 and up to 1": 0 < self.layer_decay <= 1,
            "gradual_unfreezing from 0 to below 1": 0 <= self.gradual_unfreezing < 1,
            "ema from 0 to below 1": 0 <= self.ema < 1,
            "label_smoothing from 0 to below 1": 0 <= self.label_smoothing < 1,
            "weight_decay of 0 or more": 0 <= self.weight_decay < math.inf,
            "clip_norm above 0, or None": self.clip_norm is None or 0 < self.clip_norm < math.inf,
            "decay_factor of 1 or more, since it divides": 1 <= self.decay_factor < math.inf,
            "decay_every of 1 epoch or more": self.decay_every >= 1,
        }
        for range_, holds in expected.items():
            if not holds:
                raise InputError(f"Expected {range_}. Received: {getattr(self, range_.split()[0])!r}.")
        for name, valid in (("mix", MIXES), ("batchnorm", BATCHNORMS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in valid:
                raise unknown(name, getattr(self, name), valid)


def block_rates(recipe: Recipe, blocks: int, progress: float) -> list[float]:
    """Return the learning rate of each block, from the input on, as a fraction of the head's rate."""
    last = max(1, blocks - 1)
    depths = [
        (last - i) / last if blocks > 1 else 0.0 for i in range(blocks)
    ]  # 1 at the input, 0 at the head
    return [
        recipe.layer_decay**depth if progress >= recipe.gradual_unfreezing * depth else 0.0
        for depth in depths
    ]
