"""Write the run of a model that improves: whole after each step that is kept, with its report at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.adviser.advice import Advice
from transfer.anytime.candidates import Candidate
from transfer.anytime.clock import Clock
from transfer.anytime.records import History, damaged, read_history
from transfer.anytime.run import AnytimeRun
from transfer.common.decision_rules import choose_rule
from transfer.common.errors import InputError
from transfer.config import TrainConfig, load_config, save_config
from transfer.evaluation.evaluate import evaluate, scale_head
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.metrics import averaged_probabilities, fit_temperature
from transfer.images.datasets import ImageData
from transfer.images.split_file import describe_changes
from transfer.networks.gradients import averaged_models
from transfer.results import rescue, run_writer, saved_runs
from transfer.results.file_names import CONFIG, SPLIT, STEPS
from transfer.results.finished_runs import load_run
from transfer.results.run_folders import IMPROVED, ImprovedFolder, improved_folder
from transfer.results.run_writer import RunResults

log = logging.getLogger("transfer")


def improve_run(
    config: TrainConfig,
    data: ImageData,
    base: keras.Model,
    devices: Any,
    clock: Clock,
    finished: Path | None,
    networks: Sequence[str],
    *,
    log_results: Callable[[RunResults], None],
) -> tuple[Path, str]:
    """Train a head, or continue a finished run, and improve it; return its folder and the outlook."""
    finished = _same_images(config, data, finished)
    history = read_history(finished / STEPS) if finished is not None else None
    if finished is not None and history is not None and history.covers(clock.budget):
        return finished, IMPROVED
    with improved_folder(config.output, f"{data.name}-auto", continued=finished) as folder:
        written = ImprovedRun(folder, config, data, clock)
        run = AnytimeRun(
            config,
            data,
            base,
            clock,
            networks=networks,
            devices=devices,
            history=history,
            load_kept=lambda: kept_weights(config, folder.final),
        )
        if finished is not None and history is not None and len(history.correct) != len(run.pool.val):
            raise damaged(finished)
        run.start(written.write)
        try:
            run.improve(written.write, folder.checkpoints)
        except BaseException:
            run.stop(written.history)
            log.info("The run in %s is that of the best model so far. Writing its report.", folder.final)
            raise
        else:
            if written.results is not None:
                log_results(written.results)
        finally:
            written.finish(run.history, run.summary())
    return folder.final, run.outlook()


def _same_images(config: TrainConfig, data: ImageData, finished: Path | None) -> Path | None:
    """Return a finished run if it has the same images; raise if it is to be continued with others."""
    changes = describe_changes(finished / SPLIT, data.splits) if finished is not None else ""
    if changes and config.output is not None:
        raise InputError(
            f"Expected the images of the run in {finished}. {changes}. Restore them, or choose another --output."
        )
    if changes:
        log.info("Since the run in %s, %s. Starting another run.", finished, changes)
    return None if changes else finished


@dataclass
class ImprovedRun:
    """Writes the runs of the models that are kept into one folder."""

    folder: ImprovedFolder
    config: TrainConfig
    data: ImageData
    clock: Clock
    # What was written last; None if nothing was.
    results: RunResults | None = field(default=None, init=False)
    history: History | None = field(default=None, init=False)

    def write(self, candidate: Candidate, history: History, advice: Advice) -> None:
        """Evaluate a model and write its run, without figures and pages, in place of the earlier one."""
        model, data, options = candidate.model, self.data, self.config.evaluate_options()
        if self.results is None and not self.folder.written:
            rescue.warn_if_full(self.folder.partial, model)
        temperature = None
        if self.config.calibrate:
            temperature = fit_temperature(candidate.labels, *candidate.probabilities)
            scale_head(model, temperature)
        rule = self._rule(candidate, temperature or 1.0)
        evaluation = evaluate(model, data, rule=rule, **options) if len(data.test) else None
        limits = self._limits(candidate, evaluation, temperature or 1.0)
        kept = history.steps[-1]
        metrics = {
            "model": candidate.network,
            "temperature": temperature,
            "similarity": advice.similarity.score if advice.similarity else None,
            "expected_accuracy": kept.accuracy,
            "expected_interval": list(kept.interval),
        }
        config = replace(self.config, output=None, resume=False)
        results = saved_runs.results_of(
            config, model, data, candidate.training, evaluation,
            metrics=metrics, seconds=self.clock.seconds, limits=limits, rule=rule,
        )  # fmt: skip

        def write(place: Path) -> None:
            run_writer.write_run(place, results)
            replace(history, stopped=True).save(
                place / STEPS
            )  # until `finish`, also if the command is killed

        final = self.folder.final
        self.folder.replace(
            lambda place: rescue.write_somewhere(place, write, final=final),
            then=partial(self._note, results, history),
        )
        if temperature is not None:  # later steps start from the weights before
            scale_head(model, 1 / temperature)
        if len(history.steps) == 1 and evaluation is not None:
            text = "A complete run is in %s. Test %s on %d held-out images."
            log.info(text, final, evaluation.headline, len(data.test))

    def _rule(self, candidate: Candidate, temperature: float) -> str | None:
        """Return the rule for ordered classes: the best one on predictions of images that training left out."""
        if not self.data.ordered:
            return None
        probabilities = averaged_probabilities(candidate.probabilities, temperature)
        return choose_rule(candidate.labels, probabilities)

    def _limits(
        self, candidate: Candidate, evaluation: AnyEvaluation | None, temperature: float
    ) -> saved_runs.Limits:
        """Return the reference of a model, and the measurements of its thresholds on the test images."""
        held_out = (
            None  # `fit` trained the model without the validation images: its own predictions are held out
        )
        if candidate.random:
            probabilities = averaged_probabilities(candidate.probabilities, temperature)
            held_out = probabilities, candidate.labels
        options: dict[str, Any] = {"engine": self.config.engine, "known": candidate.known}
        options["held_out"] = held_out
        return saved_runs.limits_of(candidate.model, self.data, evaluation, **options)

    def _note(self, results: RunResults, history: History) -> None:
        """Note what the folder now holds."""
        self.results, self.history = results, history

    def finish(self, history: History, advice: Advice) -> None:
        """Write the steps, the advice and the report."""
        final = self.folder.final
        replace(history, stopped=True).save(final / STEPS)  # the page shows the steps
        run_writer.write_advice(final, advice, figures=False)
        from transfer.adviser.advice_plots import advice_drawings  # imports matplotlib

        drawings = advice_drawings(advice)
        if self.results is not None:
            saved_runs.write_report(final, self.results, drawings)
        else:
            run_writer.write_figures(final, drawings)
            config = replace(load_config(final / CONFIG), time_budget=self.config.time_budget)
            save_config(config, final / CONFIG)
            run_writer.write_pages(final)
        history.save(final / STEPS)


def kept_weights(config: TrainConfig, folder: Path) -> list[np.ndarray]:
    """Return the weights of the fine-tuned network of a run, before its calibration."""
    run = load_run(folder, custom_objects=config.custom_objects)
    if run.metrics.get("temperature") is not None:
        scale_head(run.model, 1 / run.metrics["temperature"])
    weights: list[np.ndarray] = averaged_models(run.model)[-1].get_weights()  # a frozen head comes first
    return weights
