"""The four classic cases of transfer learning, as data: the cut, the trainable layers, the initial weights.

| | similar to the pre-training data | different |
|---|---|---|
| small data | 1. new head on the frozen network | 2. new head on its frozen early layers |
| large data | 3. new head, train all layers from the pre-trained weights | 4. the same, or from random weights |

The table is the rule of thumb. The case of a model is its method: case 1 keeps the whole network frozen, case 2 only
its early layers, regardless of the data. `builders` turns a policy into a model.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from transfer.common.errors import InputError, unknown

SMALL_DATA = 20_000
"""Number of training images below which a data set counts as small.

The rule of thumb calls two thousand images small and a million large, without a limit in between. The small regime of
the BiT HyperRule (Kolesnikov et al. 2020, arXiv:1912.11370) ends at 20,000.
"""

EARLY_CUT = 0.8
"""Depth of the default cut of `small_different`, as a fraction of the network's blocks.

On most of five data sets, the best single layer of EfficientNet-Lite0 was at about four fifths of the blocks. A cut at
half of the blocks lost 5 to 23 points of accuracy.
"""

INITS = ("pretrained", "random", "auto")
"""Initial weights: pre-trained, random, or `auto` (random only if training from the pre-trained weights fails)."""

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
"""Data types of the computation. The last two are for GPUs and TPUs."""

OPTIMIZERS: dict[str, dict[str, float]] = {
    "adam": {},
    "rmsprop": {"learning_rate": 0.001, "rho": 0.9, "momentum": 0.9, "epsilon": 0.1},
}
"""Settings of the optimizers.

Adam has the defaults of Keras and the learning rate of the case. RMSprop has the settings of Esteva et al. (2017),
doi:10.1038/nature21056.
"""


class Case(enum.StrEnum):
    """One of the four cases of transfer learning. Its value is its name on the command line.

    Example:
        >>> Case.parse("small-similar")
        <Case.SMALL_SIMILAR: 'small-similar'>
    """

    SMALL_SIMILAR = "small-similar"
    SMALL_DIFFERENT = "small-different"
    LARGE_SIMILAR = "large-similar"
    LARGE_DIFFERENT = "large-different"

    @classmethod
    def parse(cls, name: str | int | Case) -> Case:
        """Return the case of a name or number.

        Args:
            name: a `Case`, its name, such as `"small-similar"`, or its number, 1 to 4. Underscores count as hyphens.

        Returns:
            The case.

        Raises:
            InputError: no case has that name or number. The message lists the nearest names.

        Example:
            >>> Case.parse("large_different").value
            'large-different'
            >>> Case.parse(4) is Case.parse("large-different")
            True
        """
        text = str(name).strip().lower().replace("_", "-")
        by_number = {str(number): case for number, case in enumerate(cls, start=1)}
        try:
            return by_number.get(text) or cls(text)
        except ValueError:
            raise unknown("case", name, [case.value for case in cls]) from None


@dataclass(frozen=True)
class Policy:
    """The defaults of a case."""

    number: int  # 1 to 4, in the usual order
    cut: str  # "top" or "early"
    frozen: bool
    learning_rate: float
    epochs: int | None  # maximum number of epochs of a head that is trained on features
    idea: str


# A head on scaled features: three times Adam's default rate needs a third of the epochs. Each takes milliseconds, and
# early stopping ends the training. All layers: a third of the default rate, with warm-up and decay to 0, does not
# destroy the pre-trained features.
POLICIES: dict[Case, Policy] = {
    Case.SMALL_SIMILAR: Policy(
        1, "top", True, 3e-3, 100, "slice off the classifier, freeze all layers, train a new head"
    ),
    Case.SMALL_DIFFERENT: Policy(
        2, "early", True, 3e-3, 100, "keep only the early layers, freeze them, train a new head"
    ),
    Case.LARGE_SIMILAR: Policy(
        3, "top", False, 3e-4, None, "new head, start from the pre-trained weights, train all layers"
    ),
    Case.LARGE_DIFFERENT: Policy(
        4, "top", False, 3e-4, None, "new head, train all layers, from random weights if that is better"
    ),
}

SCRATCH_LEARNING_RATE = 1e-3
"""Learning rate for networks with random weights, Adam's default: there are no features to protect."""


def rule_of_thumb(num_images: int, similar: bool) -> Case:
    """Choose a case by the classic rule: the amount of data, and their similarity to the pre-training data.

    Args:
        num_images: number of training images, 1 or more. Fewer than `SMALL_DATA` are small data.
        similar: whether the images resemble the pre-training data (ImageNet: photos of objects).

    Returns:
        The case.

    Raises:
        InputError: `num_images` is below 1.

    Example:
        >>> rule_of_thumb(500, similar=False)
        <Case.SMALL_DIFFERENT: 'small-different'>
        >>> rule_of_thumb(1_000_000, similar=True)
        <Case.LARGE_SIMILAR: 'large-similar'>
    """
    if num_images < 1:
        raise InputError(f"Expected at least 1 training image. Received: num_images={num_images}.")
    if num_images < SMALL_DATA:
        return Case.SMALL_SIMILAR if similar else Case.SMALL_DIFFERENT
    return Case.LARGE_SIMILAR if similar else Case.LARGE_DIFFERENT


def frozen_case(*, whole: bool) -> Case:
    """Return the case of a head on a frozen network that is kept whole, or cut at an early layer."""
    return Case.SMALL_SIMILAR if whole else Case.SMALL_DIFFERENT


def early_position(num_blocks: int) -> int:
    """Return the position of the block after which `small_different` cuts by default."""
    return max(0, min(num_blocks - 1, round(EARLY_CUT * num_blocks) - 1))
