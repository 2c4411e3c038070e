"""Write the run of a model that improves: whole after each step that is kept, with its report at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from transfer.adviser.advice import Advice
from transfer.anytime.candidates import Candidate
from transfer.anytime.clock import Clock
from transfer.anytime.records import History
from transfer.config import TrainConfig, load_config, save_config
from transfer.evaluation.evaluate import evaluate, scale_head
from transfer.evaluation.metrics import fit_temperature
from transfer.images.data_report import DataReport  # noqa: F401
from transfer.images.datasets import ImageData
from transfer.results import rescue, run_writer, saved_runs
from transfer.results.file_names import CONFIG, STEPS
from transfer.results.finished_runs import load_run
from transfer.results.run_folders import ImprovedFolder
from transfer.results.run_writer import RunResults


@dataclass
class ImprovedRun:
    """Writes the runs of the models that are kept into one folder."""

    folder: ImprovedFolder
    config: TrainConfig
    data: ImageData
    clock: Clock
    # What was written last; None if nothing was.
    results: RunResults | None = field(default=None, init=False)

    def write(self, candidate: Candidate, history: History, advice: Advice) -> None:
        """Evaluate a model and write its run, without figures and pages, in place of the earlier one."""
        model, data, options = candidate.model, self.data, self.config.evaluate_options()
        if self.results is None and not self.folder.written:
            rescue.warn_if_full(self.folder.partial, model)
        temperature = None
        if self.config.calibrate:
            temperature = fit_temperature(candidate.labels, candidate.probabilities)
            scale_head(model, temperature)
        evaluation = evaluate(model, data, **options) if len(data.test) else None
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
            config, model, data, candidate.training, evaluation, metrics=metrics, seconds=self.clock.seconds
        )

        def write(place: Path) -> None:
            run_writer.write_run(place, results)
            history.save(place / STEPS)

        final = self.folder.final
        self.folder.replace(lambda place: rescue.write_somewhere(place, write, final=final))
        self.results = results

    def finish(self, history: History, advice: Advice) -> None:
        """Write the steps, the advice and the report."""
        final = self.folder.final
        history.save(final / STEPS)
        run_writer.write_advice(final, advice)
        if self.results is not None:
            saved_runs.write_report(final, self.results)
        else:
            config = replace(load_config(final / CONFIG), time_budget=self.config.time_budget)
            save_config(config, final / CONFIG)
            run_writer.write_pages(final)


def kept_weights(config: TrainConfig, folder: Path) -> list[np.ndarray]:
    """Return the weights of the model of a run."""
    weights: list[np.ndarray] = load_run(folder, custom_objects=config.custom_objects).model.get_weights()
    return weights
