"""The figure of images with their predictions, and captions of images, for all tasks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from transfer.common.figures import Sheet
from transfer.common.text import number, shorten_all, wrapped
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.label_evaluation import LabelEvaluation

_MOST_LABELS = 3  # of an image in a caption


def prediction_sheet(evaluation: AnyEvaluation, images: Mapping[int, np.ndarray]) -> Figure:
    """Draw images with their predictions: correct ones in green, wrong ones in red with the truth."""
    columns, width, side = 6, 198, 180  # pixels
    captions = {place: wrapped(prediction_caption(evaluation, place), 27) for place in images}
    lines = max((text.count("\n") for text in captions.values()), default=0) + 1
    rows, height = max(1, -(-len(images) // columns)), side + 12 + 18 * max(2, lines)
    sheet = Sheet(width * columns, height * rows)
    for cell, (place, image) in enumerate(images.items()):
        row, column = divmod(cell, columns)
        high, wide = (max(1, side * length // max(image.shape[:2])) for length in image.shape[:2])
        top, text = height * (row + 1) - high - 4, captions[place]
        sheet.paste(image, width * column + (width - wide) // 2, top, wide, high)
        size = 9 * min(1.0, 22 / max(map(len, text.split("\n"))))  # a line holds about 22 letters
        color = "#1b7f3b" if _is_right(evaluation, place) else "#c1121f"
        sheet.write(
            width * (column + 0.5), top - 4, text, fontsize=size, color=color, ha="center", va="bottom"
        )
    return sheet.finish()


def _is_right(evaluation: AnyEvaluation, position: int) -> bool:
    """Return whether a prediction is right; a number is if its interval contains the true one."""
    if isinstance(evaluation, Evaluation):
        return bool(evaluation.predictions[position] == evaluation.labels[position])
    if isinstance(evaluation, LabelEvaluation):
        return bool((evaluation.predictions[position] == evaluation.labels[position]).all())
    width = evaluation.interval_width
    return width is None or bool(abs(evaluation.errors[position]) <= width / 2)


def prediction_caption(evaluation: AnyEvaluation, position: int) -> str:
    """Return the prediction for an image, and the truth if that differs."""
    truth, names = evaluation.labels[position], shorten_all(evaluation.class_names)
    if isinstance(evaluation, LabelEvaluation):
        chosen, right = evaluation.predictions[position], evaluation.probabilities[position]
        text = _listed([f"{names[k]} {right[k]:.0%}" for k in np.flatnonzero(chosen)])
        same = (chosen == truth).all()
        return text if same else f"{text}\n(is {_listed([names[k] for k in np.flatnonzero(truth)])})"
    if not isinstance(evaluation, Evaluation):
        return f"{number(evaluation.predictions[position])}\n(is {number(truth)})"
    guess = evaluation.predictions[position]
    text = f"{names[guess]} {evaluation.probabilities[position, guess]:.0%}"
    return text if guess == truth else f"{text}\n(is {names[truth]})"


def _listed(names: list[str]) -> str:
    """Return some of the labels of an image, with the number of the others."""
    more = f" +{len(names) - _MOST_LABELS}" if len(names) > _MOST_LABELS else ""
    return f"{', '.join(names[:_MOST_LABELS])}{more}" or "no label"


def mistake_caption(evaluation: AnyEvaluation, position: int, label: int) -> str:
    """Return what is wrong with the prediction of an image; `label` is the wrong label of several."""
    if not isinstance(evaluation, LabelEvaluation):
        return prediction_caption(evaluation, position)
    name, value = evaluation.class_names[label], evaluation.probabilities[position, label]
    wrong = "missed" if evaluation.labels[position, label] else "wrongly predicted"
    return f"{name} {value:.0%}: {wrong} (threshold {evaluation.limits[label]:.0%})"
