"""Images of how well a model does: whether its confidence is honest, and how each class fares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from transfer.common.figures import COLORS, new_figure
from transfer.evaluation.metrics import Calibration, ClassScore

MOST_CLASSES = 60
"""Rows that fit a page; of more classes the worst are drawn."""


def calibration_plot(found: Calibration) -> Figure:
    """Draw a reliability diagram: how often the model is right, by how sure it is, and how often it is that
    sure."""
    figure = new_figure(5.2, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="#777777", linestyle="--", label="honest: as right as it is sure")
    above.plot(
        found.confidence, found.accuracy, "o-", color=COLORS["new"], label=f"found: off by {found.error:.1%}"
    )
    above.set(ylabel="right", ylim=(0, 1.02), xlim=(0, 1))
    above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    above.legend(frameon=False, loc="upper left", fontsize=9)
    above.set_title("Is it as right as it is sure?", loc="left", fontsize=11)
    below.bar(found.confidence, found.counts, width=0.04, color=COLORS["frozen"])
    below.set(xlabel="how sure the model is", ylabel="images")
    below.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def class_plot(scores: Sequence[ClassScore]) -> Figure:
    """Draw precision and recall of each class, the worst at the top."""
    worst = sorted((one for one in scores if one.images), key=lambda one: one.f1)[:MOST_CLASSES]
    figure = new_figure(7, 1.3 + 0.28 * len(worst))
    axes = figure.add_subplot()
    places = np.arange(len(worst))
    recall, precision = [one.recall for one in worst], [one.precision for one in worst]
    axes.hlines(
        places, np.minimum(recall, precision), np.maximum(recall, precision), color="#999999", zorder=1
    )
    axes.scatter(recall, places, color=COLORS["new"], label="recall: of its images, found", zorder=2)
    axes.scatter(
        precision,
        places,
        color="#4a7fb0",
        marker="D",
        s=22,
        label="precision: so called, and right",
        zorder=2,
    )
    axes.set_yticks(places, [one.name for one in worst])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names with dollar signs are no formulas
    return figure
