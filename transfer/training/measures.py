"""Measure predictions of a whole split: the loss, the metric of the task and its noise, and the caller's metrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from transfer.cases.compiling import measure_like
from transfer.common.label_metrics import mean_average_precision, r2
from transfer.common.tasks import MULTI, REGRESSION, TASK
from transfer.training.phases import TrainingSettings


def measure(settings: TrainingSettings, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the loss and the metrics of all images; labels have the shape of the outputs, as `for_training`."""
    smoothing, scale = settings.recipe.label_smoothing, settings.value_scale
    values = measure_like(settings.model, predicted, labels, smoothing=smoothing, scale=scale)
    task = settings.data.task
    return {"loss": values.pop("loss"), TASK[task].metric: score(task, predicted, labels), **values}


def score(task: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean average precision of several labels, or the R2 of a regression."""
    return mean_average_precision(predicted, labels) if task == MULTI else r2(predicted, labels)


def noise_of(task: str, labels: np.ndarray) -> Callable[[float], float]:
    """Return the standard error of the metric of a task on some images, as a function of the metric."""
    count = max(1, len(labels))
    if task == REGRESSION:
        # 1 - R2 is proportional to the mean of squared errors, which have a relative standard deviation of about
        # sqrt(2) if the errors are normal.
        return lambda value: max(0.0, 1 - value) * math.sqrt(2 / count)
    if task == MULTI:
        # As if the average precision of a label were a fraction of its images. Labels count as independent.
        images = labels.sum(axis=0)
        images = images[images > 0]
        count = round(len(images) ** 2 / float((1 / images).sum())) if len(images) else 1
    return lambda value: math.sqrt(max(0.0, value * (1 - value)) / max(1, count))


def guess_of(task: str, labels: np.ndarray) -> float:
    """Return the metric of a task for predictions that do not depend on the image."""
    if task == REGRESSION:
        return 0.0
    if task == MULTI:  # the average precision of a random order is the fraction of images with the label
        fractions = labels.mean(axis=0)
        return float(fractions[fractions > 0].mean()) if fractions.any() else 0.0
    return float(np.bincount(labels).max() / len(labels))
