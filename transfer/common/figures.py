"""The basis of all figures: colors, size, and PNG output."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from transfer.common.errors import optional
from transfer.common.streams import progress_bar

Draw = Callable[[], Figure]
"""Draws a figure when it is called."""

COLORS = {"frozen": "#8fb8de", "trained": "#f4a261", "new": "#e76f51", "cut": "#ffffff"}
"""Color of a network's block by its state; the same in every figure."""

DPI = 110
"""Pixels per inch of PNG files."""


class _NotebookFigure(Figure):
    """A figure that notebooks display without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        return png_of(self, dpi=80)


def new_figure(
    width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Make an empty figure; width and height in inches."""
    # Without pyplot, the figure needs no display and is the same on every machine.
    figure = _NotebookFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


class Sheet:
    """A figure with images and text at pixel positions. It draws much faster than one with axes for each image."""

    def __init__(self, width: int, height: int) -> None:
        """Make an empty sheet; width and height in pixels at `DPI`."""
        self.pixels = np.full((height, width, 3), 255, "uint8")
        self.figure = new_figure(width / DPI, height / DPI, layout=None)
        self._axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()

    def paste(self, image: np.ndarray, left: int, top: int, width: int, height: int) -> None:
        """Resize an RGB image (uint8) into a box; much enlarged pixels keep sharp edges."""
        much = width >= 3 * image.shape[1]
        method = Image.Resampling.NEAREST if much else Image.Resampling.LANCZOS
        resized = Image.fromarray(image).resize((width, height), method)
        self.pixels[top : top + height, left : left + width] = resized

    def write(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write text at a position in pixels from the upper left; dollar signs do not start formulas."""
        self._axes.text(left, top, text, parse_math=False, **style)

    def finish(self) -> Figure:
        """Return the figure with all images."""
        height, width = self.pixels.shape[:2]
        self._axes.imshow(self.pixels, extent=(0, width, height, 0), aspect="auto")
        return self.figure


def without_math(figure: Figure) -> Figure:
    """Draw the dollar signs in a figure's texts, such as names of classes, as they are."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def png_of(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Return a figure as PNG."""
    # `savefig` draws a figure twice, and compressing takes longer than drawing.
    stream, before = io.BytesIO(), figure.dpi
    figure.set_dpi(dpi)
    try:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    finally:
        figure.set_dpi(before)
    Image.fromarray(pixels).save(stream, "png", compress_level=2, dpi=(dpi, dpi))
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
