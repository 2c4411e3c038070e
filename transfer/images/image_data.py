"""The labeled images of a data set in three splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common import display
from transfer.common.errors import optional
from transfer.common.tasks import ORDINAL, REGRESSION, SINGLE
from transfer.images.data_config import DataConfig
from transfer.images.data_report import DataReport, class_table, contents
from transfer.images.label_forms import label_counts, label_texts
from transfer.images.splitting import Split, groups_of

if TYPE_CHECKING:
    import pandas

THUMBNAIL = (128, 128)
"""Height and width of thumbnails, in pixels."""


@dataclass(frozen=True)
class ImageData:
    """Labeled images in three disjoint splits; `load_data` makes it.

    Attributes:
        name: Short name of the data, for titles and folders.
        class_names: Names of the classes, in the order of the labels; saved with every model.
        train: Training images.
        val: Validation images, for early stopping and for choosing a head.
        test: Test images, only for measuring the accuracy.
        report: Result of the data check.
        image_size: Requested height and width in pixels; None for the model's own.
        options: Source and options of `load_data`; None for other data.
        drawn_val: Whether `load_data` drew the validation images from the training images.
        drawn_test: Whether `load_data` drew the test images from the training images.
        task: What the labels are: `"single"` (one class per image), `"multi"` (any number of labels per image),
            `"ordinal"` (`class_names` has the lowest class first) or `"regression"` (a number per image; `class_names`
            has one name, that of the number).

    Example:
        >>> from transfer.images.datasets import load_data
        >>> data = load_data("emoji", seed=0)
        >>> len(data.train), len(data.val), len(data.test)
        (343, 51, 100)
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    report: DataReport
    image_size: tuple[int, int] | None = None
    options: DataConfig | None = None
    drawn_val: bool = False
    drawn_test: bool = False
    task: str = SINGLE

    @property
    def ordered(self) -> bool:
        """Whether the classes have an order."""
        return self.task == ORDINAL

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels; 1 for regression."""
        return len(self.class_names)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of each image that cannot be used."""
        return self.report.skipped

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def __repr__(self) -> str:
        counts = f"{len(self.train):,} training, {len(self.val):,} validation, {len(self.test):,} test images"
        return display.one_line(
            self, f"{display.quoted(self.name)}: {contents(self.task, self.class_names)}; {counts}"
        )

    def _repr_html_(self) -> str:
        """Return the number of images by class and split, for a notebook."""
        counts = {
            name: label_counts(part.labels, self.num_classes).tolist() for name, part in self.splits.items()
        }
        images = {name: len(part) for name, part in self.splits.items()}
        header = f"{self.name}: {contents(self.task, self.class_names)}"
        return display.to_html(class_table(header, self.class_names, counts, images))

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with one row per image: `name`, `label` and `split`, and `group` if there are any.

        Raises:
            InputError: pandas is not installed.
        """
        parts = self.splits
        columns: dict[str, Any] = {
            "name": [name for part in parts.values() for name in part.names],
            "label": [label for part in parts.values() for label in self._label_column(part.labels)],
            "split": [name for name, part in parts.items() for _ in range(len(part))],
        }
        if any(len(part.groups) for part in parts.values()):
            columns["group"] = [group for part in parts.values() for group in groups_of(part)]
        return display.data_frame(columns)

    def _label_column(self, labels: np.ndarray) -> list[Any]:
        """Return the label of each image: a class name, class names with bars between them, or a number."""
        return labels.tolist() if self.task == REGRESSION else label_texts(labels, self.class_names)

    def thumbnail(self, name: str) -> np.ndarray | None:
        """Return an image by its name as uint8 of shape (128, 128, 3), or None if there is none."""
        for part in self.splits.values():
            if name in part.names:
                with optional(f"the thumbnail of {name}"):
                    return part.image(list(part.names).index(name), THUMBNAIL)
        return None
