"""Plots of training: learning curves, the choice of the regularization, the learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transfer.common.figures import COLORS, new_figure
from transfer.common.tasks import REGRESSION, SINGLE, TASK, metric_of_row, score_text

PHASES = {"head": "head", "fine-tune": "fine-tuning", "from-scratch": "from random weights"}
"""Phases of training, with their names in figures."""


def learning_curves(rows: Sequence[Mapping[str, Any]], *, kept_row: int | None = None) -> Figure:
    """Draw training and validation loss and metric by epoch and phase; mark a row whose weights were restored."""
    task = metric_of_row({key: None for row in rows for key in row})
    drawn = [
        name for name in ("loss", task.metric) if any(name in row or f"val_{name}" in row for row in rows)
    ]
    unit = "" if task is TASK[REGRESSION] else " (nats)"
    figure = new_figure(4.5 * max(1, len(drawn)), 3.9)
    for number, quantity in enumerate(drawn, start=1):
        axes = figure.add_subplot(1, len(drawn), number)
        for key, label, color in (
            (quantity, "training", "#4a7fb0"),
            (f"val_{quantity}", "validation", COLORS["new"]),
        ):
            _draw_curve(axes, rows, key, label, color)
        _label_phases(axes, rows)
        if kept_row is not None and 0 <= kept_row < len(rows) - 1:
            axes.axvline(
                kept_row + 1, color="#333333", linestyle="--", lw=1, label="epoch of the final weights"
            )
        axes.set(xlabel="epoch", ylabel=f"loss{unit}" if quantity == "loss" else task.metric_name)
        axes.set_xlim(0.5, len(rows) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if quantity != "loss" and task is not TASK[REGRESSION]:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.spines[["top", "right"]].set_visible(False)
    _legend_below(figure)
    return figure


def _phases(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return each phase in its order, with its first row and the row after its last."""
    names = [row.get("phase", "") for row in rows]
    starts = [i for i, name in enumerate(names) if not i or name != names[i - 1]]
    return [(names[i], i, end) for i, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _draw_curve(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str, color: str) -> None:
    """Draw one quantity, with a gap between phases; write the values of a single epoch."""
    values = np.array([row.get(key, np.nan) for row in rows], float)
    if np.isnan(values).all():
        return
    for number, (_, start, end) in enumerate(_phases(rows)):
        axes.plot(
            range(start + 1, end + 1),
            values[start:end],
            color=color,
            label=label if number == 0 else None,
            marker="o" if end - start < 4 else None,
            ms=5,
        )
    if len(rows) == 1:
        text = f"{values[0]:.3f}" if key.endswith("loss") else score_text(key.removeprefix("val_"), values[0])
        axes.annotate(text, (1, values[0]), (8, 0), textcoords="offset points", va="center", color=color)
        axes.margins(y=0.4)


def _label_phases(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the name of each phase above its epochs, and draw a line between phases."""
    phases = _phases(rows)
    narrow = min(end - start for _, start, end in phases) < 0.2 * len(rows)
    for number, (phase, start, end) in enumerate(phases):
        if start:
            axes.axvline(start + 0.5, color="grey", linestyle=":")
        # The labels of short phases would overlap: every second one is higher.
        place = (start + end + 1) / 2, 1.02 + 0.07 * (number % 2 if narrow else 0)
        style: dict[str, Any] = {"ha": "center", "fontsize": 9, "color": "#555555"}
        axes.text(*place, PHASES.get(phase, phase), transform=axes.get_xaxis_transform(), **style)


_STRENGTHS = {
    "regression": ("C", "C (larger: weaker regularization)"),
    "ridge": ("C", "C (larger: weaker regularization)"),
    "discriminant": ("shrinkage", "shrinkage (larger: stronger regularization)"),
}


def regularization_path(
    tried: Sequence[tuple[float, float, float]],
    chosen: float,
    *,
    measured_on: str = "",
    method: str = "regression",
) -> Figure:
    """Draw the loss and the metric of an exact head by its regularization, and the chosen value."""
    metric = TASK[REGRESSION if method == "ridge" else SINGLE].metric_name
    symbol, meaning = _STRENGTHS[method]
    figure = new_figure(9, 3.9)
    strengths = [row[0] for row in tried]
    names = {"": "images outside the training", "validation": "the validation images"}
    where = names.get(measured_on, "training images, by cross-validation")
    for number, quantity in enumerate(("loss", metric), start=1):
        axes = figure.add_subplot(1, 2, number)
        values = [row[number] for row in tried]
        axes.semilogx(strengths, values, color="#4a7fb0", marker="o", label=f"measured on {where}")
        axes.axvline(chosen, color="grey", linestyle=":", zorder=0)
        if quantity == "loss" and chosen in strengths:
            label = f"chosen by the lowest loss: {symbol} = {plain_number(chosen)}"
            ring: dict[str, Any] = {"ms": 12, "mfc": "none", "mew": 2, "color": COLORS["new"], "ls": "none"}
            axes.plot([chosen], [values[strengths.index(chosen)]], "o", label=label, **ring)
        axes.set_xticks(strengths, [plain_number(c) for c in strengths], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set(xlabel=meaning, title=quantity)
        axes.spines[["top", "right"]].set_visible(False)
    if method != "ridge":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend_below(figure)
    return figure


def plain_number(value: float) -> str:
    """Return a number with three digits and without an exponent, such as "3,160" or "0.0316"."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _legend_below(figure: Figure) -> None:
    """Draw one legend for all panels below them."""
    pairs = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    marks = {label: handle for handle, label in reversed(pairs)}
    names = list(dict.fromkeys(label for _, label in pairs))
    if names:
        handles = [marks[name] for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


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
