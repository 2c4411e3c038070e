"""Plots of training: learning curves, the choice of the regularization, the learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer.common.figures import COLORS, new_figure


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw training and validation loss and accuracy by epoch, with a line between phases."""
    figure = new_figure(9, 3.6)
    epochs = np.arange(1, len(rows) + 1)
    phases = ", then ".join(dict.fromkeys(row["phase"] for row in rows))
    for number, quantity in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, number)
        for key, label, color in (
            (quantity, "training", "#8fb8de"),
            (f"val_{quantity}", "validation", "#e76f51"),
        ):
            values = [row.get(key, np.nan) for row in rows]
            if not np.isnan(values).all():
                axes.plot(epochs, values, label=label, color=color, marker="o" if len(rows) < 3 else None)
        for i in range(1, len(rows)):
            if rows[i]["phase"] != rows[i - 1]["phase"]:
                axes.axvline(i + 0.5, color="grey", linestyle=":")
        axes.set(xlabel="epoch", title=f"{quantity} ({phases})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def regularization_path(tried: Sequence[tuple[float, float, float]], chosen: float) -> Figure:
    """Draw the validation loss and accuracy of an exact head against its inverse regularization strength C."""
    figure = new_figure(9, 3.6)
    strengths = [row[0] for row in tried]
    for number, quantity in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, number)
        values = [row[number] for row in tried]
        axes.semilogx(strengths, values, color=COLORS["new"], marker="o", label="held-out images")
        axes.axvline(chosen, color="grey", linestyle=":", label=f"chosen: C = {chosen:.3g}")
        axes.set(xlabel="C (larger: weaker regularization)", title=f"{quantity} on held-out images")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def learning_rate_plot(
    rates: Sequence[float], losses: Sequence[float], averages: Sequence[float], suggestion: float
) -> Figure:
    """Draw the losses of a learning-rate range test."""
    figure = new_figure(7, 3.8)
    axes = figure.add_subplot()
    axes.semilogx(rates, losses, ".", color=COLORS["frozen"], label="each step")
    axes.semilogx(rates, averages, color=COLORS["new"], label="moving average")
    axes.axvline(suggestion, color="grey", linestyle=":", label=f"suggested: {suggestion:.1e}")
    top = float(np.max(np.asarray(losses)[: max(1, len(losses) // 2)]))
    axes.set(xlabel="learning rate", ylabel="loss", ylim=(0, 1.3 * top), title="Learning-rate range test")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
