"""Figures of an evaluation: the reliability diagram, and precision and recall by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from transfer.common.figures import COLORS, new_figure
from transfer.evaluation.metrics import Calibration, ClassScore

MOST_CLASSES = 60
"""Maximum number of rows of the plot by class. With more classes, those with the lowest F1 are drawn."""


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
