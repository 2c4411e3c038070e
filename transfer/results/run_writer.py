"""Write the files, the report and the model card of a run, and comparisons of runs."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from transfer.adviser.advice import Advice
from transfer.adviser.label_issues import LabelIssue
from transfer.common.errors import InputError, one_line
from transfer.common.files import replacing, write_text
from transfer.config import TrainConfig, save_config
from transfer.evaluation.evaluate import Evaluation
from transfer.images.datasets import ImageData
from transfer.images.split_file import write_split
from transfer.results import file_names
from transfer.results.finished_runs import add_labels
from transfer.results.prediction_files import write_predictions
from transfer.results.run_pages import Thumbnail, comparison_page, model_card, run_page
from transfer.results.run_records import read_record
from transfer.training.phases import TrainingLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_run(
    folder: Path,
    *,
    model: keras.Model,
    config: TrainConfig,
    data: ImageData,
    training: TrainingLog,
    evaluation: Evaluation | None,
    figures: Mapping[str, Figure],
    label_issues: Sequence[LabelIssue] = (),
) -> None:
    """Write a run's model, class names, split, options, history, predictions and figures."""
    model.save(folder / file_names.MODEL)
    add_labels(folder / file_names.MODEL, data.class_names)
    save_config(config, folder / file_names.CONFIG)
    write_text(folder / file_names.LABELS, "".join(f"{name}\n" for name in data.class_names))
    write_split(folder / file_names.SPLIT, data.splits, data.class_names)
    write_text(folder / file_names.DATA, data.report.to_json())
    write_text(folder / file_names.HISTORY, _history(training.rows))
    if evaluation is not None:
        write_predictions(folder / file_names.PREDICTIONS, evaluation)
        write_evaluation(folder / file_names.EVALUATION, evaluation, label_issues)
    write_figures(folder, figures)


def write_evaluation(path: Path, evaluation: Evaluation, label_issues: Sequence[LabelIssue]) -> None:
    """Write an evaluation and its label issues as JSON."""
    values = {**evaluation.to_dict(), "label_issues": [issue._asdict() for issue in label_issues]}
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures as PNG files."""
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as partial:
            figure.savefig(partial, format="png", dpi=110)


def write_advice(folder: Path, advice: Advice, figures: Mapping[str, Figure]) -> None:
    """Write the advice that chose the case, with its figures."""
    write_text(folder / file_names.ADVICE, advice.to_json())
    write_figures(folder, figures)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the metrics of a run; all files but the pages come before, so that the total time is known."""
    write_text(folder / file_names.METRICS, json.dumps(dict(metrics), indent=2) + "\n")


def write_pages(folder: Path, *, thumbnail: Thumbnail | None = None) -> None:
    """Write the report and the model card of a run from its other files."""
    record = read_record(folder)
    with _mismatches_reported(folder):
        page, card = run_page(record, thumbnail=thumbnail), model_card(record)
    write_text(folder / file_names.PAGE, page)
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
