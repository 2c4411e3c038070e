"""Images of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer.common.figures import COLORS, new_figure


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and accuracy by epoch, training and validation, one phase after the other."""
    figure = new_figure(9, 3.6)
    steps = np.arange(1, len(rows) + 1)
    for place, quantity in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(1, 2, place + 1)
        for key, label, color in (
            (quantity, "training", "#8fb8de"),
            (f"val_{quantity}", "validation", "#e76f51"),
        ):
            values = [row.get(key, np.nan) for row in rows]
            if not np.isnan(values).all():
                axes.plot(steps, values, label=label, color=color, marker="o" if len(rows) < 3 else None)
        for i in range(1, len(rows)):
            if rows[i]["phase"] != rows[i - 1]["phase"]:
                axes.axvline(i + 0.5, color="grey", linestyle=":")
        axes.set(xlabel="epoch", title=_curve_title(quantity, rows))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def regularization_path(tried: Sequence[tuple[float, float, float]], chosen: float) -> Figure:
    """Draw what was tried for an exact head, which has no epochs: loss and accuracy of images left
    out."""
    figure = new_figure(9, 3.6)
    strengths = [row[0] for row in tried]
    for place, quantity in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.semilogx(
            strengths, [row[place] for row in tried], color=COLORS["new"], marker="o", label="left out"
        )
        axes.axvline(chosen, color="grey", linestyle=":", label=f"chosen, C = {chosen:.3g}")
        axes.set(
            xlabel="C: the larger, the weaker the regularization", title=f"{quantity} of images left out"
        )
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curve_title(quantity: str, rows: Sequence[Mapping[str, Any]]) -> str:
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    return f"{quantity} ({', then '.join(phases)})"


def learning_rate_plot(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], best: float
) -> Figure:
    """Draw how the loss goes while the learning rate rises from step to step."""
    figure = new_figure(7, 3.8)
    axes = figure.add_subplot()
    axes.semilogx(rates, losses, ".", color=COLORS["frozen"], label="each step")
    axes.semilogx(rates, smooth, color=COLORS["new"], label="averaged")
    axes.axvline(best, color="grey", linestyle=":", label=f"suggested: {best:.1e}")
    top = float(np.max(np.asarray(losses)[: max(1, len(losses) // 2)]))
    axes.set(
        xlabel="learning rate",
        ylabel="loss",
        ylim=(0, 1.3 * top),
        title="The loss while the learning rate rises",
    )
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
