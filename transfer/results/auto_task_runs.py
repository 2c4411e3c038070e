"""Write the run of `--case auto` for several labels or a number per image: a head, and fine-tuning if time is left."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras

from transfer.adviser.sample_features import SampleFeatures, extract_sample, known_features
from transfer.adviser.task_advice import TaskAdvice, advise_task
from transfer.anytime.candidates import EpochProgress
from transfer.anytime.clock import Clock
from transfer.anytime.plan import SECONDS, Planner
from transfer.anytime.speeds import Speeds
from transfer.cases.builders import build
from transfer.common.streams import quiet
from transfer.common.tasks import TASK, score_text
from transfer.common.text import format_duration, plural, seconds_of
from transfer.config import TrainConfig
from transfer.evaluation.evaluate import decision_options, evaluate
from transfer.images.datasets import ImageData
from transfer.images.split_file import write_split
from transfer.results import rescue, run_folders, run_writer, saved_runs
from transfer.results.file_names import SPLIT
from transfer.training.fit import fit
from transfer.training.phases import TrainingLog

log = logging.getLogger("transfer")

MIN_EPOCHS = 3
"""Fewest epochs of fine-tuning that must fit into the time that is left."""


@dataclass(frozen=True, eq=False)
class _Trained:
    """A trained model with its options."""

    config: TrainConfig
    model: keras.Model
    training: TrainingLog
    score: float  # on the validation images

    def describe(self, data: ImageData) -> str:
        """Return what was trained, and its score on the validation images."""
        what = "Head on the frozen network" if self.config.cut is not None else "Fine-tuned network"
        if not len(data.val):
            return f"{what}: trained."
        task = TASK[data.task]
        score = score_text(task.metric, self.score)
        return f"{what}: {task.metric_name} {score} on {plural(len(data.val), 'validation image')}."


def auto_task_run(
    config: TrainConfig,
    data: ImageData,
    base: keras.Model,
    devices: Any,
    clock: Clock,
    resume_from: Path | None,
) -> Path:
    """Train the best head, fine-tune if time is left, and write the run of the better model."""
    name, options = f"{data.name}-auto", config.result_options
    with run_folders.run_folder(config.output, name, options=options, resume_from=resume_from) as folder:
        rescue.warn_if_full(folder, base)
        write_split(folder / SPLIT, data.splits, data.class_names)
        best, advice, compared = _best_model(
            config, data, base, devices, clock, folder / run_folders.CHECKPOINTS
        )
        used = best.config.evaluate_options()
        decided = decision_options(best.model, data, **used)
        evaluation = evaluate(best.model, data, **used, **decided) if len(data.test) else None
        results = saved_runs.results_of(
            replace(config, output=None, resume=False), best.model, data, best.training, evaluation,
            metrics={"model": config.model, "compared": compared, **advice.metrics}, seconds=clock.seconds,
            limits=saved_runs.limits_of(best.model, data, evaluation, engine=config.engine), **decided,
        )  # fmt: skip
        run_writer.write_advice(folder, advice)
        rescue.write_somewhere(folder, partial(run_writer.write_run, results=results))
    final = run_folders.final_folder(folder)
    if evaluation is not None:
        log.info("Test %s on %d held-out images.", evaluation.headline, len(data.test))
    saved_runs.write_report(final, results)
    return final


def _best_model(
    config: TrainConfig, data: ImageData, base: keras.Model, devices: Any, clock: Clock, checkpoints: Path
) -> tuple[_Trained, TaskAdvice, list[str]]:
    """Return the model with the higher score on the validation images, the advice, and the scores in words."""
    options: dict[str, Any] = {"preprocessing": config.preprocessing, "seed": config.seed}
    sample = extract_sample(data, base, engine=config.engine, **options)
    advice = advise_task(data, base, sample, trial=False, balanced=config.class_weights, **options)
    log.info("%s", advice.head_sentence)
    chosen = replace(config, case=str(advice.case), cut=advice.cut)
    best = _train(chosen, data, base, devices, checkpoints / "head", sample=sample)
    compared = [best.describe(data)]
    log.info("%s", compared[0])
    left = clock.left - SECONDS["report"]
    size, planner = base.input_shape[1] or sample.image_size[0], Planner(Speeds())
    step = planner.training_step(config.models[0], size, config.batch_size)
    needed = SECONDS["start"] + MIN_EPOCHS * -(-len(data.train) // config.batch_size) * step
    if not len(data.val):
        log.info("There are no validation images to compare models, so the network is not fine-tuned.")
        return best, advice, compared
    if left < needed:
        text = "Fine-tuning needs about %s or more, and %s are left. For it, choose a larger --time-budget."
        log.info(text, format_duration(needed), format_duration(max(0.0, left)))
        return best, advice, compared
    chosen = replace(config, case=str(advice.fine_tuning_case))
    limit = None if left == float("inf") else left
    tuned = _train(chosen, data, base, devices, checkpoints / "fine-tuning", time_limit=limit)
    compared.append(tuned.describe(data))
    log.info("%s", compared[1])
    return (tuned if tuned.score > best.score else best), advice, compared


def _train(
    config: TrainConfig,
    data: ImageData,
    base: keras.Model,
    devices: Any,
    checkpoints: Path,
    *,
    sample: SampleFeatures | None = None,
    **limits: Any,
) -> _Trained:
    """Train the model of a case."""
    used = config.without_ignored()
    task: dict[str, Any] = {"num_classes": data.num_classes, "task": data.task, "strategy": devices}
    model = build(base=base, **task, **used.build_options())
    known = known_features(sample, model) if sample is not None else None
    options = {**used.fit_options(), "known_features": known, "checkpoints": checkpoints, "verbose": 0}
    options["checkpoint_every"] = seconds_of(config.checkpoint_every) or 0.0
    if sample is None:
        options["callbacks"] = [EpochProgress("fine-tuning")]
    with quiet("transfer.training"):
        training = fit(model, data, **options, **limits)
    score = evaluate(model, data, split="val", **used.evaluate_options()).score if len(data.val) else 0.0
    return _Trained(config, model, training, score)
