"""The case of a run, from the options or from the advice."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import keras

from transfer.adviser.advice import Advice
from transfer.adviser.advise import advise
from transfer.adviser.estimates import RANDOM
from transfer.adviser.sample_features import SampleFeatures, extract_sample
from transfer.adviser.task_advice import TaskAdvice
from transfer.cases.policies import Case
from transfer.common.tasks import MULTI, REGRESSION
from transfer.config import FROZEN_ONLY, TrainConfig
from transfer.distributed.process_group import current_group
from transfer.images.datasets import ImageData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A case, with the options and the estimates of the advice."""

    case: str
    options: dict[str, Any] = field(default_factory=dict)
    # Keys of metrics.json: similarity, expected_accuracy, expected_interval.
    advised: dict[str, Any] = field(default_factory=dict)

    @property
    def decision(self) -> dict[str, Any]:
        """The choice as JSON, for a run that is resumed."""
        return {"case": self.case, "options": self.options, "advised": self.advised}


def choose_case(
    config: TrainConfig, data: ImageData, base: keras.Model
) -> tuple[Choice, Advice | TaskAdvice | None, SampleFeatures | None]:
    """Return the case of a run; with `auto`, also the advice and the features that it measured."""
    if config.case != "auto":
        return Choice(str(Case.parse(config.case))), None, None
    if config.unfreeze_from is not None and config.cut is None:  # a cut could remove the layers to train
        return Choice(str(Case.SMALL_SIMILAR)), None, None
    options: dict[str, Any] = {
        "preprocessing": config.preprocessing,
        "engine": config.engine,
        "seed": config.seed,
    }
    sample = extract_sample(data, base, **options)
    made: list[Advice | TaskAdvice] = []  # filled by the chief only; other workers receive the decision

    def decide() -> dict[str, Any]:
        made.append(_advise(config, data, base, sample=sample, **options))
        return _choice_of(config, made[0]).decision

    decision = current_group().broadcast(decide)
    return Choice(**decision), made[0] if made else None, sample


def _advise(config: TrainConfig, data: ImageData, base: keras.Model, **options: Any) -> Advice | TaskAdvice:
    """Estimate all cases and log the recommendation with its warnings."""
    advice = advise(
        data,
        base,
        time_budget=config.budget,
        trial=data.task not in (MULTI, REGRESSION),  # for these, only heads are compared
        frozen=any(getattr(config, name) != getattr(TrainConfig, name) for name in FROZEN_ONLY),
        **options,
    )
    if isinstance(advice, TaskAdvice):
        log.info("%s", advice.head_sentence)
        return advice
    log.info("%s", advice.reason)
    for warning in advice.warnings:
        log.warning("%s", warning.text)
    return advice


def _choice_of(config: TrainConfig, advice: Advice | TaskAdvice) -> Choice:
    metrics = advice.metrics if isinstance(advice, TaskAdvice) else advised_metrics(advice)
    return Choice(str(advice.case), _options_of(config, advice), metrics)


def advised_metrics(advice: Advice) -> dict[str, Any]:
    """Return the values of an advice for `metrics.json`."""
    return {
        "similarity": advice.similarity.score if advice.similarity else None,
        "expected_accuracy": advice.choice.expected_accuracy,
        "expected_interval": list(advice.choice.interval),
    }


def _options_of(config: TrainConfig, advice: Advice | TaskAdvice) -> dict[str, Any]:
    """Return the options that the advice sets; options that the user changed stay as they are."""
    if advice.cut == RANDOM:
        return {"init": "random"} if config.init == TrainConfig.init else {}
    return {} if config.cut or advice.cut is None else {"cut": advice.cut}
