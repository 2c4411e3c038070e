"""Figures for the lesson: networks layer by layer, first-layer filters, and the transferability experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Patch, Polygon
from matplotlib.ticker import PercentFormatter

from transfer.cases.decisions import decision_of, find_decision
from transfer.cases.policies import POLICIES
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError
from transfer.common.figures import COLORS, new_figure
from transfer.lesson.transferability import Transferability
from transfer.networks.demo_cnn import SEES
from transfer.networks.graphs import Node, analyze
from transfer.results.plots import STATES

_CUT_EDGE, _EDGE = "#9a9a9a", "#333333"
_KIND_COLORS = {"BnB": "#4a7fb0", "BnB+": "#8fb8de", "AnB": "#c1440e", "AnB+": "#f4a261"}
_KIND_NAMES = {
    "BnB": "layers of B, frozen",
    "BnB+": "layers of B, fine-tuned",
    "AnB": "layers of A, frozen",
    "AnB+": "layers of A, fine-tuned",
}


_GAP, _PITCH = 0.62, 1.5  # gap between layers, and the smallest distance from one layer to the next
_SKEW = 0.4  # rise of a feature map's edge per unit to the right
_LOWER_ROW = -4.7  # y of the layers that were cut away
_MAX_LAYERS = 10  # a network with more layers is drawn by blocks


class _DrawnLayer(NamedTuple):
    name: str
    size: int | None  # height and width of the feature maps; None for a vector
    depth: int  # number of feature maps or units
    state: str
    text: str


@explain_arguments()
def filters_plot(
    kernels: np.ndarray, *, columns: int = 8, title: str = "Filters of the first layer"
) -> Figure:
    """Draw the filters of a first layer as the color patches to which they respond most strongly.

    Each filter is scaled by its largest absolute weight; a weight of 0 is drawn as gray.

    Args:
        kernels: Kernel of the layer, shape (height, width, 3, filters), such as `model.get_layer("conv1").kernel`.
        columns: Filters per row, 1 or more.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        InputError: The kernel has another shape.

    Example:
        >>> len(filters_plot(np.random.default_rng(0).normal(size=(7, 7, 3, 12))).axes)
        12
    """
    values = np.asarray(keras.ops.convert_to_numpy(kernels), "float64")
    if values.ndim != 4 or values.shape[2] != 3 or columns < 1:
        raise InputError(
            f"Expected kernels of shape (height, width, 3, filters), and 1 column or more. Received: {values.shape}, "
            f"{columns}. Only the filters of the first layer see colors."
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


@explain_arguments()
def lesson_drawing(model: keras.Model, base: keras.Model, *, title: str | None = None) -> Figure:
    """Draw a model and the network that it was built from, layer by layer.

    Feature maps are drawn as stacked sheets and vectors as columns of dots. Layers that were cut away are in a second
    row.

    Args:
        model: A model from one of the builders, such as `small_similar`.
        base: The network that the model was built from.
        title: Title of the figure; None is the name of the case.

    Returns:
        The figure.

    Raises:
        InputError: The model does not come from a builder, or it was built from another network.

    Example:
        >>> from transfer.cases.builders import small_different
        >>> from transfer.networks.demo_cnn import DemoCNN
        >>> base = DemoCNN()
        >>> lesson_drawing(small_different(base, 12), base).axes[0].get_title(loc="left").split(":")[0]
        'Case 2, small-different'
    """
    decision = find_decision(model)
    if decision is None or decision.base != base.name:
        raise InputError(
            "Expected a model from a builder, and the network that it was built from. Received: "
            f"{getattr(model, 'name', model)!r} of {getattr(decision, 'base', None)!r}, and {base.name!r}."
        )
    kept, cut = _layers(model, base)
    policy = POLICIES[decision.case]
    title = title or f"Case {policy.number}, {decision.case}: {policy.idea}"
    return _draw(kept, cut, title, image=model.input_shape[1] or 1)


def network_drawing(base: keras.Model, *, title: str = "") -> Figure:
    """Draw a pre-trained network in the style of `lesson_drawing`."""
    layers = [_drawn(node, "frozen") for node in _shown(base)]
    return _draw(layers, [], title or base.name, image=base.input_shape[1] or 1, legend=False)


def _shown(base: keras.Model) -> list[Node]:
    """Return the layers with kernels of a small network, or the block ends of a larger one."""
    network = analyze(base)
    nodes = network.nodes[1:]
    kernels = [node for node in nodes if hasattr(node.op, "kernel")]
    if len(kernels) <= _MAX_LAYERS:
        return kernels
    return [node for node in nodes if node.op.name in network.block_ends]


def _drawn(node: Node, state: str) -> _DrawnLayer:
    shape = node.tensor.shape
    size = shape[1] or 1 if len(shape) == 4 else None
    return _DrawnLayer(node.op.name, size, shape[-1], state, SEES.get(node.op.name, ""))


def _layers(model: keras.Model, base: keras.Model) -> tuple[list[_DrawnLayer], list[_DrawnLayer]]:
    """Return the layers of the model, its head last, and the layers of the base that were cut away."""
    nodes = {node.op.name: node for node in analyze(model).nodes}
    *_, head = nodes.values()
    kept, cut = [], []
    for node in _shown(base):
        own = nodes.get(node.op.name)
        if own is None or own is head:
            cut.append(_drawn(node, "cut"))
            continue
        state = "new" if decision_of(model).init == "random" else "trained"
        kept.append(_drawn(own, state if getattr(own.op, "trainable", False) else "frozen"))
    return [*kept, _drawn(head, "new")._replace(name="new head", text="classes")], cut


def _draw(
    kept: Sequence[_DrawnLayer], cut: Sequence[_DrawnLayer], title: str, *, image: int, legend: bool = True
) -> Figure:
    """Draw the kept layers in a row from the image on, and the layers cut away in a row below the cut."""
    row = [_DrawnLayer("image", image, 3, "", ""), *kept]
    places = _places(row, 0.0, image)
    if cut:
        places[-1] += 0.9  # room for the scissors
    cut_x = places[-1] - 0.75
    lower_places = _places(cut, cut_x + 0.75, image)
    right = max([places[-1], *lower_places[-1:]]) + 1.3
    low = _LOWER_ROW - 3.0 if cut else -2.9
    figure = new_figure(0.85 * right + 0.4, 0.62 * (2.9 - low))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    for layers, at, y in ((row, places, 0.0), (cut, lower_places, _LOWER_ROW)):
        for i, (layer, x) in enumerate(zip(layers, at, strict=True)):
            if i:
                color = _CUT_EDGE if layer.state == "cut" else _EDGE
                ends = (at[i - 1] + _width(layers[i - 1], image) + 0.08, y), (x - 0.1, y)
                axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=9, color=color))
            _draw_layer(axes, layer, x, y, image)
    if cut:
        _draw_cut(axes, cut_x, low, 2.0)
        style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 9, "style": "italic"}
        axes.text(cut_x - 0.25, _LOWER_ROW, "cut away", **style)
    axes.set_xlim(-0.4, right)
    axes.set_ylim(low, 2.9)
    axes.set_title(title, fontsize=11, loc="left")
    if legend:
        states = [layer.state for layer in [*kept, *cut]]
        marks = [
            Patch(facecolor=COLORS[state], edgecolor=_EDGE, ls="--" if state == "cut" else "-", label=text)
            for state, text in STATES.items()
            if state in states
        ]
        figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False, fontsize=9)
    return figure


def _places(layers: Sequence[_DrawnLayer], start: float, image: int) -> list[float]:
    """Return the left edge of each layer in a row."""
    places = []
    for layer in layers:
        places.append(start)
        start += max(_width(layer, image) + _GAP, _PITCH)
    return places


def _height(layer: _DrawnLayer, image: int) -> float:
    return 0.75 + 1.9 * (layer.size or 0) / image


def _sheets(layer: _DrawnLayer) -> int:
    """Return the number of sheets that stand for the feature maps: 3, 6, 7, 8 for 3, 32, 64, 128 maps."""
    return max(1, round(np.log2(layer.depth + 1)) + 1) if layer.depth > 3 else 3


def _width(layer: _DrawnLayer, image: int) -> float:
    if layer.size is None:
        return 0.3
    return 0.34 * _height(layer, image) + 0.13 * (_sheets(layer) - 1)


def _draw_layer(axes: Axes, layer: _DrawnLayer, x: float, y: float, image: int) -> None:
    cut_away = layer.state == "cut"
    style: dict[str, Any] = {
        "facecolor": COLORS.get(layer.state, "#eeeeee"),
        "edgecolor": _CUT_EDGE if cut_away else _EDGE,
        "linestyle": "--" if cut_away else "-",
        "linewidth": 0.8,
    }
    if layer.size is None:
        _draw_dots(axes, layer, x + 0.15, y, style)
    else:
        high = _height(layer, image)
        wide = 0.34 * high
        for sheet in range(_sheets(layer)):
            left = x + 0.13 * sheet
            rise = _SKEW * wide / 2
            corners = [
                (left, y - high / 2 - rise),
                (left + wide, y - high / 2 + rise),
                (left + wide, y + high / 2 + rise),
                (left, y + high / 2 - rise),
            ]
            axes.add_patch(Polygon(corners, **style))
    middle, color = x + _width(layer, image) / 2, _CUT_EDGE if cut_away else "black"
    size = f"{layer.size} x {layer.size} x {layer.depth}" if layer.size is not None else f"{layer.depth:,}"
    for text, below, extra in (
        (layer.name, 1.75, {"weight": "bold", "fontsize": 9}),
        (size, 2.12, {"fontsize": 8}),
        (layer.text.replace(" ", "\n"), 2.4, {"fontsize": 9, "style": "italic"}),
    ):
        axes.text(middle, y - below, text, ha="center", va="top", color=color, **extra)


def _draw_dots(axes: Axes, layer: _DrawnLayer, x: float, y: float, style: dict[str, Any]) -> None:
    """Draw a vector as a column of dots; of more than nine units, with an ellipsis in the middle."""
    count, step = min(layer.depth, 9), 0.31
    for i in range(count):
        at = y + step * (i - (count - 1) / 2)
        if layer.depth > count and i == count // 2:
            for dot in (-0.08, 0, 0.08):
                axes.add_patch(Circle((x, at + dot), 0.02, color=style["edgecolor"]))
        else:
            axes.add_patch(Circle((x, at), 0.13, **style))


def _draw_cut(axes: Axes, x: float, low: float, high: float) -> None:
    """Draw a dashed line with scissors at its upper end."""
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


def transferability_plot(result: Transferability) -> Figure:
    """Draw the accuracy of each network as a point, and a line of means for each kind."""
    figure, axes, base = _transferability_axes(result, 4.8)
    axes.axhline(base, color="#999999", linestyle=":", zorder=0)
    axes.plot([0] * len(result.base), result.base, "o", color="#777777", ms=4, alpha=0.6, clip_on=False)
    shifts = np.linspace(-0.12, 0.12, len(result.kinds)) if len(result.kinds) > 1 else [0.0]
    for kind, shift in zip(result.kinds, shifts, strict=True):
        color, mark = _KIND_COLORS[kind], "s" if kind[0] == "B" else "o"
        for place, layer in enumerate(result.layers, start=1):
            values = result.accuracies(kind, layer)
            axes.plot([place + shift] * len(values), values, mark, color=color, ms=4, alpha=0.55)
        means = [base, *result.means(kind)]
        axes.plot(range(len(means)), means, label=f"{kind}: {_KIND_NAMES[kind]}", **_line(kind))
    axes.set_ylabel("accuracy on B's test images")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"How transferable are the layers of {result.network}?", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def transferability_summary(result: Transferability) -> Figure:
    """Draw the mean gain or loss of each kind against network B, in percentage points of accuracy."""
    figure, axes, base = _transferability_axes(result, 4.4)
    axes.axhline(0, color="#999999", linestyle=":", zorder=0)
    lines = {kind: 100 * (np.array([base, *result.means(kind)]) - base) for kind in result.kinds}
    steps = np.arange(len(result.layers) + 1)
    if {"BnB", "AnB"} <= set(lines):
        own = np.minimum(lines["BnB"], 0)
        other = np.minimum(lines["AnB"], own)
        style: dict[str, Any] = {"alpha": 0.15, "lw": 0}
        axes.fill_between(steps, own, 0, color="#4a7fb0", label="loss from co-adapted layers", **style)
        axes.fill_between(steps, other, own, color="#c1440e", label="loss from layers specific to A", **style)
    for kind, line in lines.items():
        axes.plot(steps, line, marker="o", label=kind, ms=4, **_line(kind))
    axes.set_ylabel("accuracy minus that of network B (points)")
    axes.set_title("Losses from transfer, and gains from fine-tuning", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _transferability_axes(result: Transferability, height: float) -> tuple[Figure, Axes, float]:
    """Return a figure, its axes with a tick per layer, and the mean accuracy of network B."""
    figure = new_figure(max(7.5, 2.5 + 1.1 * len(result.layers)), height)
    axes = figure.add_subplot()
    axes.set_xticks(range(len(result.layers) + 1), ["none:\nnetwork B", *result.layers])
    if len(result.layers) > _MAX_LAYERS:
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("last transferred layer n")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes, float(np.mean(result.base))


def _line(kind: str) -> dict[str, Any]:
    return {"color": _KIND_COLORS[kind], "linestyle": "--" if kind.endswith("+") else "-", "lw": 2}
