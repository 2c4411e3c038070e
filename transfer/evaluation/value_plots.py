"""The figure of an evaluation of a regression: predicted numbers over true numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from transfer.common.figures import COLORS, new_figure, without_math
from transfer.common.text import number, shorten
from transfer.evaluation.prediction_sets import COVERAGE

if TYPE_CHECKING:
    from transfer.evaluation.value_evaluation import ValueEvaluation


def value_plot(evaluation: ValueEvaluation) -> Figure:
    """Draw the predicted number of each image over its true number, with the intervals of predictions as a band."""
    true, predicted = evaluation.labels, evaluation.predictions
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.04 * (high - low) or 1.0
    ends = np.array([low - margin, high + margin])
    figure = new_figure(5.6, 6.0)
    axes = figure.add_subplot()
    if evaluation.interval_width is not None:
        # A true number is in the interval of its prediction if the point is in this band.
        half, width = evaluation.interval_width / 2, number(evaluation.interval_width)
        label = f"{COVERAGE:.0%} intervals, {width} wide"
        axes.fill_between(
            ends, ends - half, ends + half, color=COLORS["frozen"], alpha=0.35, lw=0, label=label
        )
    axes.plot(ends, ends, color="#777777", linestyle="--", label="predicted = true")
    opacity = float(np.clip(12 / np.sqrt(len(true)), 0.2, 0.85))
    axes.scatter(true, predicted, s=16, color=COLORS["new"], alpha=opacity, lw=0, label="images")
    axes.set(xlim=ends, ylim=ends)
    axes.set_aspect("equal")
    name = shorten(evaluation.class_names[0], 40)
    axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    error = number(evaluation.mean_absolute_error)
    axes.set_title(f"R2 {evaluation.r2:.2f}, mean absolute error {error}", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=3)
    return without_math(figure)
