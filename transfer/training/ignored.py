"""Log the options of `fit` and of the builders that have no effect on a model."""

from __future__ import annotations

import logging
import math
from dataclasses import fields
from typing import Any

import keras

from transfer.cases.compiling import learning_rate_of
from transfer.cases.decisions import find_decision
from transfer.cases.policies import OPTIMIZERS, POLICIES, SCRATCH_LEARNING_RATE
from transfer.training.head_training import MAX_EXACT_BYTES, excludes_exact
from transfer.training.option_table import (
    HEAD,
    NETWORK,
    Situation,
    describe_ignored,
    head_situations,
    ignored_options,
)
from transfer.training.phases import TrainingSettings
from transfer.training.recipes import Recipe
from transfer.training.schedules import BATCH_SIZE
from transfer.training.upper_layers import parts_to_train

logger = logging.getLogger(__name__)

_DEFAULTS: dict[str, Any] = {
    "epochs": None,
    "batch_size": BATCH_SIZE,
    "augment": "light",
    "flip": None,
    "class_weights": None,
    "solver": "auto",
    "dropout": 0.0,
    "views": None,
}


def log_ignored(settings: TrainingSettings) -> None:
    """Log in one line for each reason which options have no effect."""
    decision = find_decision(settings.model)
    ignored = ignored_options(_given(settings), situations_in_fit(settings))
    for line in describe_ignored(ignored, case=decision.case if decision else ""):
        logger.warning("%s", line)


def situations_in_fit(settings: TrainingSettings) -> frozenset[Situation]:
    """Return the kind of training of a model; two if pre-trained weights may fail."""
    decision = find_decision(settings.model)
    if not settings.head_only:
        init = decision.init if decision else "pretrained"
        kinds = {"random": frozenset({Situation.FROM_SCRATCH}), "auto": NETWORK}
        return kinds.get(init, frozenset({Situation.FINE_TUNING}))
    kinds_of_head = head_situations(settings.solver)
    if kinds_of_head != HEAD:
        return kinds_of_head
    if excludes_exact(settings.model, head_only=True):
        return frozenset({Situation.EPOCHS})
    width = settings.model.layers[-1].input.shape[-1]
    size = 4 * math.prod((settings.views or 1, len(settings.data.train), width))
    return frozenset({Situation.EXACT if size <= MAX_EXACT_BYTES else Situation.EPOCHS})


def _given(settings: TrainingSettings) -> dict[str, Any]:
    """Return the options that differ from their defaults, those of the recipe and of the builder included."""
    given = {name: getattr(settings, name) for name in _DEFAULTS}
    if settings.flip_problem:  # `fit` itself switched flips off
        given["flip"] = None
    given = {name: value for name, value in given.items() if value != _DEFAULTS[name]}
    for field in fields(Recipe):
        value = getattr(settings.recipe, field.name)
        if value != field.default:
            given[field.name] = value
    if not settings.head_only and settings.views is not None and parts_to_train(settings) is not None:
        given["unfreeze_from"] = True
    return {**given, **_given_to_builder(settings.model)}


def _given_to_builder(model: keras.Model) -> dict[str, Any]:
    """Return the options of the optimizer that a builder was given."""
    decision = find_decision(model)
    if decision is None:
        return {}
    given: dict[str, Any] = {}
    if decision.optimizer != "adam":
        given["optimizer"] = decision.optimizer
    default = SCRATCH_LEARNING_RATE if decision.init == "random" else POLICIES[decision.case].learning_rate
    default = OPTIMIZERS.get(decision.optimizer, {}).get("learning_rate", default)
    rate = learning_rate_of(model.optimizer)
    if not math.isclose(rate, default, rel_tol=1e-5):
        given["learning_rate"] = rate
    if model.steps_per_execution != 1:
        given["steps_per_execution"] = model.steps_per_execution
    return given
