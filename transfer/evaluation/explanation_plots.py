"""Figures of explanations: heat maps, and image parts with the strongest filter responses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from transfer.common.figures import Sheet
from transfer.common.text import shorten, wrapped
from transfer.evaluation.explanations import Response

HEAT = "inferno"
"""Color map of heat maps. It is perceptually uniform, also when printed in grayscale."""

_SIDE, _CELL = 230, 100
"""Width of an image with a heat map, and of a crop with its margin, in pixels."""


def heat_sheet(images: np.ndarray, maps: np.ndarray, titles: Sequence[str], *, note: str = "") -> Figure:
    """Draw each image next to a copy with its heat map, under a note on all of them."""
    columns = min(3, max(1, len(images)))
    rows = max(1, -(-len(images) // columns))
    high = round(_SIDE * images.shape[1] / images.shape[2]) if len(images) else _SIDE
    captions = [wrapped(shorten(title, 120), 54) for title in titles]
    width, height = (
        2 * _SIDE + 36,
        high + 16 + 19 * (1 + max((one.count("\n") for one in captions), default=0)),
    )
    note = wrapped(note, columns * width // 8)
    above = 4 + 20 * len(note.splitlines())
    sheet = Sheet(columns * width + 60, rows * height + above)
    for place, (image, heat, caption) in enumerate(zip(images, maps, captions, strict=True)):
        row, column = divmod(place, columns)
        left, top = column * width + 10, above + (row + 1) * height - high - 4
        plain = np.clip(np.asarray(image, "float64") / 255, 0, 1)
        for shown, shift in ((plain, 0), (overlay(plain, heat), _SIDE + 6)):
            sheet.paste(np.round(255 * shown).astype("uint8"), left + shift, top, _SIDE, high)
        sheet.write(left, top - 5, caption, fontsize=10, va="bottom")
        if place == columns - 1:
            _draw_scale(sheet, left + width - 20, top, high)
    if note:
        sheet.figure.suptitle(note, fontsize=10, x=0.01, y=0.995, ha="left", parse_math=False)
    return sheet.finish()


def _draw_scale(sheet: Sheet, left: int, top: int, height: int) -> None:
    """Draw the color scale of heat maps, from the lowest value to the highest."""
    colors = colormaps[HEAT](np.linspace(1, 0, height))[:, None, :3]
    sheet.paste(np.round(255 * colors).astype("uint8"), left, top, 14, height)
    for text, place in (("max", top), ("none", top + height)):
        sheet.write(left + 19, place, text, fontsize=9, va="center")


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
    width, height = _CELL * columns + 70, _CELL * deepest + 66
    sheet = Sheet(width * panels, height * max(1, -(-len(layers) // panels)))
    for number, group in enumerate(layers):
        left, top = width * (number % panels) + 60, height * (number // panels) + 48
        for row, response in enumerate(group):
            for column, crop in enumerate(response.crops):
                sheet.paste(crop, left + _CELL * column, top + _CELL * row, _CELL - 4, _CELL - 4)
            middle = top + _CELL * (row + 0.5)
            sheet.write(left - 6, middle, str(response.filter), fontsize=9, ha="right", va="center")
        title = f"{shorten(group[0].layer, 40)}\n{_receptive_field(group[0])}"
        sheet.write(left, top - 6, title, fontsize=10, va="bottom")
        middle = top + _CELL * len(group) / 2
        sheet.write(left - 48, middle, "filter", fontsize=9, rotation=90, ha="center", va="center")
    return sheet.finish()


def _receptive_field(response: Response) -> str:
    """Return the size of a layer's receptive field, and of the crops if that differs."""
    side, field = response.crops[0].shape[0], response.field
    text = "receptive field: " + ("the whole image" if math.isinf(field) else f"{field:.0f} px")
    return text + (f", crops: {side} px" if side != field else "")
