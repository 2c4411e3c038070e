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


class DrawnNetwork(NamedTuple):
    """A network of a drawing: its title, its blocks with their states, and the layers that its head sees."""

    title: str
    blocks: Sequence[tuple[str, str]]
    taps: Sequence[str] = ()


def networks_by_blocks(
    networks: Sequence[DrawnNetwork],
    *,
    input_text: str,
    output_text: str,
    legend: Mapping[str, str] = STATES,
) -> Figure:
    """Draw each network as a row of blocks, colored by state; lines lead from several tapped blocks to the head."""
    drawn = [_groups(one.blocks, one.taps if len(one.taps) > 1 else ()) for one in networks]
    limits = [_limits(blocks) for blocks in drawn]
    right, heights = max(right for right, _, _ in limits), [high - low for _, low, high in limits]
    figure = new_figure(0.8 * right, 0.72 * sum(heights) + 0.8 * len(networks))
    panels = figure.subplots(len(networks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, network, blocks, (_, low, high) in zip(panels, networks, drawn, limits, strict=True):
        axes.set_axis_off()
        _draw_network(axes, blocks, input_text, output_text)
        axes.set(xlim=(0, right), ylim=(low, high))
        axes.set_title(network.title, fontsize=11, loc="left")
    patches = [
        FancyBboxPatch((0, 0), 1, 1, facecolor=COLORS[state], edgecolor="#333333", label=text)
        for state, text in legend.items()
        if any(state == block.state for blocks in drawn for block in blocks)
    ]
    figure.legend(
        handles=patches, loc="outside lower left", ncols=min(3, len(patches)), frameon=False, fontsize=9
    )
    return without_math(figure)


def _limits(drawn: Sequence[_Drawn]) -> tuple[float, float, float]:
    """Return the right, lower and upper limit of the drawing of a network."""
    cut = sum(block.state == "cut" for block in drawn)
    kept = len(drawn) - cut
    right = _LEFT + _STEP * max(kept + 1.6 / _STEP, kept - 1 + cut + 0.4 / _STEP)
    return right, -2.3 if cut else 0.2, 3.9 if any(block.taps for block in drawn) else 2.8


def _draw_network(axes: Axes, drawn: Sequence[_Drawn], input_text: str, output_text: str) -> None:
    """Draw a row of blocks from the image to the classes, and the blocks that were cut away in a second row."""
    kept = [block for block in drawn if block.state != "cut"]
    tapped = any(block.taps for block in kept)
    axes.text(_LEFT - 0.45, 1.5, input_text, ha="right", va="center", fontsize=9)
    for place, block in enumerate(kept):
        head = place == len(kept) - 1
        _draw_block(axes, _LEFT + _STEP * place, 1.5, block, 1.6 if head else 2.2)
        if not (head and tapped):
            _arrow(axes, (_LEFT + _STEP * place - 0.34, 1.5), (_LEFT + _STEP * place, 1.5))
    if tapped:
        _draw_taps(axes, kept)
    axes.text(_LEFT + _STEP * len(kept), 1.5, output_text, ha="left", va="center", fontsize=9)
    cut_from = _LEFT + _STEP * (len(kept) - 1)
    cut = [block for block in drawn if block.state == "cut"]
    for place, block in enumerate(cut):
        _draw_block(axes, cut_from + _STEP * place, -1.1, block, 2.0)
    if cut:
        axes.text(cut_from - 0.3, -1.1, "cut away", ha="right", va="center", fontsize=9, style="italic")


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
