"""The folds of a cross-validation: data whose images are each tested once, with the rules of a drawn split."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from transfer.common.text import plural
from transfer.images.image_data import ImageData
from transfer.images.label_facts import label_facts
from transfer.images.label_forms import label_counts
from transfer.images.splitting import assign_folds, concatenate, stratified_split

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FoldedData:
    """Data in folds. Validation and test images that `load_data` drew are among the training images again."""

    # `val` and `test` hold the splits of the source, or no images.
    data: ImageData
    # Fold of each training image from 0; -1 for images that are in the training part of every fold.
    folds: np.ndarray
    # Number of each training image, equal for duplicates.
    duplicate_ids: np.ndarray
    seed: int

    @property
    def count(self) -> int:
        """The number of folds."""
        return int(self.folds.max()) + 1

    @property
    def tested(self) -> np.ndarray:
        """Positions of the images that a fold tests."""
        return np.flatnonzero(self.folds >= 0)

    def fold(self, number: int, val: float | int = 0) -> ImageData:
        """Return the data of a fold: its images are the test images, and the others train."""
        data = replace(self.data, test=self.data.train.take(np.flatnonzero(self.folds == number)))
        return self._with_training(data, np.flatnonzero(self.folds != number), val)

    def final(self, val: float | int = 0) -> ImageData:
        """Return the data of the final model, which trains on the images of all folds."""
        data = self._with_training(self.data, np.arange(len(self.folds)), val)
        counts = {name: label_counts(part.labels, data.num_classes) for name, part in data.splits.items()}
        used = {name: tuple(count.tolist()) for name, count in counts.items()}
        return replace(data, report=replace(data.report, counts=used, **label_facts(data.splits)))

    def _with_training(self, data: ImageData, positions: np.ndarray, val: float | int) -> ImageData:
        """Return data with these training images; draw validation images from them if the source has none."""
        train = self.data.train.take(positions)
        if not val or not data.drawn_val:
            return replace(data, train=train)
        ids = self.duplicate_ids[positions]
        drawn = stratified_split(train, ids, {"val": val}, seed=self.seed, warn=False)
        return replace(data, train=train.take(drawn["train"]), val=train.take(drawn["val"]))


def fold_data(data: ImageData, count: int, *, seed: int) -> FoldedData:
    """Assign all images to folds, except those of validation and test sets that belong to the source."""
    drawn = [
        part for part, is_drawn in ((data.val, data.drawn_val), (data.test, data.drawn_test)) if is_drawn
    ]
    pool = concatenate([data.train, *drawn])
    pool = pool.take(
        np.array(sorted(range(len(pool)), key=pool.names.__getitem__))
    )  # in no order of a drawn split
    none = data.train.take([])
    val, test = none if data.drawn_val else data.val, none if data.drawn_test else data.test
    data = replace(data, train=pool, val=val, test=test)
    number = {name: i for i, same in enumerate(data.report.duplicates) for name in same.names}
    ids = np.array([number.get(name, len(number) + i) for i, name in enumerate(pool.names)], "int64")
    folded = FoldedData(data, assign_folds(pool, ids, count, seed=seed), ids, seed)
    if untested := len(pool) - len(folded.tested):
        log.warning(
            "%s used for training only: the labels conflict, or the class has too few different images for a fold.",
            f"{plural(untested, 'image')} {'is' if untested == 1 else 'are'}",
        )
    return folded
