"""Facts about the labels of splits for the report: labels per image, and bands of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from transfer.common.tasks import MULTI, REGRESSION
from transfer.images.label_forms import task_of
from transfer.images.split import Split

_MAX_BANDS = 12


def label_facts(splits: Mapping[str, Split]) -> dict[str, Any]:
    """Return the fields of a report on the labels in use; see `DataReport`."""
    task = task_of(splits["train"].labels)
    facts: dict[str, Any] = {"task": task, "images": {split: len(part) for split, part in splits.items()}}
    labels = np.concatenate([part.labels for part in splits.values()])
    if task == MULTI:
        facts["label_numbers"] = tuple(np.bincount(labels.sum(axis=1, dtype="int64")).tolist())
    if task == REGRESSION and len(labels):
        bands = _bands(labels)
        facts["bands"] = tuple(bands.tolist())
        facts["band_counts"] = {
            split: tuple(np.histogram(part.labels, bands)[0].tolist()) for split, part in splits.items()
        }
        facts["values"] = (float(labels.min()), float(np.median(labels)), float(labels.max()))
    return facts


def _bands(values: np.ndarray) -> np.ndarray:
    """Return the limits of bands of equal width, 1, 2 or 5 times a power of 10."""
    low, high = float(values.min()), float(values.max())
    least = (high - low) / (_MAX_BANDS - 1) or abs(low) or 1.0
    power = 10.0 ** np.floor(np.log10(least))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= least)
    first = np.floor(low / width)
    return np.arange(first, max(np.ceil(high / width), first + 1) + 1) * width
