"""Writes a run's folder and the pages on it: `python -m transfer.report RUN [RUN ...]`.

Everything in it was computed elsewhere.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError, one_line
from transfer.common.files import replacing, write_text
from transfer.config import TrainConfig, save_config
from transfer.evaluation.evaluate import Evaluation
from transfer.images.datasets import ImageData
from transfer.images.split_file import write_split
from transfer.results.finished_runs import CONFIG, LABELS, METRICS, MODEL, SPLIT, add_labels
from transfer.results.prediction_files import write_predictions
from transfer.results.run_records import ADVICE, DATA, EVALUATION, PREDICTIONS, read_record
from transfer.results.run_pages import Thumbnail, model_card, run_page
from transfer.training.phases import TrainingLog

PAGE, CARD, COMPARISON = "report.html", "README.md", "comparison.html"

log = logging.getLogger(__name__)


def write_run(
    folder: Path,
    *,
    model: Any,
    config: TrainConfig,
    data: ImageData,
    done: TrainingLog,
    evaluation: Evaluation | None,
    figures: Mapping[str, Any],
    label_issues: Sequence[Any] = (),
) -> None:
    """Write the model, its labels, the split, the options, the history, the predictions and the images of
    a run."""
    model.save(folder / MODEL)
    add_labels(folder / MODEL, data.class_names)
    save_config(config, folder / CONFIG)
    write_text(folder / LABELS, "".join(f"{name}\n" for name in data.class_names))
    write_split(folder / SPLIT, data.splits, data.class_names)
    write_text(folder / DATA, data.report.to_json())
    write_text(folder / "history.csv", _history(done.rows))
    if evaluation is not None:
        write_predictions(folder / PREDICTIONS, evaluation)
        found = {**evaluation.to_dict(), "label_issues": [one._asdict() for one in label_issues]}
        write_text(folder / EVALUATION, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_figures(folder, figures)


def write_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as PNG."""
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as partial:
            figure.savefig(partial, format="png", dpi=110)


def write_advice(folder: Path, advice: Any, figures: Mapping[str, Any]) -> None:
    """Write why a case was taken."""
    write_text(folder / ADVICE, advice.to_json())
    write_figures(folder, figures)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the figures of a run; last but for the pages, so that its total time is known."""
    write_text(folder / METRICS, json.dumps(dict(metrics), indent=2) + "\n")


def write_pages(folder: Path, *, thumbnail: Thumbnail | None = None) -> None:
    """Write the report and the model card of a run, from its other files."""
    record = read_record(folder)
    with _fitting(folder):
        page, card = run_page(record, thumbnail=thumbnail), model_card(record)
    write_text(folder / PAGE, page)
    write_text(folder / CARD, card)


@contextlib.contextmanager
def _fitting(*folders: Path) -> Iterator[None]:
    """Say where files that each can be read do not hold what a page is made of: they may come from
    anywhere."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {one_line(error, most=200)}"
        named = ", ".join(map(str, folders))
        raise InputError(
            f"The files of {named} are not those of a finished run of this version: {what}."
        ) from error


def _history(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
