"""The four classic cases of transfer learning, as data: what each cuts, trains and starts from.

| | similar to the pre-training data | different |
|---|---|---|
| small data | 1. new head on the frozen network | 2. new head on its frozen early layers |
| large data | 3. new head, retrain everything from the pre-trained weights | 4. the same, or from random weights |

Nothing here knows a network; `builders` turns a policy into a model.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from transfer.common.errors import InputError, unknown

SMALL_DATA = 20_000
"""Below this many training images data count as small. The rule of thumb speaks of two thousand
as small and a million as large and leaves the line open; 20,000 is where the BiT HyperRule
(Kolesnikov et al. 2020, arXiv:1912.11370) ends its small regime."""

EARLY_CUT = 0.8
"""How deep `small_different` cuts by default, as a share of the network's blocks. On five data
sets the blocks at about four fifths gave the best single layer of EfficientNet-Lite0 in most
and were never far off; cutting at half lost 5 to 23 points."""

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
"""Data types that layers compute in. The last two are for GPUs and TPUs."""

OPTIMIZERS: dict[str, dict[str, float]] = {
    "adam": {},
    "rmsprop": {"learning_rate": 0.001, "rho": 0.9, "momentum": 0.9, "epsilon": 0.1},
}
"""Optimizers with their settings: Adam with Keras' defaults and the case's learning rate, or RMSProp with all settings
of Esteva et al. (2017), doi:10.1038/nature21056."""


class Case(enum.StrEnum):
    """One of the four cases; its value is how the command line spells it.

    Example:
        >>> Case.parse("small-similar")
        <Case.SMALL_SIMILAR: 'small-similar'>
    """

    SMALL_SIMILAR = "small-similar"
    SMALL_DIFFERENT = "small-different"
    LARGE_SIMILAR = "large-similar"
    LARGE_DIFFERENT = "large-different"

    @classmethod
    def parse(cls, name: str | Case) -> Case:
        """Read a case's name; hyphens and underscores are the same.

        Args:
            name: a `Case` or its name, such as `"small-similar"`.

        Returns:
            The case.

        Raises:
            InputError: no case has that name; the nearest names are listed.

        Example:
            >>> Case.parse("large_different").value
            'large-different'
        """
        try:
            return cls(str(name).lower().replace("_", "-"))
        except ValueError:
            raise unknown("case", name, [case.value for case in cls]) from None


@dataclass(frozen=True)
class Policy:
    """What a case asks of the builders; every default of a case is said here and nowhere else."""

    # 1 to 4, as the lesson counts the cases.
    number: int
    cut: str
    frozen: bool
    learning_rate: float
    # Passes over the training data, at most, where the head trains in epochs.
    epochs: int | None
    idea: str


# Head: one Dense layer on scaled features bears thrice Adam's default rate and needs a third of the epochs
# for it; they cost milliseconds, and early stopping ends them. Everything: a third of the default rate, warmed
# up and brought down to 0, keeps pre-trained features from being torn.
POLICIES: dict[Case, Policy] = {
    Case.SMALL_SIMILAR: Policy(
        1, "top", True, 3e-3, 100, "slice off the classifier, freeze everything, train a new head"
    ),
    Case.SMALL_DIFFERENT: Policy(
        2, "early", True, 3e-3, 100, "keep only the early layers, freeze them, train a new head"
    ),
    Case.LARGE_SIMILAR: Policy(
        3, "top", False, 3e-4, None, "new head, start from the pre-trained weights, retrain everything"
    ),
    Case.LARGE_DIFFERENT: Policy(
        4, "top", False, 3e-4, None, "new head, retrain everything, from random weights where that is better"
    ),
}

SCRATCH_LEARNING_RATE = 1e-3
"""Adam's default, for networks that start from random weights: there are no features to protect."""


def rule_of_thumb(num_images: int, similar: bool) -> Case:
    """Choose a case by the classic rule: how much data, and how like the pre-training data.

    Args:
        num_images: number of training images, 1 or more.
        similar: whether the images resemble those of the pre-training (ImageNet: photos of things).

    Returns:
        The case; data are small below `SMALL_DATA` images.

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


def early_position(num_blocks: int) -> int:
    """Give the position of the block after which `small_different` cuts by default."""
    return max(0, min(num_blocks - 1, round(EARLY_CUT * num_blocks) - 1))
