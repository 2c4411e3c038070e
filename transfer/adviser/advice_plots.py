"""Figures of advice: the accuracy of each layer, and the data set among the four cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from transfer.adviser.curves import LayerCurve
from transfer.adviser.estimates import CaseEstimate
from transfer.adviser.task_advice import TaskAdvice
from transfer.cases.cuts import ALL_LAYERS
from transfer.cases.policies import SMALL_DATA
from transfer.common.figures import COLORS, Draw, new_figure, without_math
from transfer.common.tasks import TASK
from transfer.common.text import shorten, shorten_all

if TYPE_CHECKING:
    from transfer.adviser.advice import Advice


def block_name(name: str) -> str:
    """Return the name of a block from the name of its last layer."""
    suffixes = ("_add", "_out", "_concat", "_project_bn", "_project_BN", "_relu", "_ac", "_pool", "_dropout")
    for suffix in suffixes:
        name = name.removesuffix(suffix)
    return name


def layer_curve_plot(curve: LayerCurve, choice: CaseEstimate | None = None) -> Figure:
    """Draw the cross-validated accuracy of each layer alone and of all layers, and mark the recommended choice."""
    names = shorten_all([block_name(name) for name in curve.names])
    accuracy, all_layers, (mean, deviation) = curve.accuracy, curve.all_layers.accuracy, curve.chance
    chosen = choice.cut if choice is not None and curve.signal else None
    figure = new_figure(min(16.0, 6.5 + 0.22 * len(names)), 4.0 + 0.08 * max(map(len, names)))
    axes = figure.add_subplot()
    half = max(2 * deviation, 0.004)  # wide enough to be visible
    axes.axhspan(mean - half, mean + half, color="#d9d9d9", label=f"shuffled labels: {mean:.0%}", lw=0)
    color, mark = (COLORS["new"], " (recommended)") if chosen == ALL_LAYERS else ("#333333", "")
    axes.axhline(
        all_layers, color=color, linestyle="--", label=f"all layers together: {all_layers:.0%}{mark}"
    )
    style: dict[str, Any] = {"color": "#4a7fb0", "ecolor": COLORS["frozen"], "capsize": 3, "ms": 5}
    label = "single layer, with standard error"
    axes.errorbar(range(len(names)), accuracy, curve.standard_error, fmt="o-", label=label, **style)
    best = curve.names.index(curve.cut) if curve.signal else None
    cut = curve.names.index(chosen) if chosen in curve.names else None
    for place, text in ((best, "best single layer"), (cut if cut != best else None, "recommended layer")):
        if place is not None:
            text += " (recommended)" if place == cut == best else ""
            color = COLORS["new"] if place == cut else "#333333"
            ring: dict[str, Any] = {"ms": 12, "mfc": "none", "mew": 2, "color": color, "ls": "none"}
            axes.plot([place], accuracy[[place]], "o", label=f"{text}: {accuracy[place]:.0%}", **ring)
    if cut is not None:
        axes.axvline(cut, color=COLORS["new"], linestyle=":", zorder=0)
    _layer_ticks(axes, names, cut)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel(f"cross-validated accuracy ({len(curve.labels):,} images)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_curve_title(curve, choice), loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return without_math(figure)


def _curve_title(curve: LayerCurve, choice: CaseEstimate | None) -> str:
    """Return what the curve measures, and what the advice recommends."""
    from transfer.adviser.advice import action

    if not curve.signal:
        return "No layer predicts the labels better than shuffled labels"
    text = "Accuracy of a linear head on each single layer"
    return text if choice is None else f"{text}\nRecommended: {action(choice)}"


def _layer_ticks(axes: Axes, names: Sequence[str], cut: int | None) -> None:
    """Label the layers below the axis; of many layers, only some, always with the cut."""
    step = -(-len(names) // 45)
    shown = [i for i in range(0, len(names), step) if cut is None or abs(i - cut) >= step or i == cut]
    shown = sorted({*shown, *([] if cut is None else [cut])})
    axes.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize=8)
    if cut is not None:
        axes.get_xticklabels()[shown.index(cut)].set(color=COLORS["new"], fontweight="bold")
    axes.set_xlim(-0.6, len(names) - 0.4)


_CORNERS = (
    # x and y as fractions of the axes, color, its strength, text
    (0.985, 0.02, "frozen", 0.45, "1  small, similar\nfreeze all, train a new head"),
    (0.015, 0.02, "frozen", 0.2, "2  small, different\nkeep and freeze the early layers"),
    (0.985, 0.98, "trained", 0.4, "3  large, similar\nfine-tune everything"),
    (0.015, 0.98, "new", 0.35, "4  large, different\nfine-tune everything, or train from scratch"),
)

_MIN, _MAX, _BORDER = 1, 7, float(np.log10(SMALL_DATA))  # images, as powers of ten


def four_cases_chart(
    here: tuple[str, float, float], references: Sequence[tuple[str, float, float]]
) -> Figure:
    """Draw data sets, each as (name, images, similarity to the pre-training data), among the four cases."""
    figure = new_figure(8.5, 6.2)
    axes = figure.add_subplot()
    axes.imshow(_soft_tints(), extent=(0, 1, _MIN, _MAX), origin="lower", aspect="auto")
    axes.axvline(0.5, color="white", lw=2, alpha=0.7)
    axes.axhline(_BORDER, color="white", lw=2, alpha=0.7)
    for x, y, _, _, title in _CORNERS:
        sides: dict[str, Any] = {"ha": "right" if x > 0.5 else "left", "va": "top" if y > 0.5 else "bottom"}
        axes.text(x, y, title, transform=axes.transAxes, fontsize=9, color="#444444", **sides)
    axes.set(xlim=(0, 1), ylim=(_MIN, _MAX), ylabel="training images")
    axes.set_xlabel("similarity to the pre-training data (0: different, 1: similar)")
    axes.set_yticks(range(_MIN, _MAX + 1), [f"{10**power:,}" for power in range(_MIN, _MAX + 1)])
    axes.set_title("The four cases; the borders are gradual", loc="left", fontsize=11)
    sets = [here, *references]
    # Points outside the chart are drawn at its edge.
    across = np.clip([similarity for _, _, similarity in sets], 0, 1)
    up = np.clip(np.log10([max(count, 1) for _, count, _ in sets]), _MIN, _MAX)
    if references:  # an empty line would be drawn in a corner of the figure
        axes.plot(across[1:], up[1:], "o", color="#777777", ms=5, clip_on=False)
    axes.plot(across[:1], up[:1], "*", color=COLORS["new"], mec="#333333", ms=22, clip_on=False)
    names = [f"{shorten(here[0])}, {here[1]:,.0f} images", *(shorten(one[0]) for one in references)]
    _label_points(figure, axes, names, np.stack([across, up], axis=1))
    return figure


def _soft_tints() -> np.ndarray:
    """Return the blended colors of the quadrants as RGB, shape (200, 200, 3), from the lower left."""
    x = 1 / (1 + np.exp(-(np.linspace(0, 1, 200) - 0.5) / 0.02))
    y = 1 / (1 + np.exp(-(np.linspace(_MIN, _MAX, 200) - _BORDER) / 0.12))
    parts = [
        np.multiply.outer(
            np.outer(y if top > 0.5 else 1 - y, x if right > 0.5 else 1 - x),
            1 - strength * (1 - np.array(to_rgb(COLORS[color]))),
        )
        for right, top, color, strength, _ in _CORNERS
    ]
    return np.sum(parts, axis=0)


_SIDES = [
    (x, y, {"ha": {-1: "right", 0: "center", 1: "left"}[x], "va": {-1: "top", 0: "center", 1: "bottom"}[y]})
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


def _label_points(figure: Figure, axes: Axes, names: Sequence[str], points: np.ndarray) -> None:
    """Write each name near its point, where it covers nothing; the first name is large."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes must not move after this
    inside, unit = axes.get_window_extent(), figure.dpi / 72
    taken = [text.get_window_extent() for text in axes.texts]
    for i, mark in enumerate(axes.transData.transform(points)):
        taken.append(Bbox([mark, mark]).padded(unit * (6 if i else 12)))
    for i, name in enumerate(names):
        style: dict[str, Any] = (
            {"fontsize": 8, "color": "#444444"} if i else {"fontsize": 10, "weight": "bold"}
        )
        text = axes.annotate(name, points[i], (0, 0), textcoords="offset points", parse_math=False, **style)
        places: list[tuple[int, int, dict[str, Any]]] = []
        for far, (x, y, sides) in itertools.product((1, 2, 3, 4.5), _SIDES):
            place = {"position": (x * far * (7 if i else 13), y * far * (7 if i else 13)), **sides}
            text.set(**place)
            box = text.get_window_extent()
            off = not (inside.contains(*box.min) and inside.contains(*box.max))
            places.append((box.count_overlaps(taken) + 100 * off, len(places), place))
        text.set(**min(places, key=lambda each: each[:2])[2])
        taken.append(text.get_window_extent())


