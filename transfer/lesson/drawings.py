"""Images for the lesson: the network as slabs, what its first layer looks for, how transferable its layers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Patch, Polygon
from matplotlib.ticker import PercentFormatter

from transfer.cases.builders import CaseDecision
from transfer.cases.decisions import decision_of
from transfer.cases.policies import POLICIES
from transfer.common.errors import InputError
from transfer.common.figures import COLORS, new_figure
from transfer.lesson.transferability import Transferability
from transfer.networks import graphs
from transfer.networks.backbones import block_ends
from transfer.networks.demo_cnn import SEES

_MEANING = {
    "frozen": "frozen: kept as pre-trained",
    "trained": "pre-trained, and trained further",
    "new": "new, from random weights",
    "cut": "cut away",
}
_GONE, _EDGE = "#9a9a9a", "#333333"
_KIND_COLORS = {"BnB": "#4a7fb0", "BnB+": "#8fb8de", "AnB": "#c1440e", "AnB+": "#f4a261"}
_KIND_MEANING = {
    "BnB": "its own layers, frozen",
    "BnB+": "its own layers, fine-tuned",
    "AnB": "layers of the other task, frozen",
    "AnB+": "layers of the other task, fine-tuned",
}


class _Slab(NamedTuple):
    """One layer, as it is drawn: `size` is height and width of its maps, None where it gives a vector."""

    name: str
    size: int | None
    depth: int
    state: str
    text: str


def filters_plot(
    kernels: np.ndarray, *, columns: int = 8, title: str = "What the first layer looks for"
) -> Figure:
    """Draw the filters of a first layer as the patches of color that they answer to most.

    Each is stretched to the whole range about grey by its own largest weight.

    Args:
        kernels: of shape (height, width, 3, filters), such as `model.get_layer("conv1").kernel`.
        columns: filters in a row, 1 or more.
        title: above the drawing.

    Returns:
        The figure.

    Raises:
        InputError: the kernels have another shape.

    Example:
        >>> len(filters_plot(np.random.default_rng(0).normal(size=(7, 7, 3, 12))).axes)
        12
    """
    values = np.asarray(keras.ops.convert_to_numpy(kernels), "float64")
    if values.ndim != 4 or values.shape[2] != 3 or columns < 1:
        raise InputError(
            f"Expected kernels of shape (height, width, 3, filters), and 1 column or more. Received: {values.shape}, "
            f"{columns}. Filters behind the first layer see no colors."
        )
    count = values.shape[3]
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(0.85 * columns, 0.85 * rows + 0.4)
    for place in range(count):
        one = values[..., place]
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(0.5 + 0.5 * one / max(float(np.abs(one).max()), 1e-12), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#bbbbbb")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def lesson_drawing(model: keras.Model, base: keras.Model, *, title: str | None = None) -> Figure:
    """Draw what a builder made of a network, in the lesson's manner: maps as slabs, vectors as columns of dots.

    Args:
        model: of a builder.
        base: the network that it was built from, from whose layers the drawing takes what was cut away.
        title: above the drawing; None says the case.

    Returns:
        The figure.

    Raises:
        InputError: no builder made the model, or from another network.

    Example:
        >>> from transfer.cases.builders import small_different
        >>> from transfer.networks.demo_cnn import DemoCNN
        >>> base = DemoCNN()
        >>> lesson_drawing(small_different(base, 12), base).axes[0].get_title(loc="left")
        'Case 2, small-different: keep only the early layers, freeze them, train a new head'
    """
    plan = getattr(model, "plan", None)
    if not isinstance(plan, CaseDecision) or plan.base != base.name:
        raise InputError(
            "Expected a model of a builder, and the network that it was built from. Received: "
            f"{getattr(model, 'name', model)!r} of {getattr(plan, 'base', None)!r}, and {base.name!r}."
        )
    kept, cut = _slabs(model, base)
    policy = POLICIES[plan.case]
    title = title or f"Case {policy.number}, {plan.case}: {policy.idea}"
    return _draw(kept, cut, title, image=model.input_shape[1] or 1)


def network_drawing(base: keras.Model, *, title: str = "") -> Figure:
    """Draw a network as it was pre-trained, in the same manner."""
    slabs = [_slab(node, "frozen") for node in _shown(base)]
    return _draw(slabs, [], title or base.name, image=base.input_shape[1] or 1, legend=False)


_MOST_LAYERS = 10  # of a larger network, blocks are drawn


def _shown(base: keras.Model) -> list[graphs.Node]:
    """The layers to draw: those with kernels of a small network, the ends of the blocks of a larger one."""
    nodes = graphs.graph(base)[1:]
    kernels = [node for node in nodes if hasattr(node.op, "kernel")]
    if len(kernels) <= _MOST_LAYERS:
        return kernels
    ends = block_ends(base)
    return [node for node in nodes if node.op.name in ends]


def _slab(node: graphs.Node, state: str) -> _Slab:
    shape = node.tensor.shape
    size = shape[1] or 1 if len(shape) == 4 else None
    return _Slab(node.op.name, size, shape[-1], state, SEES.get(node.op.name, ""))


def _slabs(model: keras.Model, base: keras.Model) -> tuple[list[_Slab], list[_Slab]]:
    """The layers that the model has, its head the last, and those of the base that it has not."""
    ours = {node.op.name: node for node in graphs.graph(model)}
    head = graphs.graph(model)[-1]
    kept, cut = [], []
    for node in _shown(base):
        name = node.op.name
        if name in ours and ours[name].op is not head.op:
            trains = getattr(ours[name].op, "trainable", False)
            state = ("new" if decision_of(model).init == "random" else "trained") if trains else "frozen"
            kept.append(_slab(ours[name], state))
        else:
            cut.append(_slab(node, "cut"))
    return [*kept, _slab(head, "new")._replace(name="new head", text="classes")], cut


_GAP, _PITCH = 0.62, 1.5  # between slabs; from one to the next at least
_SKEW = 0.4  # how much a sheet rises with each unit to the right
_BELOW = -4.7  # where the row of what was cut away is


def _draw(
    kept: Sequence[_Slab], cut: Sequence[_Slab], title: str, *, image: int, legend: bool = True
) -> Figure:
    """Draw the kept layers in a row from the image on, what was cut away in a row below, from the cut
    on."""
    row = [_Slab("image", image, 3, "", ""), *kept]
    places = _places(row, 0.0, image)
    if cut:
        places[-1] += 0.9  # room for the scissors
    from_cut = places[-1] - 0.75
    below = _places(cut, from_cut + 0.75, image)
    right = max([places[-1], *below[-1:]]) + 1.3
    low = _BELOW - 3.0 if cut else -2.9
    figure = new_figure(0.85 * right + 0.4, 0.62 * (2.9 - low))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    for slabs, at, y in ((row, places, 0.0), (cut, below, _BELOW)):
        for i, (slab, x) in enumerate(zip(slabs, at, strict=True)):
            if i:
                _arrow(axes, at[i - 1] + _width(slabs[i - 1], image) + 0.08, x - 0.1, y, slab.state)
            _draw_slab(axes, slab, x, y, image)
    if cut:
        _draw_cut(axes, from_cut, low, 2.0)
        axes.text(from_cut - 0.25, _BELOW, "cut away", ha="right", va="center", fontsize=9, style="italic")
    axes.set_xlim(-0.4, right)
    axes.set_ylim(low, 2.9)
    axes.set_title(title, fontsize=11, loc="left")
    if legend:
        states = [slab.state for slab in [*kept, *cut]]
        marks = [
            Patch(facecolor=COLORS[state], edgecolor=_EDGE, ls="--" if state == "cut" else "-", label=text)
            for state, text in _MEANING.items()
            if state in states
        ]
        figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False, fontsize=9)
    return figure


def _places(slabs: Sequence[_Slab], start: float, image: int) -> list[float]:
    places = []
    for slab in slabs:
        places.append(start)
        start += max(_width(slab, image) + _GAP, _PITCH)
    return places


def _height(slab: _Slab, image: int) -> float:
    return 0.75 + 1.9 * (slab.size or 0) / image


def _sheets(slab: _Slab) -> int:
    """More for more maps: 3, 6, 7, 8 for 3, 32, 64, 128."""
    return max(1, round(np.log2(slab.depth + 1)) + 1) if slab.depth > 3 else 3


def _width(slab: _Slab, image: int) -> float:
    if slab.size is None:
        return 0.3
    return 0.34 * _height(slab, image) + 0.13 * (_sheets(slab) - 1)


def _draw_slab(axes: Axes, slab: _Slab, x: float, y: float, image: int) -> None:
    gone = slab.state == "cut"
    style: dict[str, Any] = {
        "facecolor": COLORS.get(slab.state, "#eeeeee"),
        "edgecolor": _GONE if gone else _EDGE,
        "linestyle": "--" if gone else "-",
        "linewidth": 0.8,
    }
    if slab.size is None:
        _draw_dots(axes, slab, x + 0.15, y, style)
    else:
        high = _height(slab, image)
        wide = 0.34 * high
        for sheet in range(_sheets(slab)):
            left = x + 0.13 * sheet
            rise = _SKEW * wide / 2
            corners = [
                (left, y - high / 2 - rise),
                (left + wide, y - high / 2 + rise),
                (left + wide, y + high / 2 + rise),
                (left, y + high / 2 - rise),
            ]
            axes.add_patch(Polygon(corners, **style))
    middle, color = x + _width(slab, image) / 2, _GONE if gone else "black"
    size = f"{slab.size} x {slab.size} x {slab.depth}" if slab.size is not None else f"{slab.depth:,}"
    for text, below, extra in (
        (slab.name, 1.75, {"weight": "bold", "fontsize": 9}),
        (size, 2.12, {"fontsize": 8}),
        (slab.text.replace(" ", "\n"), 2.4, {"fontsize": 9, "style": "italic"}),
    ):
        axes.text(middle, y - below, text, ha="center", va="top", color=color, **extra)


def _draw_dots(axes: Axes, slab: _Slab, x: float, y: float, style: dict[str, Any]) -> None:
    """A column of neurons; of many, an odd number with three points in the middle."""
    count, step = min(slab.depth, 9), 0.31
    for i in range(count):
        at = y + step * (i - (count - 1) / 2)
        if slab.depth > count and i == count // 2:
            for dot in (-0.08, 0, 0.08):
                axes.add_patch(Circle((x, at + dot), 0.02, color=style["edgecolor"]))
        else:
            axes.add_patch(Circle((x, at), 0.13, **style))


def _arrow(axes: Axes, start: float, end: float, y: float, state: str) -> None:
    color = _GONE if state == "cut" else _EDGE
    axes.add_patch(FancyArrowPatch((start, y), (end, y), arrowstyle="-|>", mutation_scale=9, color=color))


def _draw_cut(axes: Axes, x: float, low: float, high: float) -> None:
    """A dashed line, with scissors that come from above."""
    axes.plot([x, x], [low, high], color=COLORS["new"], linestyle=(0, (5, 3)), linewidth=1.6)
    axes.text(
        x,
        high,
        "\N{BLACK SCISSORS}",
        ha="center",
        va="bottom",
        rotation=-90,
        fontsize=20,
        color=COLORS["new"],
    )


def transferability_plot(found: Transferability) -> Figure:
    """Draw how transferable the layers are: each network as a point, and a line of means for each kind."""
    figure = new_figure(max(7.5, 2.5 + 1.1 * len(found.layers)), 4.8)
    axes = figure.add_subplot()
    base = float(np.mean(found.base))
    axes.axhline(base, color="#999999", linestyle=":", zorder=0)
    axes.plot([0] * len(found.base), found.base, "o", color="#777777", ms=4, alpha=0.6, clip_on=False)
    spread = np.linspace(-0.12, 0.12, len(found.kinds)) if len(found.kinds) > 1 else [0.0]
    for kind, shift in zip(found.kinds, spread, strict=True):
        color, mark = _KIND_COLORS[kind], "s" if kind[0] == "B" else "o"
        for place, layer in enumerate(found.layers, start=1):
            values = found.accuracies(kind, layer)
            axes.plot([place + shift] * len(values), values, mark, color=color, ms=4, alpha=0.55)
        means = [base, *found.means(kind)]
        style: dict[str, Any] = {"color": color, "linestyle": "--" if kind.endswith("+") else "-"}
        axes.plot(range(len(means)), means, label=f"{kind}: {_KIND_MEANING[kind]}", lw=2, **style)
    axes.set_xticks(range(len(found.layers) + 1), ["none:\nnetwork B", *found.layers])
    if len(found.layers) > _MOST_LAYERS:
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("taken over up to layer n")
    axes.set_ylabel("right, of B's test images")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"How transferable are the layers of {found.network}?", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def transferability_summary(found: Transferability) -> Figure:
    """Draw gains and losses against the network B, in points of accuracy, a line for each kind."""
    figure = new_figure(max(7.5, 2.5 + 1.1 * len(found.layers)), 4.4)
    axes = figure.add_subplot()
    base = float(np.mean(found.base))
    axes.axhline(0, color="#999999", linestyle=":", zorder=0)
    lines = {kind: 100 * (np.array([base, *found.means(kind)]) - base) for kind in found.kinds}
    steps = np.arange(len(found.layers) + 1)
    if {"BnB", "AnB"} <= set(lines):
        own, other = np.minimum(lines["BnB"], 0), np.minimum(lines["AnB"], lines["BnB"])
        axes.fill_between(
            steps, own, 0, color="#4a7fb0", alpha=0.15, lw=0, label="lost: layers had learnt together"
        )
        other = np.minimum(other, own)
        axes.fill_between(
            steps, other, own, color="#c1440e", alpha=0.15, lw=0, label="lost: layers are specific to A"
        )
    for kind, line in lines.items():
        style: dict[str, Any] = {"linestyle": "--" if kind.endswith("+") else "-", "lw": 2}
        axes.plot(steps, line, "o", color=_KIND_COLORS[kind], label=kind, ms=4, **style)
    axes.set_xticks(steps, ["none:\nnetwork B", *found.layers])
    if len(found.layers) > _MOST_LAYERS:
        axes.tick_params(axis="x", rotation=90)
    axes.set(xlabel="taken over up to layer n", ylabel="points of accuracy against the network B")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("What is lost, and why; what fine-tuning wins", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
