"""Figures of an evaluation: confusion matrix, predictions, reliability diagram, precision and recall by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from transfer.common.figures import COLORS, new_figure
from transfer.evaluation.metrics import Calibration, ClassScore

if TYPE_CHECKING:
    from transfer.evaluation.evaluate import Evaluation

MOST_CLASSES = 60
"""Maximum number of rows of the plot by class. With more classes, those with the lowest F1 are drawn."""


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix; each row is a true class, colored by the fraction of its images."""
    counts, names = evaluation.confusion, evaluation.class_names
    side = min(24.0, 3.0 + 0.45 * len(names))
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    fraction = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 40:
        for true, row in enumerate(counts):
            for predicted, count in enumerate(row):
                if count:
                    color = "white" if fraction[true, predicted] > 0.5 else "black"
                    axes.text(predicted, true, str(count), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlabel="predicted class",
        ylabel="true class",
        title=f"accuracy {evaluation.accuracy:.1%}, {len(evaluation.labels):,} images",
    )
    return figure


def prediction_sheet(evaluation: Evaluation, images: Mapping[int, np.ndarray]) -> Figure:
    """Draw images with their predicted classes: correct ones in green, wrong ones in red with the true class."""
    columns = 6
    rows = max(1, -(-len(images) // columns))
    figure = new_figure(1.8 * columns, 2.2 * rows)
    for place, (position, image) in enumerate(images.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        correct = evaluation.predictions[position] == evaluation.labels[position]
        caption = prediction_caption(evaluation, position)
        axes.set_title(caption, fontsize=9, color="#1b7f3b" if correct else "#c1121f")
    return figure


def prediction_caption(evaluation: Evaluation, position: int) -> str:
    """Return the predicted class of an image with its probability, and the true class if that differs."""
    guess, truth = evaluation.predictions[position], evaluation.labels[position]
    text = f"{evaluation.class_names[guess]} {evaluation.probabilities[position, guess]:.0%}"
    return text if guess == truth else f"{text}\n(is {evaluation.class_names[truth]})"


def calibration_plot(calibration: Calibration) -> Figure:
    """Draw a reliability diagram: accuracy by confidence, above the number of images by confidence."""
    figure = new_figure(5.2, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="#777777", linestyle="--", label="perfect calibration")
    label = f"model (expected calibration error {calibration.error:.1%})"
    above.plot(calibration.confidence, calibration.accuracy, "o-", color=COLORS["new"], label=label)
    above.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
    above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    above.legend(frameon=False, loc="upper left", fontsize=9)
    above.set_title("Reliability diagram (calibration)", loc="left", fontsize=11)
    below.bar(calibration.confidence, calibration.counts, width=0.04, color=COLORS["frozen"])
    below.set(xlabel="confidence", ylabel="images")
    below.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def class_plot(scores: Sequence[ClassScore]) -> Figure:
    """Draw precision and recall of each class, the lowest F1 at the top."""
    worst = sorted((score for score in scores if score.images), key=lambda score: score.f1)[:MOST_CLASSES]
    figure = new_figure(7, 1.3 + 0.28 * len(worst))
    axes = figure.add_subplot()
    rows = np.arange(len(worst))
    recall, precision = [score.recall for score in worst], [score.precision for score in worst]
    low, high = np.minimum(recall, precision), np.maximum(recall, precision)
    axes.hlines(rows, low, high, color="#999999", zorder=1)
    axes.scatter(recall, rows, color=COLORS["new"], label="recall", zorder=2)
    axes.scatter(precision, rows, color="#4a7fb0", marker="D", s=22, label="precision", zorder=2)
    axes.set_yticks(rows, [score.name for score in worst])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class name may contain dollar signs
    return figure
