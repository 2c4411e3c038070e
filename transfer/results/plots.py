"""Draw the figures of a run and of advice: confusion matrix, predictions, network, layer curve, four cases."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from transfer.adviser.advice import Advice
from transfer.adviser.curves import LayerCurve
from transfer.cases.policies import SMALL_DATA
from transfer.common.figures import COLORS, Draw, new_figure
from transfer.evaluation.evaluate import Evaluation

STATES = {
    "frozen": "frozen",
    "trained": "pre-trained, then fine-tuned",
    "new": "new, from random weights",
    "cut": "cut away",
}
"""States of a network's blocks, with their names in legends."""

_LEFT, _STEP = 2.2, 0.92  # where the first block begins, and the distance between blocks
_MAX_BLOCKS = 22


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix; each row is a true class, colored by the fraction of its images."""
    counts, names = evaluation.confusion, evaluation.class_names
    side = min(24.0, 3.0 + 0.45 * len(names))
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    fraction = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 40:
        for true, row in enumerate(counts):
            for predicted, count in enumerate(row):
                if count:
                    color = "white" if fraction[true, predicted] > 0.5 else "black"
                    axes.text(predicted, true, str(count), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlabel="predicted class",
        ylabel="true class",
        title=f"accuracy {evaluation.accuracy:.1%}, {len(evaluation.labels):,} images",
    )
    return figure


def prediction_sheet(evaluation: Evaluation, images: Mapping[int, np.ndarray]) -> Figure:
    """Draw images with their predicted classes: correct ones in green, wrong ones in red with the true class."""
    columns = 6
    rows = max(1, -(-len(images) // columns))
    figure = new_figure(1.8 * columns, 2.2 * rows)
    for place, (position, image) in enumerate(images.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        correct = evaluation.predictions[position] == evaluation.labels[position]
        caption = prediction_caption(evaluation, position)
        axes.set_title(caption, fontsize=9, color="#1b7f3b" if correct else "#c1121f")
    return figure


def prediction_caption(evaluation: Evaluation, position: int) -> str:
    """Return the predicted class of an image with its probability, and the true class if that differs."""
    guess, truth = evaluation.predictions[position], evaluation.labels[position]
    text = f"{evaluation.class_names[guess]} {evaluation.probabilities[position, guess]:.0%}"
    return text if guess == truth else f"{text}\n(is {evaluation.class_names[truth]})"


def network_by_blocks(
    title: str, blocks: Sequence[tuple[str, str]], *, input_text: str, output_text: str
) -> Figure:
    """Draw a network as a row of blocks, colored by state: frozen, trained, new, or cut away."""
    blocks = _groups(blocks)
    kept = [block for block in blocks if block[1] != "cut"]
    cut = [block for block in blocks if block[1] == "cut"]
    # Blocks that were cut away are drawn in a second row, which begins below the cut.
    cut_from = _LEFT + _STEP * (len(kept) - 1)
    right = max(_LEFT + _STEP * len(kept) + 1.6, cut_from + _STEP * len(cut) + 0.4)
    figure = new_figure(0.8 * right, 4.4 if cut else 2.9)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(_LEFT - 0.45, 1.5, input_text, ha="right", va="center", fontsize=9)
    for place, (name, state) in enumerate(kept):
        _draw_block(axes, _LEFT + _STEP * place, 1.5, name, state, 1.6 if state == "new" else 2.2)
    axes.text(_LEFT + _STEP * len(kept), 1.5, output_text, ha="left", va="center", fontsize=9)
    for place, (name, state) in enumerate(cut):
        _draw_block(axes, cut_from + _STEP * place, -1.1, name, state, 2.0)
    if cut:
        axes.text(cut_from - 0.3, -1.1, "cut away", ha="right", va="center", fontsize=9, style="italic")
    patches = [
        FancyBboxPatch((0, 0), 1, 1, facecolor=COLORS[state], edgecolor="#333333", label=text)
        for state, text in STATES.items()
        if any(state == other for _, other in blocks)
    ]
    axes.legend(handles=patches, loc="upper right", ncols=len(patches), frameon=False, fontsize=8)
    axes.set_xlim(0, right)
    axes.set_ylim(-2.3 if cut else 0.2, 3.4)
    axes.set_title(title, fontsize=11, loc="left")
    return figure


def _groups(blocks: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Shorten the names, and join neighbors of the same state if there are too many blocks for a page."""
    size = -(-len(blocks) // _MAX_BLOCKS)
    groups: list[tuple[list[str], str]] = []
    for name, state in blocks:
        name = _block_name(name)
        if groups and groups[-1][1] == state and len(groups[-1][0]) < size and "classifier" not in name:
            groups[-1][0].append(name)
        else:
            groups.append(([name], state))
    return [
        (names[0] if len(names) == 1 else f"{names[0]} to\n{names[-1]}", state) for names, state in groups
    ]


def _block_name(name: str) -> str:
    """Return the name of a block from the name of its last layer."""
    for suffix in ("_add", "_out", "_concat", "_project_bn", "_project_BN", "_relu", "_ac", "_pool"):
        name = name.removesuffix(suffix)
    return name


def _draw_block(axes: Axes, x: float, y: float, name: str, state: str, height: float) -> None:
    """Draw one block; one that was not cut away gets an arrow from the block before it."""
    width, cut_away = 0.62, state == "cut"
    axes.add_patch(
        FancyBboxPatch(
            (x, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLORS[state],
            edgecolor="#777777" if cut_away else "#333333",
            linestyle="--" if cut_away else "-",
        )
    )
    # Names may have any length; the box has room for about 16 letters.
    size = 8 * min(1.0, 16 / max(len(line) for line in name.split("\n")))
    color = "#777777" if cut_away else "black"
    axes.text(x + width / 2, y, name, rotation=90, ha="center", va="center", fontsize=size, color=color)
    if not cut_away:
        axes.add_patch(
            FancyArrowPatch((x - 0.34, y), (x, y), arrowstyle="-|>", mutation_scale=8, color="#333333")
        )


def layer_curve_plot(curve: LayerCurve) -> Figure:
    """Draw the cross-validated accuracy of each layer, in the order of the network, and the best layer."""
    names = [_shorten(_block_name(name)) for name in curve.names]
    accuracy, all_layers, (mean, deviation) = curve.accuracy, curve.all_layers.accuracy, curve.chance
    figure = new_figure(min(16.0, 6.5 + 0.22 * len(names)), 3.6 + 0.08 * max(map(len, names)))
    axes = figure.add_subplot()
    half = max(2 * deviation, 0.004)  # wide enough to be visible
    axes.axhspan(mean - half, mean + half, color="#d9d9d9", label=f"shuffled labels: {mean:.0%}", lw=0)
    axes.axhline(all_layers, color="#333333", linestyle="--", label=f"all layers: {all_layers:.0%}")
    style: dict[str, Any] = {"color": "#4a7fb0", "ecolor": COLORS["frozen"], "capsize": 3, "ms": 5}
    label = "single layer, with standard error"
    axes.errorbar(range(len(names)), accuracy, curve.standard_error, fmt="o-", label=label, **style)
    title, cut = "No layer predicts the labels better than shuffled labels", None
    if curve.signal:
        cut = curve.names.index(curve.cut)
        title = f"Accuracy of each layer: keep the layers up to {names[cut]}"
        ring: dict[str, Any] = {"ms": 12, "mfc": "none", "mew": 2.5, "color": COLORS["new"]}
        axes.plot([cut], accuracy[[cut]], "o", label=f"best layer: {accuracy[cut]:.0%}", **ring)
        axes.axvline(cut, color=COLORS["new"], linestyle=":", zorder=0)
    _layer_ticks(axes, names, cut)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel(f"cross-validated accuracy ({len(curve.labels):,} images)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name may contain dollar signs
    return figure


def _layer_ticks(axes: Axes, names: Sequence[str], cut: int | None) -> None:
    """Label the layers below the axis; of many layers, only some, always with the cut."""
    step = -(-len(names) // 45)
    shown = [i for i in range(0, len(names), step) if cut is None or abs(i - cut) >= step or i == cut]
    shown = sorted({*shown, *([] if cut is None else [cut])})
    axes.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize=8)
    if cut is not None:
        axes.get_xticklabels()[shown.index(cut)].set(color=COLORS["new"], fontweight="bold")
    axes.set_xlim(-0.6, len(names) - 0.4)


def _shorten(name: str) -> str:
    """Return a name of at most 24 letters, without the middle of a longer one."""
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"


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
    names = [f"{_shorten(here[0])}, {here[1]:,.0f} images", *(_shorten(one[0]) for one in references)]
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


def advice_figures(advice: Advice) -> dict[str, Figure]:
    """Draw the figures of an advice, by name."""
    return {name: draw() for name, draw in advice_drawings(advice).items()}


def advice_drawings(advice: Advice) -> dict[str, Draw]:
    """Return functions that draw the figures of an advice, by name."""
    drawn: dict[str, Draw] = {}
    if advice.similarity is not None:
        here = (advice.data, advice.evidence.num_train, advice.similarity.score)
        others = [(one.name, one.num_images, one.score) for one in advice.similarity.references]
        drawn["four_cases"] = lambda: four_cases_chart(here, others)
    if (curve := advice.curve) is not None:
        drawn["layer_curve"] = lambda: layer_curve_plot(curve)
    return drawn
