"""Writes a run's folder. Everything in it was computed elsewhere."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer import plots, training_plots
from transfer.config import TrainConfig, save_config
from transfer.datasets import ImageData
from transfer.evaluation import Evaluation
from transfer.files import write_text
from transfer.pages import data_uri, render
from transfer.split_file import write_split
from transfer.training_run import TrainingLog

SHEET = 24
"""Pictures on the sheet of predictions."""


def write_run(
    folder: Path,
    *,
    model: keras.Model,
    config: TrainConfig,
    data: ImageData,
    done: TrainingLog,
    evaluation: Evaluation | None,
    title: str,
) -> None:
    """Write the model, its labels, the split, the options, the history, the pictures and the page of a run.

    Args:
        folder: to write into.
        model: the trained model, with its plan.
        config: options that reproduce the run.
        data: what it was trained on.
        done: the log of training.
        evaluation: on the test pictures, where there are any.
        title: of the drawing of the network.

    Example:
        write_run(folder, model=model, config=config, data=data, done=done, evaluation=None, title="case 1")
    """
    model.save(folder / "model.keras")
    save_config(config, folder / "config.yaml")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in data.class_names), encoding="utf-8")
    write_split(folder / "split.csv", data.splits, data.class_names)
    write_text(folder / "data.json", data.report.to_json())
    _write_history(done.rows, folder / "history.csv")
    figures = {
        "learning_curves.png": _curves(done),
        "network.png": plots.network_by_blocks(
            title,
            model.plan.blocks,
            input_text="picture\nRGB, 0 to 255\n(scaled inside)",
            output_text=f"{data.num_classes} classes",
        ),
    }
    if evaluation is not None:
        figures["confusion_matrix.png"] = plots.confusion_matrix(evaluation)
        figures["predictions.png"] = plots.prediction_sheet(evaluation, _sheet(evaluation, data))
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=110)
    shown = [
        (data_uri((folder / name).read_bytes()), Path(name).stem.replace("_", " ").capitalize())
        for name in figures
    ]
    parts = [render("figures.html", figures=shown), data.report.to_part(data.thumbnail)]
    write_text(folder / "report.html", render("page.html", title=f"{data.name}. {title}", parts=parts))


def _curves(done: TrainingLog) -> Any:
    """By epoch; where the head was solved at once, by what was tried instead."""
    if len(done.rows) == 1 and done.tried and done.regularisation is not None:
        return training_plots.regularisation_path(done.tried, done.regularisation)
    return training_plots.learning_curves(done.rows)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the figures of a run; last, so that its total time is known.

    Args:
        folder: to write into.
        metrics: for metrics.json.

    Example:
        write_metrics(folder, {"test_accuracy": 0.76})
    """
    (folder / "metrics.json").write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")


def _sheet(evaluation: Evaluation, data: ImageData) -> dict[int, np.ndarray]:
    """Choose pictures evenly over the test set, so that every class is among them."""
    count = len(evaluation.labels)
    order = np.argsort(evaluation.labels, kind="stable")
    picked = order[np.unique(np.linspace(0, count - 1, min(SHEET, count)).astype(int))]
    return {int(i): data.test.picture(int(i), (128, 128)) for i in picked}


def _write_history(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
