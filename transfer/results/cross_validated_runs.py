"""Write the run of a cross-validation: its out-of-fold predictions, and a model that is trained on all images."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras

from transfer.adviser.cross_validation import CrossValidation, run_folds
from transfer.adviser.fold_training import FoldTraining
from transfer.anytime.clock import Clock
from transfer.anytime.plan import SECONDS, Planner
from transfer.anytime.speeds import Speeds
from transfer.common.text import format_duration, plural
from transfer.config import TrainConfig
from transfer.evaluation.evaluate import evaluate
from transfer.evaluation.evaluation import ordinal_text
from transfer.images.datasets import ImageData
from transfer.images.folds import FoldedData, fold_data
from transfer.images.split_file import write_split
from transfer.results import rescue, run_folders, run_writer, saved_runs
from transfer.results.file_names import SPLIT
from transfer.training.option_table import HEAD
from transfer.training.schedules import epochs_for

log = logging.getLogger("transfer")

_PURPOSES = {"val": "validation", "test": "test"}

HEAD_SECONDS = 4.0
"""Nominal seconds to choose and solve one head."""


def cross_validated_run(
    config: TrainConfig,
    data: ImageData,
    base: keras.Model,
    devices: Any,
    clock: Clock,
    resume_from: Path | None,
) -> Path:
    """Cross-validate a training, train its model on the images of all folds, and write the run."""
    folded = fold_data(data, config.folds or 0, seed=config.seed)
    training = FoldTraining(config, folded, base, devices=devices)
    log.info("%s", _describe(config, folded, base))
    name, options = f"{data.name}-{folded.count}-folds", config.result_options
    with run_folders.run_folder(config.output, name, options=options, resume_from=resume_from) as folder:
        rescue.warn_if_full(folder, base)
        write_split(folder / SPLIT, folded.final().splits, data.class_names)
        checkpoints = folder / run_folders.CHECKPOINTS
        result = run_folds(training, checkpoints, trainings_after=1)
        log.info("%s", result.sentence())
        if text := ordinal_text(result.evaluation):
            log.info("%s", text.strip())
        model, used, history = training.final(checkpoints)
        log.info("%s", _describe_final(used))
        options = {**config.evaluate_options(), "rule": result.evaluation.rule}
        evaluation = evaluate(model, used, **options) if len(used.test) else None
        out_of_fold = result.evaluation.probabilities, result.evaluation.labels
        limits = saved_runs.limits_of(model, used, evaluation, engine=config.engine, held_out=out_of_fold)
        results = replace(
            saved_runs.results_of(
                replace(config, output=None, resume=False), model, used, history, evaluation,
                metrics=_metrics(result), seconds=clock.seconds, limits=limits, rule=options["rule"],
            ),
            cross_validation=result,
        )  # fmt: skip
        rescue.write_somewhere(folder, partial(run_writer.write_run, results=results))
    final = run_folders.final_folder(folder)
    if evaluation is not None:
        log.info("Test %s on the %d test images of the data.", evaluation.headline, len(used.test))
    saved_runs.write_report(final, results)
    return final


def _metrics(result: CrossValidation) -> dict[str, Any]:
    """Return the values of a cross-validation for `metrics.json`."""
    return {
        "folds": len(result.fold_accuracies),
        "cross_validated_accuracy": result.accuracy,
        "cross_validated_interval": list(result.interval),
    }


def _describe_final(data: ImageData) -> str:
    """Return which images the final model trains on."""
    text = f"Trained the model of the run on {plural(len(data.train), 'image')}."
    if not len(data.val):
        return text
    return f"{text} {plural(len(data.val), 'more image')} for validation."


def _describe(config: TrainConfig, folded: FoldedData, base: keras.Model) -> str:
    """Return the images, the folds, and the estimated time."""
    data, seconds = folded.data, estimated_seconds(config, folded, base)
    given = [
        plural(len(part), f"given {_PURPOSES[name]} image")
        for name, part in data.splits.items()
        if name != "train" and len(part)
    ]
    others = " and ".join(given)
    return (
        f"{data.name}: {data.num_classes} classes; {plural(len(data.train), 'image')} in {folded.count} folds"
        f"{', and ' if others else ''}{others}. {folded.count} trainings and the final one take about "
        f"{format_duration(seconds)} (estimated)."
    )


def estimated_seconds(config: TrainConfig, folded: FoldedData, base: keras.Model) -> float:
    """Return the nominal time of all trainings on this machine."""
    planner, size, network = Planner(Speeds()), base.input_shape[1] or 224, config.models[0]
    count, trainings = len(folded.data.train), folded.count + 1
    forward = count * planner.forward(network, size)
    if config.situations <= HEAD:
        return forward + trainings * HEAD_SECONDS
    images = round(count * (1 - 1 / folded.count))
    init = "random" if config.init == "random" or config.weights == "none" else "pretrained"
    epochs = config.epochs or epochs_for(images, config.batch_size, init=init)
    steps = epochs * -(-images // config.batch_size)
    training = steps * planner.training_step(network, size, config.batch_size)
    return forward + trainings * (SECONDS["start"] + training)
