"""Strata of images for splits and folds: classes, bands of numbers, and iterative stratification of several labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BANDS = 10
"""Number of bands of equally many images into which the numbers of a regression are divided, with enough images."""

_PER_BAND = 10  # images


def strata_of(labels: np.ndarray) -> np.ndarray:
    """Return the class of each image, or the band of its number, as int64 from 0."""
    if labels.dtype.kind != "f":
        return labels
    bands = int(np.clip(len(labels) // _PER_BAND, 1, BANDS))
    edges = np.quantile(labels, np.arange(1, bands) / bands) if len(labels) else np.zeros(0)
    return np.unique(np.searchsorted(edges, labels, side="right"), return_inverse=True)[1].astype("int64")


def distribute(
    labels: np.ndarray,
    units: np.ndarray,
    fractions: Sequence[float],
    random: np.random.Generator,
    *,
    keep: bool = False,
) -> np.ndarray:
    """Assign each image a part so that each label has about these fractions; images of a unit stay together."""
    # Iterative stratification (Sechidis et al., 2011, doi:10.1007/978-3-642-23808-6_10): the label with the fewest
    # images left comes first, and each unit goes to the part that lacks this label most.
    every = np.concatenate(
        [labels > 0, ~labels.any(axis=1, keepdims=True)], axis=1
    )  # also images without labels
    amounts = np.zeros((units.max() + 1, every.shape[1]))
    np.add.at(amounts, units, every)
    lacking = np.outer(fractions, amounts.sum(axis=0))
    part_of, count = np.full(len(amounts), -1), len(fractions)
    while (open_units := np.flatnonzero(part_of < 0)).size:
        left = amounts[open_units].sum(axis=0)
        label = int(np.argmin(np.where(left > 0, left, np.inf)))
        members = open_units[amounts[open_units, label] > 0]
        for unit in random.permutation(members):
            order = np.lexsort((random.random(count), -lacking.sum(axis=1), -lacking[:, label]))
            part_of[unit] = order[0]
            lacking[order[0]] -= amounts[unit]
    for label in range(labels.shape[1]) if keep else ():  # the first part has an image of each label
        members = np.flatnonzero(amounts[:, label])
        if len(members) and (part_of[members] > 0).all():
            part_of[members[amounts[members].sum(axis=1).argmin()]] = 0
    return part_of[units]
