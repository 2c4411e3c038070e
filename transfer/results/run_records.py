"""Read the files of a finished run for its pages, without loading its model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transfer.adviser.cross_validation import CrossValidation
from transfer.common.errors import InputError
from transfer.common.tasks import SINGLE
from transfer.config import TrainConfig, load_config
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.images.data_report import DataReport
from transfer.results.file_names import (
    ADVICE,
    CONFIG,
    DATA,
    EVALUATION,
    FIGURES,
    FOLDS,
    LABELS,
    METRICS,
    MODEL,
    OUT_OF_FOLD,
    PREDICTIONS,
    STEPS,
)
from transfer.results.finished_runs import missing_run, read_json, read_text
from transfer.results.prediction_files import read_out_of_fold, read_predictions
from transfer.results.run_folders import final_folder
from transfer.results.run_metrics import describe_training
from transfer.results.stored_task import task_in

_MAX_BYTES = 2**25  # of a PNG file


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The contents of a finished run's files, except its model."""

    folder: Path
    metrics: dict[str, Any]
    config: TrainConfig
    evaluation: AnyEvaluation | None  # None without test images
    details: dict[str, Any]  # evaluation.json
    advice: dict[str, Any] | None
    data: DataReport | None
    steps: list[dict[str, Any]]  # of a run that was improved while its time budget lasted
    figures: dict[str, bytes]  # PNG files by figure name
    cross_validation: CrossValidation | None = None  # without its label issues
    folds: dict[str, Any] = field(default_factory=dict)  # cross_validation.json

    task: str = SINGLE

    @property
    def shown(self) -> AnyEvaluation | None:
        """The evaluation of the test images, or the out-of-fold predictions if there are no test images."""
        result = self.cross_validation
        return result.evaluation if self.evaluation is None and result is not None else self.evaluation

    @property
    def of_folds(self) -> bool:
        """Whether the report shows out-of-fold predictions, because there are no test images."""
        return self.evaluation is None and self.cross_validation is not None

    @property
    def versions(self) -> str:
        """The versions of the packages."""
        found = sorted(self.metrics.get("versions", {}).items())
        return ", ".join(f"{name} {version}" for name, version in found)

    @property
    def network(self) -> str:
        """The name of the network."""
        return str(self.metrics.get("model") or self.config.model)

    @property
    def lead(self) -> str:
        """A sentence about the model and its data."""
        return f"{self.network} on {self.config.data}: {describe_training(self.metrics, self.config)}."

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return final_folder(self.folder.resolve()).name


def read_record(folder: str | Path) -> RunRecord:
    """Read the files of a run."""
    place = Path(folder)
    if not (place / MODEL).is_file():
        raise missing_run(place)
    for name in (METRICS, CONFIG):
        if not (place / name).is_file():
            raise InputError(f"Expected the folder of a finished run. {place} has no {name}.")
    metrics = read_json(place / METRICS) or {}
    task = task_in(metrics, place / METRICS)
    details = read_json(place / EVALUATION) or {}
    form = {"rule": metrics.get("decision_rule"), "task": task, "thresholds": metrics.get("thresholds", ())}
    data, predictions, out_of_fold = read_json(place / DATA), place / PREDICTIONS, place / OUT_OF_FOLD
    return RunRecord(
        folder=place,
        metrics=metrics,
        config=load_config(place / CONFIG),
        evaluation=_evaluation(predictions, details, form) if predictions.is_file() else None,
        details=details,
        advice=read_json(place / ADVICE),
        steps=(read_json(place / STEPS) or {}).get("steps", []),
        data=None if data is None else DataReport.from_dict(data),
        figures={name: _png(path) for name in FIGURES if (path := place / f"{name}.png").is_file()},
        cross_validation=read_out_of_fold(out_of_fold, form["rule"]) if out_of_fold.is_file() else None,
        folds=read_json(place / FOLDS) or {},
        task=task,
    )


def _evaluation(path: Path, details: dict[str, Any], form: dict[str, Any]) -> AnyEvaluation:
    """Read the predictions of a run; the width of the intervals of predicted numbers is in its evaluation."""
    evaluation = read_predictions(path, **form)
    if not isinstance(evaluation, ValueEvaluation):
        return evaluation
    names = tuple(read_text(path.with_name(LABELS)).splitlines()) or evaluation.class_names
    return replace(evaluation, class_names=names, interval_width=details.get("interval_width"))


def _png(path: Path) -> bytes:
    """Read a PNG file of a run."""
    # A link could put any file of the reader's computer onto a page.
    if path.is_symlink() or path.stat().st_size > _MAX_BYTES:
        raise InputError(
            f"Expected a PNG file of at most {_MAX_BYTES:,} bytes. Received a link or a larger file: {path}."
        )
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"Expected a PNG file. Received another kind of file: {path}.")
    return content
