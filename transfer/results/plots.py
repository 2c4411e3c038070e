"""Draw the network of a run by blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from transfer.adviser.advice_plots import block_name
from transfer.common.figures import COLORS, new_figure, without_math

STATES = {
    "frozen": "frozen",
    "trained": "pre-trained, then fine-tuned",
    "new": "new, trained from scratch",
    "cut": "cut away",
}
"""States of a network's blocks, with their names in legends."""

_LEFT, _STEP, _WIDTH = (
    2.2,
    0.92,
    0.62,
)  # where the first block begins, the distance between blocks, and their width
_MAX_BLOCKS = 22


class _Drawn(NamedTuple):
    """One box of the drawing: a block, or several neighbors of the same state."""

    names: list[str]
    state: str
    taps: int  # number of its layers that the head sees


def network_by_blocks(
    title: str,
    blocks: Sequence[tuple[str, str]],
    *,
    taps: Sequence[str] = (),
    input_text: str,
    output_text: str,
    legend: Mapping[str, str] = STATES,
) -> Figure:
    """Draw a network as a row of blocks, colored by state; lines lead from several tapped blocks to the head."""
    drawn = _groups(blocks, taps if len(taps) > 1 else ())
    kept = [block for block in drawn if block.state != "cut"]
    cut = [block for block in drawn if block.state == "cut"]
    # Blocks that were cut away are drawn in a second row, which begins below the cut.
    cut_from = _LEFT + _STEP * (len(kept) - 1)
    right = max(_LEFT + _STEP * len(kept) + 1.6, cut_from + _STEP * len(cut) + 0.4)
    low, high = (-2.3 if cut else 0.2), (3.9 if len(taps) > 1 else 2.8)
    figure = new_figure(0.8 * right, 0.72 * (high - low) + 0.8)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(_LEFT - 0.45, 1.5, input_text, ha="right", va="center", fontsize=9)
    for place, block in enumerate(kept):
        head = place == len(kept) - 1
        _draw_block(axes, _LEFT + _STEP * place, 1.5, block, 1.6 if head else 2.2)
        if not (head and len(taps) > 1):
            _arrow(axes, (_LEFT + _STEP * place - 0.34, 1.5), (_LEFT + _STEP * place, 1.5))
    if len(taps) > 1:
        _draw_taps(axes, kept)
    axes.text(_LEFT + _STEP * len(kept), 1.5, output_text, ha="left", va="center", fontsize=9)
    for place, block in enumerate(cut):
        _draw_block(axes, cut_from + _STEP * place, -1.1, block, 2.0)
    if cut:
        axes.text(cut_from - 0.3, -1.1, "cut away", ha="right", va="center", fontsize=9, style="italic")
    patches = [
        FancyBboxPatch((0, 0), 1, 1, facecolor=COLORS[state], edgecolor="#333333", label=text)
        for state, text in legend.items()
        if any(state == block.state for block in drawn)
    ]
    figure.legend(
        handles=patches, loc="outside lower left", ncols=min(3, len(patches)), frameon=False, fontsize=9
    )
    axes.set(xlim=(0, right), ylim=(low, high))
    axes.set_title(title, fontsize=11, loc="left")
    return without_math(figure)


def _groups(blocks: Sequence[tuple[str, str]], taps: Sequence[str]) -> list[_Drawn]:
    """Shorten the names, and join neighbors of the same state if there are too many blocks for a page."""
    size = -(-len(blocks) // _MAX_BLOCKS)
    groups: list[_Drawn] = []
    for layer, state in blocks:
        name, tapped = block_name(layer), int(layer in taps)
        last = groups[-1] if groups else None
        if last and last.state == state and len(last.names) < size and "classifier" not in name:
            groups[-1] = _Drawn([*last.names, name], state, last.taps + tapped)
        else:
            groups.append(_Drawn([name], state, tapped))
    return groups


def _draw_taps(axes: Axes, kept: Sequence[_Drawn]) -> None:
    """Draw a line from each tapped block to the head; a number where a box stands for several tapped blocks."""
    top, bus, head = 2.6, 3.2, _LEFT + _STEP * (len(kept) - 1) + _WIDTH / 2
    tapped = [(_LEFT + _STEP * i + _WIDTH / 2, block.taps) for i, block in enumerate(kept) if block.taps]
    for x, count in tapped:
        axes.plot([x, x], [top, bus], color="#333333", lw=1, gid="tap")
        if count > 1:
            axes.text(x + 0.08, (top + bus) / 2, str(count), fontsize=8, va="center")
    axes.plot([tapped[0][0], head], [bus, bus], color="#333333", lw=1)
    _arrow(axes, (head, bus + 0.02), (head, 2.3))
    total = sum(count for _, count in tapped)
    axes.text(tapped[0][0], bus + 0.15, f"the head sees {total} layers", fontsize=9)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color="#333333", shrinkA=0, shrinkB=0)
    )


def _draw_block(axes: Axes, x: float, y: float, block: _Drawn, height: float) -> None:
    """Draw one box with its name."""
    cut_away = block.state == "cut"
    axes.add_patch(
        FancyBboxPatch(
            (x, y - height / 2),
            _WIDTH,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLORS[block.state],
            edgecolor="#777777" if cut_away else "#333333",
            linestyle="--" if cut_away else "-",
        )
    )
    name = block.names[0] if len(block.names) == 1 else f"{block.names[0]} to\n{block.names[-1]}"
    # Names may have any length; the box has room for about 16 letters.
    size = 8 * min(1.0, 16 / max(len(line) for line in name.split("\n")))
    color = "#777777" if cut_away else "black"
    axes.text(x + _WIDTH / 2, y, name, rotation=90, ha="center", va="center", fontsize=size, color=color)
