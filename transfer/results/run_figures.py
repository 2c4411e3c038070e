"""What of a trained model is worth a look: images of how it does, where it fails and what it looks at."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transfer.adviser.label_issues import LabelIssue, find_label_issues
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.evaluation import evaluation_plots, explanation_plots, explanations
from transfer.evaluation.evaluate import Evaluation
from transfer.frozen.extraction import input_size
from transfer.frozen.shared_pass import local_copy
from transfer.images.datasets import ImageData
from transfer.results import plots
from transfer.training import training_plots
from transfer.training.phases import TrainingLog

SHEET = 24
"""Images on the sheet of predictions."""

MOST_MISTAKES = 12
"""The surest mistakes, shown with what the model looked at."""

MOST_SEEN = 64
"""Test images among which those are sought that layers respond to most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """Scores of images by a model that did not learn from them, as `label_issues` wants them."""

    # Shape (N, classes).
    scores: np.ndarray


def label_issues_of(found: Evaluation) -> tuple[LabelIssue, ...]:
    """Name the test images whose label is more probably wrong than right."""
    scores = np.log(np.maximum(found.probabilities, 1e-12))
    return find_label_issues(
        LeftOut(scores), found.labels, found.names, found.class_names, groups=found.groups
    )


def figures_of(
    model: keras.Model, data: ImageData, found: Evaluation | None, *, done: TrainingLog, title: str
) -> dict[str, Any]:
    """Draw a training and its test."""
    figures = {
        "learning_curves": _curves(done),
        "network": plots.network_by_blocks(
            title,
            decision_of(model).blocks,
            input_text="image\nRGB, 0 to 255\n(scaled inside)",
            output_text=f"{data.num_classes} classes",
        ),
    }
    return figures if found is None else figures | test_figures(local_copy(model), data, found)


def test_figures(model: keras.Model, data: ImageData, found: Evaluation) -> dict[str, Any]:
    """Draw how a model does on test images."""
    figures = {"confusion_matrix": plots.confusion_matrix(found)}
    figures["classes"] = evaluation_plots.class_plot(found.by_class)
    figures["calibration"] = evaluation_plots.calibration_plot(found.calibration)
    figures["predictions"] = plots.prediction_sheet(found, _sheet(found, data))
    try:
        return figures | explained(model, data, found)
    except InputError as error:
        log.info("What the model looks at is not shown: %s", error)
        return figures


def explained(model: keras.Model, data: ImageData, found: Evaluation) -> dict[str, Any]:
    """Draw what a model looks at: its surest mistakes by Grad-CAM, and what its blocks respond to."""
    size = input_size(model, data)
    figures: dict[str, Any] = {}
    shown = found.mistakes[:MOST_MISTAKES].tolist()
    if shown:
        images = np.stack([data.test.image(i, size) for i in shown])
        heat = explanations.grad_cam(model, images)
        figures["mistakes"] = explanation_plots.heat_sheet(images, heat, [_mistake(found, i) for i in shown])
    some = np.unique(np.linspace(0, len(data.test) - 1, min(MOST_SEEN, len(data.test))).astype(int))
    seen = np.stack([data.test.image(int(i), size) for i in some])
    responses = explanations.strongest_responses(model, seen, layers=explanations.shown_layers(model))
    figures["blocks"] = explanation_plots.response_sheet(responses)
    return figures


def _mistake(found: Evaluation, i: int) -> str:
    guess, truth = found.predictions[i], found.labels[i]
    return f"{found.class_names[guess]} {found.probabilities[i, guess]:.0%}\n(is {found.class_names[truth]})"


def _curves(done: TrainingLog) -> Any:
    """By epoch; where the head was solved at once, by what was tried instead."""
    if len(done.rows) == 1 and done.tried and done.regularization is not None:
        return training_plots.regularization_path(done.tried, done.regularization)
    return training_plots.learning_curves(done.rows)


def _sheet(found: Evaluation, data: ImageData) -> dict[int, np.ndarray]:
    """Choose images evenly over the test set, so that every class is among them."""
    count = len(found.labels)
    order = np.argsort(found.labels, kind="stable")
    picked = order[np.unique(np.linspace(0, count - 1, min(SHEET, count)).astype(int))]
    return {int(i): data.test.image(int(i), (128, 128)) for i in picked}
