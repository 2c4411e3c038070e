"""The options of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError, unknown
from transfer.common.tasks import TASKS
from transfer.common.whole_numbers import at_least
from transfer.images.decoding import RESIZES

IN_MEMORY = "arrays in memory"
"""The source in the options of a run that was trained on arrays or data sets in Python."""


@dataclass(frozen=True)
class DataConfig:
    """Options of a data set: its source, its splits, and the form of its images."""

    # Images: a folder with a sub-folder per class, a CSV or Parquet list, tfds:NAME, or 'emoji' (included).
    data: str = "emoji"
    # Folder of prepared tensorflow_datasets; by default the folder that TFDS uses.
    data_dir: str | None = None
    # Splits of tfds:NAME in TFDS syntax: 'train[:1000]', or 'train=train[:1000],test=test'.
    tfds_split: str | None = None
    # Column of the paths in a list. Columns with common names, such as image_id and patient_id, need no option.
    path_column: str | None = None
    # Column of the labels in a list, or comma-separated names of columns of 0 and 1, one per class.
    label_column: str | None = None
    # Column of the splits in a list, of words or of a flag such as is_valid; 'none' draws a split.
    split_column: str | None = None
    # Column of the groups in a list, such as patients, which stay in one split; 'none' for no groups.
    group_column: str | None = None
    # Task: single (one class per image), multi (any number of labels per image), ordinal (the classes have an order,
    # such as grades) or regression (a number per image). auto is multi for lists with several labels, otherwise single.
    task: str = "auto"
    # Order of the classes with the task ordinal, lowest first, with commas. Default: by the numbers in their names.
    class_order: str | None = None
    # Validation set, if the data have none: a fraction below 1 or a number of images.
    val: int | float = 0.1
    # Test set, if the data have none: a fraction below 1 or a number of images. 100 images measure the accuracy to
    # within 10 points, 1000 to within 3.
    test: int | float = 0.2
    # Training images per class, all different, for experiments with little data; by default all.
    few_shot: int | None = None
    # Keep near-duplicates (one image saved in two forms) in one split, as exact duplicates always are.
    near_duplicates: bool = True
    # Split file (split.csv) of an earlier run, to use the same split again.
    split: str | None = None
    # Resizing to the input shape: stretch (keeps all content), crop (the center) or pad (with black).
    resize: str = "stretch"
    # Random seed for splitting, shuffling, augmentation and initialization.
    seed: int = 0
    # Stop at images that cannot be used, instead of skipping them.
    strict: bool = False

    def __post_init__(self) -> None:
        """Raise an error for values that no data set allows."""
        if not at_least(0, self.seed):
            raise InputError(f"Expected a seed of 0 or more. Received: {self.seed!r}. Use a whole number.")
        if self.few_shot is not None and not at_least(1, self.few_shot):
            raise InputError(
                f"Expected few_shot of 1 image per class or more. Received: {self.few_shot!r}. Use a whole number."
            )
        if self.resize not in RESIZES:
            raise unknown("resize", self.resize, RESIZES)
        if self.task not in TASKS:
            raise unknown("task", self.task, TASKS)

    def load_options(self) -> dict[str, Any]:
        """Return the arguments of `load_data`, except for its source."""
        options = {field.name: getattr(self, field.name) for field in fields(DataConfig)}
        del options["data"]
        return {"split_file": options.pop("split"), **options}


def data_config(source: str | None, **given: Any) -> DataConfig:
    """Return the arguments of `load_data` as options that YAML can hold; no source means arrays."""
    given["split"] = given.pop("split_file")
    return DataConfig(
        IN_MEMORY if source is None else source, **{name: _plain(value) for name, value in given.items()}
    )


def _plain(value: Any) -> Any:
    """Return a value as text or as a number of Python."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, Path) else value.item() if hasattr(value, "item") else value
