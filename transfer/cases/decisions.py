"""The decisions of the builders about each model, in one registry. An entry lives as long as its model."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import keras

from transfer.cases.policies import POLICIES, Case
from transfer.common.display import one_line
from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, REGRESSION, SINGLE, TASK
from transfer.common.text import plural


@dataclass(frozen=True)
class CaseDecision:
    """The decisions of a builder about a model: its case, its cut, its trainable blocks.

    Attributes:
        case: one of the four cases.
        cut: name of the last layer that the head sees.
        cuts: names of all layers that the head sees, in the order of the network.
        init: initial weights: `"pretrained"`, `"random"`, or `"auto"`.
        base: name of the network.
        kept: last layers of the blocks that were kept.
        cut_away: last layers of the blocks that were cut away.
        had_classifier: whether the network had a classifier, which was sliced off.
        pin_batchnorm: whether BatchNormalization keeps its pre-trained statistics and weights.
        trained: last layers of the blocks that `unfreeze` made trainable.
        optimizer: name of the optimizer; empty for an optimizer object of the caller.
        flip: whether `fit` allowed augmentation to flip images; None before `fit`, and if no images are augmented.
        fine_tuned: whether `fit` fine-tuned the pre-trained layers; False if that did not improve the validation
            accuracy, so that the model is a new head on the pre-trained network. None before fine-tuning.
        own_head: whether the head is one of the caller, instead of the Dense layer of the task.
        task: what the labels are: `"single"`, `"multi"`, `"ordinal"` or `"regression"`.
        averaged: the decisions about the models of which this model returns the average; empty for a single model.
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
    flip: bool | None = None
    fine_tuned: bool | None = None
    own_head: bool = False
    averaged: tuple[CaseDecision, ...] = ()
    task: str = SINGLE

    def __repr__(self) -> str:
        parts = f"{plural(len(self.kept), 'block')} kept, {len(self.cut_away)} cut away"
        text = f"{self.case} with {self.base}, cut at {self.cut!r}, {self.init} weights; {parts}"
        return one_line(self, text)

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """The blocks from input to output, each with `"frozen"`, `"trained"`, `"new"` or `"cut"`."""
        frozen = POLICIES[self.case].frozen or self.fine_tuned is False
        state = "frozen" if frozen else "new" if self.init == "random" else "trained"
        trained = () if self.fine_tuned is False else self.trained
        blocks = [(end, "trained" if end in trained else state) for end in self.kept]
        head = "head" if self.own_head else TASK[self.task].activation
        blocks += [(head, "new"), *((end, "cut") for end in self.cut_away)]
        return blocks + [("source classifier", "cut")] * self.had_classifier


_DECISIONS: WeakKeyDictionary[keras.Model, CaseDecision] = WeakKeyDictionary()


def record_decision(model: keras.Model, decision: CaseDecision) -> None:
    """Record the decision about a model."""
    _DECISIONS[model] = decision


def find_decision(model: keras.Model) -> CaseDecision | None:
    """Return the decision about a model, or None if no builder made it."""
    return _DECISIONS.get(model) if isinstance(model, keras.Model) else None


def task_of_model(model: keras.Model) -> str:
    """Return the task of a model by its decision, or without one by the activation of its last layer."""
    decision = find_decision(model)
    if decision is not None:
        return decision.task
    activation = getattr(model.layers[-1], "activation", None)
    if activation is keras.activations.linear and model.output_shape[-1] == 1:
        return REGRESSION
    return MULTI if activation is keras.activations.sigmoid else SINGLE


def decision_of(model: keras.Model) -> CaseDecision:
    """Return the decision about a built model: its case, its cut, its blocks.

    Args:
        model: a model that a builder made in this process. Models that were loaded from a file have no decision.

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
        received = getattr(model, "name", type(model).__name__)
        raise InputError(
            f"Expected a model from a builder, such as small_similar. Received: {received!r}, whose case is unknown."
        )
    return decision
