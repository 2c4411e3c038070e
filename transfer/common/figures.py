"""The basis of all figures: colors, size, and PNG output."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from transfer.common.errors import optional
from transfer.common.streams import progress_bar

Draw = Callable[[], Figure]
"""Draws a figure when it is called."""

COLORS = {"frozen": "#8fb8de", "trained": "#f4a261", "new": "#e76f51", "cut": "#ffffff"}
"""Color of a network's block by its state; the same in every figure."""


class _NotebookFigure(Figure):
    """A figure that notebooks display without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        return png_of(self, dpi=80)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure; width and height in inches."""
    # Without pyplot, the figure needs no display and is the same on every machine.
    figure = _NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def without_math(figure: Figure) -> Figure:
    """Draw the dollar signs in a figure's texts, such as names of classes, as they are."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def png_of(figure: Figure, *, dpi: int = 110) -> bytes:
    """Return a figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def draw_each(figures: Mapping[str, Draw]) -> Iterator[tuple[str, bytes]]:
    """Draw figures as PNG, one at a time with a progress bar, and leave out those that fail."""
    with progress_bar(
        total=len(figures), desc="drawing figures", unit=" figures", leave=False, delay=1
    ) as bar:
        for name, draw in figures.items():
            content = b""
            with optional(f"{name}.png"):
                content = png_of(draw())
            bar.update()
            if content:
                yield name, content
