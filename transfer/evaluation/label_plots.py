"""Figures of an evaluation of several labels per image: scores by label, and labels that occur together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transfer.common.figures import COLORS, new_figure, without_math
from transfer.common.text import plural, shorten_all
from transfer.evaluation.evaluation_plots import MOST_CLASSES, MOST_COUNTS
from transfer.evaluation.label_metrics import co_occurrence
from transfer.evaluation.metrics import fraction_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transfer.evaluation.label_evaluation import LabelEvaluation


def label_plot(evaluation: LabelEvaluation) -> Figure:
    """Draw the average precision of each label as a bar, and its recall and precision with 95% intervals."""
    scores, tested = evaluation.by_label, int(evaluation.labels.any(axis=0).sum())
    worst = [evaluation.class_names.index(one.name) for one in evaluation.lowest(MOST_CLASSES)]
    names = shorten_all([scores[k].name for k in worst], 32)
    figure = new_figure(6.2 + 0.09 * max(map(len, names), default=0), 1.5 + 0.36 * len(worst))
    axes = figure.add_subplot()
    average = [scores[k].average_precision for k in worst]
    axes.barh(range(len(worst)), average, 0.62, color=COLORS["frozen"], alpha=0.55, label="average precision")
    true, chosen = evaluation.labels.sum(axis=0), evaluation.predictions.sum(axis=0, dtype="int64")
    hits = (evaluation.labels * evaluation.predictions).sum(axis=0, dtype="int64")
    for kind, counts, shift, marker, color in (
        ("recall: fraction of the images with the label that were found", true, -0.16, "o", COLORS["new"]),
        ("precision: fraction of the predictions that are right", chosen, 0.16, "D", "#2d5d8c"),
    ):
        # The precision of a label that was never predicted is undefined.
        rows, drawn = (
            np.array([(row, k) for row, k in enumerate(worst) if counts[k]], "int64").reshape(-1, 2).T
        )
        value, (low, high) = hits[drawn] / counts[drawn], fraction_intervals(hits[drawn], counts[drawn])
        errors = (value - low, high - value)
        style: dict[str, Any] = {"fmt": marker, "color": color, "ms": 5, "lw": 1}
        axes.errorbar(value, rows + shift, xerr=errors, label=kind, **style)
    axes.set_yticks(
        range(len(worst)), [f"{name} ({scores[k].images:,})" for k, name in zip(worst, names, strict=True)]
    )
    axes.set(ylim=(len(worst) - 0.4, -0.6), xlim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    less = f": the {len(worst)} lowest of {tested} labels" if len(worst) < tested else ""
    figure.suptitle(
        f"Average precision, recall and precision by label, with 95% intervals{less}", fontsize=11
    )
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    return without_math(figure)


def co_occurrence_plot(evaluation: LabelEvaluation) -> Figure:
    """Draw which labels images have together, and which labels are predicted together."""
    frequent = np.argsort(-evaluation.labels.sum(axis=0, dtype="int64"), kind="stable")[:MOST_COUNTS]
    shown = np.sort(frequent)
    names = shorten_all([evaluation.class_names[k] for k in shown])
    side, margin = min(9.0, max(2.2, 0.45 * len(names))), 0.9 + 0.09 * max(map(len, names))
    figure = new_figure(2 * side + margin, side + 0.8 * margin + 0.2)
    panels = figure.subplots(1, 2)
    for axes, labels, title in zip(
        panels, (evaluation.labels, evaluation.predictions), ("labels", "predicted labels"), strict=True
    ):
        _draw_counts(axes, co_occurrence(labels[:, shown]))
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_title(title, fontsize=10)
    panels[0].set_yticks(range(len(names)), names)
    panels[1].set_yticks([])
    less = f", the {len(shown)} most frequent labels" if len(shown) < len(evaluation.class_names) else ""
    images = plural(len(evaluation.labels), "image")
    figure.suptitle(f"Images with both labels of a pair ({images}{less})", fontsize=11)
    return without_math(figure)


def _draw_counts(axes: Axes, counts: np.ndarray) -> None:
    """Draw counts of pairs; the color is the fraction of the images with the label of the row."""
    fraction = counts / np.maximum(1, np.diag(counts))[:, None]
    np.fill_diagonal(fraction, 0)  # it is 1 for each label
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        color = "white" if fraction[row, column] > 0.5 else "#888888" if row == column else "black"
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9 if len(counts) <= 20 else 7}
        axes.text(column, row, f"{counts[row, column]:,}", color=color, **style)
