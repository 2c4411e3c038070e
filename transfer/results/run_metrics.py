"""Collect the values of a run's `metrics.json`, and describe its model by them."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from typing import Any

import keras

from transfer.cases.decisions import CaseDecision, decision_of
from transfer.cases.policies import POLICIES, Case
from transfer.common.tasks import SINGLE, TASK
from transfer.config import TrainConfig
from transfer.distributed.process_group import versions
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.images.datasets import ImageData
from transfer.training.phases import TrainingLog

ADVISED = ("similarity", "expected_accuracy", "expected_interval")
"""Keys whose value is None in a run without advice."""

_METRICS: dict[type, tuple[str, ...]] = {
    LabelEvaluation: ("mean_average_precision", "f1_micro", "f1_macro"),
    ValueEvaluation: ("r2", "mean_absolute_error"),
}


def collect_metrics(
    model: keras.Model, data: ImageData, training: TrainingLog, evaluation: AnyEvaluation | None
) -> dict[str, Any]:
    """Return the metrics of a trained model, without the times and the advice, which the caller adds."""
    decision = decision_of(model)
    averaged = [_describe(one) | {"init": one.init, "network": one.base} for one in decision.averaged]
    return {
        **_describe(decision),
        "init": training.init,
        **({"averaged": averaged} if averaged else {}),
        **({"engine": training.engine} if training.engine else {}),
        "num_computed": training.computed,
        "views": training.views,
        "flip": training.flip,
        "flip_problem": training.flip_problem,
        "regularization": training.regularization,
        "head_method": training.head_method if training.regularization is not None else None,
        "image_size": list(model.input_shape[1:3]),
        "num_classes": data.num_classes,
        "num_train": len(data.train),
        "num_val": len(data.val),
        "num_test": len(data.test),
        "num_skipped": len(data.skipped),
        "task": data.task,
        "test_accuracy": evaluation.accuracy if isinstance(evaluation, Evaluation) else None,
        "test_loss": evaluation.loss if evaluation else None,
        **_of_task(evaluation),
        **dict.fromkeys(ADVISED),
        "seconds_features": round(training.seconds_features, 3),
        "seconds_training": round(training.seconds_training, 3),
        "peak_memory_mb": round(_peak_bytes() / 2**20),
        "trainable_parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "versions": versions(),
    }


def _of_task(evaluation: AnyEvaluation | None) -> dict[str, float | None]:
    """Return the metrics that only one task has; None for one that is undefined."""
    names, scores = _METRICS.get(type(evaluation), ()), {}
    if isinstance(evaluation, Evaluation) and evaluation.ordinal:
        scores = evaluation.ordinal._asdict()
    scores |= {name: getattr(evaluation, name) for name in names}
    return {f"test_{name}": value if math.isfinite(value) else None for name, value in scores.items()}


def _describe(decision: CaseDecision) -> dict[str, Any]:
    """Return the values of a model from which `describe_training` describes it."""
    return {
        "case": str(decision.case),
        "cut": decision.cut,
        "cuts": list(decision.cuts),
        "rolled_back": decision.fine_tuned is False,
    }


def describe_training(metrics: Mapping[str, Any], config: TrainConfig) -> str:
    """Return what the model of a run is: its frozen, fine-tuned and new layers."""
    if averaged := metrics.get("averaged"):
        networks = [f"{one['network']}, " for one in averaged]
        shown = networks if len(set(networks)) > 1 else [""] * len(averaged)
        models = [
            f"{name}{describe_training(one, config)}" for name, one in zip(shown, averaged, strict=True)
        ]
        return f"the average of {len(models)} models: " + "; and ".join(models)
    cuts = metrics.get("cuts") or (metrics["cut"],)
    several, weights = len(cuts) > 1, "random" if config.weights == "none" else "pre-trained"
    seen = f"on {len(cuts)} layers of" if several else "on"
    if metrics.get("rolled_back"):
        metric = TASK[metrics.get("task", SINGLE)].metric_name
        undone = f"fine-tuning did not improve the validation {metric} and was undone"
        return f"a new head {seen} the frozen network ({undone})"
    if POLICIES[Case.parse(metrics["case"])].frozen and config.unfreeze_from is None:
        whole = "the frozen network" if weights == "pre-trained" else "a frozen network with random weights"
        return f"a new head {seen} {whole}" + ("" if several else f", after {cuts[0]}")
    head = f"a new head {seen} the network" if several else f"a new head after {cuts[0]}"
    if config.unfreeze_from is not None:
        return f"{head}; {config.unfreeze_from} and the layers after it are fine-tuned, the others frozen"
    if config.lora is not None:
        return f"{head}, trained with LoRA of rank {config.lora} on frozen {weights} weights"
    start = "random" if metrics.get("init") == "random" else weights
    return f"{head}, all layers trained from {start} weights"


def _peak_bytes() -> int:
    """Return the peak memory of this process; macOS reports bytes, Linux kilobytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
