"""What all images are drawn on."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = {"frozen": "#8fb8de", "trained": "#f4a261", "new": "#e76f51", "cut": "#ffffff"}
"""Of the blocks of a network; the same in every drawing."""


class _Image(Figure):
    """A figure that notebooks show without having been told to draw inline."""

    def _repr_png_(self) -> bytes:
        return png_of(self, dpi=80)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure that no window manager knows of, so that a run draws the same everywhere."""
    figure = _Image(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Figure, *, dpi: int = 110) -> bytes:
    """Draw a figure."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    return image.getvalue()
