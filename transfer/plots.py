"""All pictures that we draw; nowhere else is matplotlib imported."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from transfer.evaluation import Evaluation

COLORS = {"frozen": "#8fb8de", "trained": "#f4a261", "new": "#e76f51", "cut": "#ffffff"}
"""Of the blocks of a network; the same in every drawing."""


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and accuracy by epoch, training and validation, one phase after the other.

    Args:
        rows: of `TrainingLog.rows`.

    Returns:
        The figure.

    Example:
        >>> row = {"phase": "head", "epoch": 1, "loss": 1.0, "accuracy": 0.5}
        >>> len(learning_curves([row]).axes)
        2
    """
    figure = _figure(9, 3.6)
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


def regularisation_path(tried: Sequence[tuple[float, float, float]], chosen: float) -> Figure:
    """Draw what was tried for an exact head, which has no epochs: loss and accuracy of pictures left out.

    Args:
        tried: rows of C, loss and accuracy (see `heads.Tried`).
        chosen: the C that was taken.

    Returns:
        The figure.

    Example:
        >>> len(regularisation_path([(1.0, 0.9, 0.6), (10.0, 0.7, 0.8)], 10.0).axes)
        2
    """
    figure = _figure(9, 3.6)
    strengths = [row[0] for row in tried]
    for place, quantity in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.semilogx(
            strengths, [row[place] for row in tried], color=COLORS["new"], marker="o", label="left out"
        )
        axes.axvline(chosen, color="grey", linestyle=":", label=f"chosen, C = {chosen:.3g}")
        axes.set(
            xlabel="C: the larger, the weaker the regularisation", title=f"{quantity} of pictures left out"
        )
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curve_title(quantity: str, rows: Sequence[Mapping[str, Any]]) -> str:
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    return f"{quantity} ({', then '.join(phases)})"


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Draw which class was taken for which; each row is a true class, shaded by its share.

    Args:
        evaluation: of `evaluate`.

    Returns:
        The figure.

    Example:
        >>> e = Evaluation(("a", "b"), np.array([0, 1]), np.eye(2), ("1", "2"))
        >>> confusion_matrix(e).axes[0].get_xlabel()
        'predicted'
    """
    counts, names = evaluation.confusion, evaluation.class_names
    side = min(24.0, 3.0 + 0.45 * len(names))
    figure = _figure(side, side)
    axes = figure.add_subplot()
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 40:
        for true, row in enumerate(counts):
            for predicted, count in enumerate(row):
                if count:
                    color = "white" if share[true, predicted] > 0.5 else "black"
                    axes.text(predicted, true, str(count), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"accuracy {evaluation.accuracy:.1%} of {len(evaluation.labels)}",
    )
    return figure


def prediction_sheet(evaluation: Evaluation, pictures: Mapping[int, np.ndarray]) -> Figure:
    """Lay out pictures with what the model takes them for, wrong ones in red with the truth.

    Args:
        evaluation: of `evaluate`.
        pictures: position in the evaluation -> uint8 array (height, width, 3).

    Returns:
        The figure.

    Example:
        >>> e = Evaluation(("a", "b"), np.array([0, 1]), np.eye(2), ("1", "2"))
        >>> len(prediction_sheet(e, {0: np.zeros((8, 8, 3), "uint8")}).axes)
        1
    """
    columns = 6
    rows = max(1, -(-len(pictures) // columns))
    figure = _figure(1.8 * columns, 2.2 * rows)
    for place, (position, picture) in enumerate(pictures.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(picture)
        axes.set_axis_off()
        guess, truth = evaluation.predictions[position], evaluation.labels[position]
        name, sure = evaluation.class_names[guess], evaluation.probabilities[position, guess]
        right = guess == truth
        title = f"{name} {sure:.0%}" if right else f"{name} {sure:.0%}\n(is {evaluation.class_names[truth]})"
        axes.set_title(title, fontsize=9, color="#1b7f3b" if right else "#c1121f")
    return figure


def network_by_blocks(
    title: str, blocks: Sequence[tuple[str, str]], *, input_text: str, output_text: str
) -> Figure:
    """Draw a network as a row of blocks: what is frozen, what trains, what is new, what was cut away.

    Args:
        title: above the drawing.
        blocks: (name, state) from the input on; states are `"frozen"`, `"trained"`, `"new"`, `"cut"`.
        input_text: what goes in.
        output_text: what comes out.

    Returns:
        The figure.

    Example:
        >>> blocks = [("block1", "frozen"), ("block2", "cut"), ("head", "new")]
        >>> figure = network_by_blocks("case 2", blocks, input_text="picture", output_text="4 classes")
        >>> len(figure.axes)
        1
    """
    blocks = _groups(blocks)
    kept = [block for block in blocks if block[1] != "cut"]
    cut = [block for block in blocks if block[1] == "cut"]
    # What was cut away hangs below the place of the cut.
    cut_from = _LEFT + _STEP * (len(kept) - 1)
    right = max(_LEFT + _STEP * len(kept) + 1.6, cut_from + _STEP * len(cut) + 0.4)
    figure = _figure(0.8 * right, 4.4 if cut else 2.9)
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
    _legend(axes, {state for _, state in blocks})
    axes.set_xlim(0, right)
    axes.set_ylim(-2.3 if cut else 0.2, 3.4)
    axes.set_title(title, fontsize=11, loc="left")
    return figure


_LEFT, _STEP = 2.2, 0.92
_MOST_BLOCKS = 22


def _groups(blocks: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Shorten names, and join neighbours of one state where there are more blocks than fit a page."""
    size = -(-len(blocks) // _MOST_BLOCKS)
    groups: list[tuple[list[str], str]] = []
    for name, state in blocks:
        for tail in ("_add", "_out", "_concat", "_project_bn", "_project_BN", "_relu", "_ac", "_pool"):
            name = name.removesuffix(tail)
        if groups and groups[-1][1] == state and len(groups[-1][0]) < size and name != "old classifier":
            groups[-1][0].append(name)
        else:
            groups.append(([name], state))
    return [
        (names[0] if len(names) == 1 else f"{names[0]} to\n{names[-1]}", state) for names, state in groups
    ]


def _draw_block(axes: Any, x: float, y: float, name: str, state: str, height: float) -> None:
    """Draw one block, with an arrow into it where something flows."""
    width = 0.62
    gone = state == "cut"
    axes.add_patch(
        FancyBboxPatch(
            (x, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLORS[state],
            edgecolor="#777777" if gone else "#333333",
            linestyle="--" if gone else "-",
        )
    )
    # Names may be of any length: the box is about 14 letters high.
    size = 8 * min(1.0, 16 / max(len(line) for line in name.split("\n")))
    color = "#777777" if gone else "black"
    axes.text(x + width / 2, y, name, rotation=90, ha="center", va="center", fontsize=size, color=color)
    if not gone:
        axes.add_patch(
            FancyArrowPatch((x - 0.34, y), (x, y), arrowstyle="-|>", mutation_scale=8, color="#333333")
        )


def _legend(axes: Any, states: set[str]) -> None:
    meaning = {
        "frozen": "frozen: kept as pre-trained",
        "trained": "trained further",
        "new": "new, from random weights",
        "cut": "cut away",
    }
    patches = [
        FancyBboxPatch((0, 0), 1, 1, facecolor=COLORS[state], edgecolor="#333333", label=text)
        for state, text in meaning.items()
        if state in states
    ]
    axes.legend(handles=patches, loc="upper right", ncols=len(patches), frameon=False, fontsize=8)


class _Picture(Figure):
    """A figure that notebooks show without having been told to draw inline."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=80)
        return picture.getvalue()


def _figure(width: float, height: float) -> Figure:
    """A figure that no window manager knows of, so that a run draws the same everywhere."""
    figure = _Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
