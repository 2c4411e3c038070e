"""Write the files, the report and the model card of a run, and comparisons of runs."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from transfer.adviser.advice import Advice
from transfer.adviser.cross_validation import CrossValidation
from transfer.adviser.label_issues import LabelIssue
from transfer.adviser.task_advice import TaskAdvice
from transfer.common.errors import InputError, one_line, optional
from transfer.common.files import replacing, write_text
from transfer.config import TrainConfig, save_config
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.reference import Reference
from transfer.images.datasets import ImageData
from transfer.images.split_file import write_split
from transfer.networks.model_files import save_model
from transfer.results import file_names
from transfer.results.finished_runs import add_labels, add_pixel_range
from transfer.results.model_card import model_card
from transfer.results.prediction_files import write_predictions
from transfer.results.reference_file import write_reference
from transfer.results.run_comparison import comparison_page
from transfer.results.run_pages import Thumbnail, run_page
from transfer.results.run_records import read_record
from transfer.results.stored_task import add_task
from transfer.training.phases import TrainingLog

if TYPE_CHECKING:
    from transfer.common.figures import Draw


@dataclass(frozen=True, eq=False)
class RunResults:
    """A trained model with all that its run folder holds."""

    model: keras.Model
    config: TrainConfig
    data: ImageData
    training: TrainingLog
    # None without test images.
    evaluation: AnyEvaluation | None
    metrics: Mapping[str, Any]
    label_issues: Sequence[LabelIssue]
    # From the start of the run to its last file before the figures and pages.
    seconds: float
    # First line of config.yaml.
    comment: str = ""
    # None without folds.
    cross_validation: CrossValidation | None = None
    # Sets the thresholds; None if it could not be computed. `limits` are their measurements on the test images.
    reference: Reference | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)


def write_run(folder: Path, results: RunResults) -> None:
    """Write a run that is complete and loads: all its files except the figures and pages."""
    data, evaluation = results.data, results.evaluation
    _write_model(folder / file_names.MODEL, results)
    save_config(results.config, folder / file_names.CONFIG, comment=results.comment)
    write_text(folder / file_names.LABELS, "".join(f"{name}\n" for name in data.class_names))
    write_split(folder / file_names.SPLIT, data.splits, data.class_names)
    write_text(folder / file_names.DATA, data.report.to_json())
    write_text(folder / file_names.HISTORY, _history(results.training.rows))
    if results.reference is not None:
        write_reference(folder / file_names.REFERENCE, results.reference)
    if evaluation is not None:
        write_predictions(folder / file_names.PREDICTIONS, evaluation)
        path = folder / file_names.EVALUATION
        write_evaluation(path, evaluation, results.label_issues, results.limits)
    if (result := results.cross_validation) is not None:
        write_predictions(folder / file_names.OUT_OF_FOLD, result.evaluation, result.folds)
        _write_json(folder / file_names.FOLDS, result.to_dict())
    write_metrics(folder, {**results.metrics, "seconds_total": round(results.seconds, 3)})


def write_report(folder: Path, drawings: Mapping[str, Draw], *, thumbnail: Thumbnail) -> None:
    """Write the figures and pages of a complete run; log those that fail, and leave them out."""
    write_figures(folder, drawings)
    for name, write in ((file_names.PAGE, write_page), (file_names.CARD, write_card)):
        with optional(name):
            write(folder, thumbnail)


def _write_model(path: Path, results: RunResults) -> None:
    """Write a model with its class names, its task and the range of its images, whole or not at all."""
    data, thresholds = results.data, results.metrics.get("thresholds")
    partial = path.with_name(f".partial-{path.name}")  # Keras needs the suffix
    try:
        save_model(results.model, partial)
        add_labels(partial, data.class_names)
        add_pixel_range(partial, data.train.pixel_range)
        add_task(partial, data.task, thresholds)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_evaluation(
    path: Path, evaluation: AnyEvaluation, label_issues: Sequence[LabelIssue], limits: Mapping[str, Any]
) -> None:
    """Write an evaluation, the measurements of its thresholds, and its label issues as JSON."""
    values = {**evaluation.to_dict(), **limits}
    if isinstance(evaluation, Evaluation):  # label issues need one class per image
        values["label_issues"] = [issue._asdict() for issue in label_issues]
    _write_json(path, values)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_figures(folder: Path, drawings: Mapping[str, Draw]) -> None:
    """Write figures as PNG files; log those that fail, and leave them out."""
    from transfer.common.figures import draw_each  # imports matplotlib

    for name, content in draw_each(drawings):
        with optional(f"{name}.png"), replacing(folder / f"{name}.png") as partial:
            partial.write_bytes(content)


def write_advice(folder: Path, advice: Advice | TaskAdvice, *, figures: bool = True) -> None:
    """Write the advice that chose the case, with its figures."""
    write_text(folder / file_names.ADVICE, advice.to_json())
    if figures:
        from transfer.adviser import advice_plots

        write_figures(folder, advice_plots.advice_drawings(advice))


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the metrics of a run."""
    write_text(folder / file_names.METRICS, json.dumps(dict(metrics), indent=2) + "\n")


def write_pages(folder: Path, *, thumbnail: Thumbnail | None = None) -> None:
    """Write the report and the model card of a run from its other files."""
    write_page(folder, thumbnail)
    write_card(folder, thumbnail)


def write_page(folder: Path, thumbnail: Thumbnail | None) -> None:
    """Write the report of a run from its other files."""
    record = read_record(folder)
    with _mismatches_reported(folder):
        page = run_page(record, thumbnail=thumbnail)
    write_text(folder / file_names.PAGE, page)


def write_card(folder: Path, _: Thumbnail | None) -> None:
    """Write the model card of a run from its other files."""
    record = read_record(folder)
    with _mismatches_reported(folder):
        card = model_card(record)
    write_text(folder / file_names.CARD, card)


def write_comparison(path: Path, folders: Sequence[Path]) -> None:
    """Write a page that compares several runs."""
    with _mismatches_reported(*folders):
        page = comparison_page([read_record(folder) for folder in folders])
    write_text(path, page)


@contextlib.contextmanager
def _mismatches_reported(*folders: Path) -> Iterator[None]:
    """Raise an `InputError` if readable files lack values that a page needs; their origin is unknown."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {one_line(error, most=200)}"
        raise InputError(
            f"The files in {', '.join(map(str, folders))} are not those of a finished run of this version: {reason}."
        ) from error


def _history(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
