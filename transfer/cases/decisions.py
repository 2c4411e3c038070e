"""What a builder decided about a model, kept in one registry for as long as the model lives."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import keras

from transfer.cases.policies import POLICIES, Case
from transfer.common.errors import InputError


@dataclass(frozen=True)
class CaseDecision:
    """The case of a built model, where it was cut, and which of its blocks train.

    Attributes:
        case: one of the four cases.
        cut: the last layer that the head sees.
        cuts: all layers that the head sees, in the order of the network.
        init: where the weights start: `"pretrained"`, `"random"`, or `"auto"`.
        base: name of the network.
        kept: ends of the blocks that were kept.
        cut_away: ends of the blocks behind the cut.
        had_classifier: whether the network came with a classifier, which was sliced off.
        pin_batchnorm: whether BatchNormalization stays as it was pre-trained.
        trained: ends of the blocks that `unfreeze` made trainable.
        optimizer: a key of `OPTIMIZERS`.
    """

    case: Case
    cut: str
    cuts: tuple[str, ...]
    init: str
    base: str
    kept: tuple[str, ...]
    cut_away: tuple[str, ...]
    had_classifier: bool
    pin_batchnorm: bool
    trained: tuple[str, ...] = ()
    optimizer: str = "adam"

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """The network from input to output: (block, `"frozen"`, `"trained"`, `"new"` or `"cut"`)."""
        state = "frozen" if POLICIES[self.case].frozen else "new" if self.init == "random" else "trained"
        blocks = [(end, "trained" if end in self.trained else state) for end in self.kept]
        blocks += [("softmax", "new"), *((end, "cut") for end in self.cut_away)]
        return blocks + [("old classifier", "cut")] * self.had_classifier


_DECISIONS: WeakKeyDictionary[keras.Model, CaseDecision] = WeakKeyDictionary()


def record_decision(model: keras.Model, decision: CaseDecision) -> None:
    """Remember what a builder decided; the entry goes away with the model."""
    _DECISIONS[model] = decision


def find_decision(model: keras.Model) -> CaseDecision | None:
    """Return what a builder decided about a model, or None for a model that no builder made."""
    return _DECISIONS.get(model)


def decision_of(model: keras.Model) -> CaseDecision:
    """Return what a builder decided about a model: its case, its cut, its blocks.

    Args:
        model: of one of the builders, in this process. A model that was loaded from a file has no decision.

    Returns:
        The decision.

    Raises:
        InputError: no builder made the model.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> from transfer.cases.builders import small_different
        >>> decision_of(small_different(base, 4)).cut
        'block_13_project_BN'
    """
    decision = find_decision(model)
    if decision is None:
        raise InputError(
            f"Expected a model of a builder, such as small_similar. Received: {model.name!r}; its case is unknown."
        )
    return decision
