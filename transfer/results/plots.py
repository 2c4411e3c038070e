"""Draw the network of a run by blocks."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from transfer.adviser.advice_plots import block_name
from transfer.common.figures import COLORS, new_figure

STATES = {
    "frozen": "frozen",
    "trained": "pre-trained, then fine-tuned",
    "new": "new, from random weights",
    "cut": "cut away",
}
"""States of a network's blocks, with their names in legends."""

_LEFT, _STEP = 2.2, 0.92  # where the first block begins, and the distance between blocks
_MAX_BLOCKS = 22


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
        name = block_name(name)
        if groups and groups[-1][1] == state and len(groups[-1][0]) < size and "classifier" not in name:
            groups[-1][0].append(name)
        else:
            groups.append(([name], state))
    return [
        (names[0] if len(names) == 1 else f"{names[0]} to\n{names[-1]}", state) for names, state in groups
    ]


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
