"""Images of what a model looks at and of what its layers see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from transfer.common.figures import new_figure
from transfer.evaluation.explanations import Response

HEAT = "inferno"
"""Perceptually uniform: equal steps of heat look equal, in grey too."""


def heat_sheet(images: np.ndarray, maps: np.ndarray, titles: Sequence[str]) -> Figure:
    """Lay out images, each beside itself under its heat map."""
    across = min(3, max(1, len(images)))
    rows = max(1, -(-len(images) // across))
    height = 2.1 * (images.shape[1] / images.shape[2] if len(images) else 1)
    figure = new_figure(4.5 * across + 0.8, (height + 0.4) * rows)
    grid = figure.add_gridspec(rows, across, wspace=0.06)
    for place, (image, heat, title) in enumerate(zip(images, maps, titles, strict=True)):
        plain = np.clip(np.asarray(image, "float64") / 255, 0, 1)
        axes = figure.add_subplot(grid[divmod(place, across)])
        gap = np.ones((len(plain), max(1, plain.shape[1] // 40), 3))
        axes.imshow(np.concatenate([plain, gap, overlay(plain, heat)], axis=1))
        axes.set_axis_off()
        axes.set_title(_cut_short(title), fontsize=10, loc="left", parse_math=False)
    if figure.axes:
        bar = figure.axes[min(across, len(images)) - 1].inset_axes((1.03, 0, 0.03, 1))
        scale = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), cax=bar, ticks=[0, 1])
        scale.ax.set_yticklabels(["nothing", "most"], fontsize=9)
    return figure


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a heat map over an image, which is grey there, so that all color is heat."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    return 0.45 * grey[..., None] + 0.55 * colormaps[HEAT](np.clip(heat, 0, 1))[..., :3]


def response_sheet(responses: Sequence[Response]) -> Figure:
    """Lay out what filters respond to most: by layer, a row for each filter, the strongest on the left."""
    layers = [list(group) for _, group in itertools.groupby(responses, key=lambda one: one.layer)]
    across = min(2, max(1, len(layers)))
    columns = max((len(one.crops) for one in responses), default=0)
    columns = max(4, columns)  # or there is no room for a layer's name
    deepest = max((len(group) for group in layers), default=1)
    rows = max(1, -(-len(layers) // across))
    figure = new_figure((0.95 * columns + 0.7) * across, (0.95 * deepest + 0.7) * rows)
    for number, group in enumerate(layers):
        axes = figure.add_subplot(rows, across, number + 1)
        for row, one in enumerate(group):
            for column, crop in enumerate(one.crops):
                axes.imshow(crop, extent=(column, column + 0.95, row + 0.95, row), interpolation="nearest")
        axes.set(xlim=(0, columns), ylim=(deepest, 0), xticks=[])
        axes.set_yticks(
            [row + 0.5 for row in range(len(group))], [str(one.filter) for one in group], fontsize=9
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(
            f"{_cut_short(group[0].layer)}\n{_seen(group[0])}", fontsize=10, loc="left", parse_math=False
        )
        axes.set_ylabel("filter", fontsize=9)
    return figure


def _seen(one: Response) -> str:
    """Say how much of an image a layer's places see, and how much of that is shown."""
    side = one.crops[0].shape[0]
    field = "the whole image" if math.isinf(one.field) else f"{one.field:.0f} px"
    return f"each place sees {field}" + (f"; {side} px shown" if side != one.field else "")


def _cut_short(text: str, most: int = 48) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
