"""The options of a data set: source, split, and form of its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transfer.common.errors import InputError, unknown
from transfer.images.decoding import RESIZES


@dataclass(frozen=True)
class DataConfig:
    """Check labelled images before anything is trained on them."""

    # Images: a folder with a sub-folder per class, a CSV or Parquet list, tfds:NAME, or 'emoji', which comes along.
    data: str = "emoji"
    # Where tensorflow_datasets keeps its data; by default its own place.
    data_dir: str | None = None
    # For tfds:NAME, in its own syntax: 'train[:1000]', or 'train=train[:1000],test=test'.
    tfds_split: str | None = None
    # Images for validation where the data have no such split: a share, below 1, or a count.
    val: int | float = 0.1
    # The same for the test set: 100 images tell the accuracy to within 10 points, 1000 to within 3.
    test: int | float = 0.2
    # Train on so many different images of each class, for experiments; by default on all.
    few_shot: int | None = None
    # Keep near-duplicates, one image saved in two forms, on one side of the split, as exact copies always are.
    near_duplicates: bool = True
    # Use the split of an earlier run: its split.csv.
    split: str | None = None
    # How images get another shape: stretch (nothing is lost), crop (the middle) or pad (with black).
    resize: str = "stretch"
    # Of the split, the order, the augmentation and the new weights.
    seed: int = 0
    # Stop at images that cannot be used, instead of skipping them.
    strict: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without looking at the data."""
        if self.seed < 0:
            raise InputError(f"Expected a seed of 0 or more. Received: {self.seed}.")
        if self.few_shot is not None and self.few_shot < 1:
            raise InputError(f"Expected few_shot of 1 or more. Received: {self.few_shot}.")
        if self.resize not in RESIZES:
            raise unknown("resize", self.resize, RESIZES)

    def load_options(self) -> dict[str, Any]:
        """Give the arguments of `load_data`, but for the data themselves."""
        return {
            "data_dir": self.data_dir,
            "tfds_split": self.tfds_split,
            "val": self.val,
            "test": self.test,
            "few_shot": self.few_shot,
            "near_duplicates": self.near_duplicates,
            "split_file": self.split,
            "resize": self.resize,
            "seed": self.seed,
            "strict": self.strict,
        }
