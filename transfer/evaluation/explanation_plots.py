"""Figures of explanations: heat maps, and image parts with the strongest filter responses."""

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
from transfer.common.text import shorten
from transfer.evaluation.explanations import Response

HEAT = "inferno"
"""Color map of heat maps. It is perceptually uniform, also when printed in grayscale."""


def heat_sheet(images: np.ndarray, maps: np.ndarray, titles: Sequence[str], *, note: str = "") -> Figure:
    """Draw each image next to a copy with its heat map, under a note on all of them."""
    columns = min(3, max(1, len(images)))
    rows = max(1, -(-len(images) // columns))
    height = 2.1 * (images.shape[1] / images.shape[2] if len(images) else 1)
    figure = new_figure(4.5 * columns + 0.8, (height + 0.4) * rows)
    grid = figure.add_gridspec(rows, columns, wspace=0.06)
    for index, (image, heat, title) in enumerate(zip(images, maps, titles, strict=True)):
        plain = np.clip(np.asarray(image, "float64") / 255, 0, 1)
        axes = figure.add_subplot(grid[divmod(index, columns)])
        gap = np.ones((len(plain), max(1, plain.shape[1] // 40), 3))
        axes.imshow(np.concatenate([plain, gap, overlay(plain, heat)], axis=1))
        axes.set_axis_off()
        axes.set_title(shorten(title, 48), fontsize=10, loc="left", parse_math=False)
    if figure.axes:
        bar = figure.axes[min(columns, len(images)) - 1].inset_axes((1.03, 0, 0.03, 1))
        scale = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), cax=bar, ticks=[0, 1])
        scale.ax.set_yticklabels(["none", "max"], fontsize=9)
    if note:
        figure.suptitle(note, fontsize=10, x=0.01, ha="left", parse_math=False)
    return figure


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend a heat map with a grayscale copy of an image, so that all color comes from the heat map."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    return 0.45 * grey[..., None] + 0.55 * colormaps[HEAT](np.clip(heat, 0, 1))[..., :3]


def response_sheet(responses: Sequence[Response]) -> Figure:
    """Draw the strongest responses: a panel per layer, a row per filter, the strongest on the left."""
    layers = [list(group) for _, group in itertools.groupby(responses, key=lambda response: response.layer)]
    panels = min(2, max(1, len(layers)))
    # Use four columns or more, so that the name of a layer fits.
    columns = max(4, max((len(response.crops) for response in responses), default=0))
    deepest = max((len(group) for group in layers), default=1)
    rows = max(1, -(-len(layers) // panels))
    figure = new_figure((0.95 * columns + 0.7) * panels, (0.95 * deepest + 0.7) * rows)
    for number, group in enumerate(layers):
        axes = figure.add_subplot(rows, panels, number + 1)
        for row, response in enumerate(group):
            for column, crop in enumerate(response.crops):
                axes.imshow(crop, extent=(column, column + 0.95, row + 0.95, row), interpolation="nearest")
        axes.set(xlim=(0, columns), ylim=(deepest, 0), xticks=[])
        ticks = [row + 0.5 for row in range(len(group))]
        axes.set_yticks(ticks, [str(response.filter) for response in group], fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        title = f"{shorten(group[0].layer, 48)}\n{_receptive_field(group[0])}"
        axes.set_title(title, fontsize=10, loc="left", parse_math=False)
        axes.set_ylabel("filter", fontsize=9)
    return figure


def _receptive_field(response: Response) -> str:
    """Return the size of a layer's receptive field, and of the crops if that differs."""
    side, field = response.crops[0].shape[0], response.field
    text = "receptive field: " + ("the whole image" if math.isinf(field) else f"{field:.0f} px")
    return text + (f", crops: {side} px" if side != field else "")