def head_scores_plot(advice: TaskAdvice) -> Figure:
    """Draw the out-of-fold score of the head on each choice of layers, with standard errors."""
    heads, best = advice.heads.candidates, advice.heads.best
    figure = new_figure(6.5, 1.2 + 0.45 * len(heads))
    axes = figure.add_subplot()
    colors = [COLORS["new"] if one is best else COLORS["frozen"] for one in heads]
    errors = [one.standard_error for one in heads]
    axes.barh(range(len(heads)), [one.score for one in heads], xerr=errors, color=colors, capsize=3)
    axes.set_yticks(range(len(heads)), [one.name for one in heads])
    axes.invert_yaxis()
    axes.set_xlabel(f"{TASK[advice.task].metric_name}, out of fold")
    return figure


FIGURES = ("layer_curve", "four_cases")
"""Names of the figures, the first one first in a notebook."""


HEAD_SCORES = "head_scores"
"""Name of the figure of a `TaskAdvice`."""


def advice_drawings(advice: Advice | TaskAdvice) -> dict[str, Draw]:
    """Return functions that draw the figures of an advice, by name."""
    if isinstance(advice, TaskAdvice):
        return {HEAD_SCORES: lambda: head_scores_plot(advice)}
    drawn: dict[str, Draw] = {}
    if advice.similarity is not None:
        here = (advice.data, advice.evidence.num_train, advice.similarity.score)
        others = [(one.name, one.num_images, one.score) for one in advice.similarity.references]
        drawn["four_cases"] = lambda: four_cases_chart(here, others)
    if (curve := advice.curve) is not None:
        drawn["layer_curve"] = lambda: layer_curve_plot(curve, advice.choice)
    return drawn
