"""Figures of an evaluation: confusion matrix, reliability diagram, precision and recall by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transfer.common.figures import COLORS, new_figure, without_math
from transfer.common.text import plural, shorten_all
from transfer.evaluation.metrics import Calibration, fraction_intervals

if TYPE_CHECKING:
    from transfer.evaluation.evaluation import Evaluation

MOST_COUNTS = 40
"""Maximum number of classes of a confusion matrix with written counts."""

MOST_CLASSES = 60
"""Maximum number of rows of the plot by class. With more classes, those with the lowest F1 are drawn."""


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix; each row is a true class, colored by the fraction of its images."""
    counts, names = evaluation.confusion, shorten_all(evaluation.class_names)
    side, margin = min(20.0, max(2.0, 0.45 * len(names))), 0.9 + 0.09 * max(map(len, names))
    figure = new_figure(side + margin, side + margin)
    axes = figure.add_subplot()
    fraction = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_COUNTS:
        for true, predicted in np.argwhere(counts):
            color = "white" if fraction[true, predicted] > 0.5 else "black"
            axes.text(
                predicted,
                true,
                f"{counts[true, predicted]:,}",
                ha="center",
                va="center",
                color=color,
                fontsize=9,
            )
    shown = range(0, len(names), max(1, round(0.18 * len(names) / side)))  # names need 0.18 inches
    axes.set_xticks(shown, [names[i] for i in shown], rotation=90)
    axes.set_yticks(shown, [names[i] for i in shown])
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.suptitle(
        f"Accuracy {evaluation.accuracy:.1%}, {plural(len(evaluation.labels), 'image')}", fontsize=11
    )
    return without_math(figure)


def calibration_plot(calibration: Calibration) -> Figure:
    """Draw a reliability diagram: accuracy by confidence, with the 95% interval of each bin."""
    counts, accuracy = np.array(calibration.counts), np.array(calibration.accuracy)
    low, high = fraction_intervals(np.round(accuracy * counts), counts)
    figure = new_figure(5.2, 5.4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#777777", linestyle="--", label="perfect calibration")
    label = f"model, with 95% intervals: expected calibration error {calibration.error:.1%}"
    axes.errorbar(
        calibration.confidence,
        accuracy,
        (accuracy - low, high - accuracy),
        fmt="o-",
        color=COLORS["new"],
        label=label,
        capsize=3,
    )
    images = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
    axes.set_xlabel(f"confidence ({plural(len(counts), 'bin')} of {images} images)")
    start = max(0.0, calibration.confidence[0] - 0.05)
    axes.set(ylabel="accuracy", xlim=(start, 1.01), ylim=(max(0.0, min(start, low.min() - 0.02)), 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Reliability diagram (calibration)", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    return figure


def class_plot(evaluation: Evaluation) -> Figure:
    """Draw recall and precision of each class with 95% intervals, the lowest F1 at the top."""
    scores, found = evaluation.by_class, evaluation.confusion
    tested = [i for i, score in enumerate(scores) if score.images]
    worst = sorted(tested, key=lambda i: scores[i].f1)[:MOST_CLASSES]
    names = shorten_all([scores[i].name for i in worst], 32)
    figure = new_figure(6.2 + 0.09 * max(map(len, names)), 1.5 + 0.36 * len(worst))
    axes = figure.add_subplot()
    for kind, counts, shift, marker, color in (
        ("recall: fraction of the class that was found", found.sum(axis=1), -0.16, "o", COLORS["new"]),
        ("precision: fraction of the predictions that are right", found.sum(axis=0), 0.16, "D", "#4a7fb0"),
    ):
        # The precision of a class that was never predicted is undefined.
        rows, drawn = np.array([(row, i) for row, i in enumerate(worst) if counts[i]]).reshape(-1, 2).T
        value = np.diag(found)[drawn] / counts[drawn]
        low, high = fraction_intervals(np.diag(found)[drawn], counts[drawn])
        axes.errorbar(
            value,
            rows + shift,
            xerr=(value - low, high - value),
            fmt=marker,
            color=color,
            ms=5,
            lw=1,
            label=kind,
        )
    axes.set_yticks(
        range(len(worst)), [f"{name} ({scores[i].images:,})" for i, name in zip(worst, names, strict=True)]
    )
    axes.set(ylim=(len(worst) - 0.4, -0.6), xlim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    less = f": the {len(worst)} lowest of {len(tested)} classes" if len(worst) < len(tested) else ""
    figure.suptitle(f"Recall and precision by class, with 95% intervals{less}", fontsize=11)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    return without_math(figure)
