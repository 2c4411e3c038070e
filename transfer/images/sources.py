"""Read sources of any kind: folders, lists, tensorflow_datasets, arrays and splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.tasks import MULTI, REGRESSION
from transfer.images.array_source import read_arrays
from transfer.images.columns import KINDS, Given
from transfer.images.folder_scan import printable
from transfer.images.folder_source import find_source, read_folder
from transfer.images.image_data import ImageData
from transfer.images.label_forms import as_task
from transfer.images.manifest import read_manifest
from transfer.images.split_source import holds_splits, read_splits
from transfer.images.splitting import SourceData


def read_source(
    source: Any,
    class_names: Sequence[str] | None,
    data_dir: str | Path | None,
    tfds_split: str | Mapping[str, str] | None,
    download: bool,
    columns: Given,
    task: str,
    *,
    model_labels: Sequence[str] | None = None,
) -> tuple[str, SourceData]:
    """Return the name and the contents of a source of any kind; `model_labels` are those of a model to test."""
    name, data = _read(source, class_names, data_dir, tfds_split, download, columns, task, model_labels)
    return name, as_task(data, task)


def _read(
    source: Any,
    class_names: Sequence[str] | None,
    data_dir: str | Path | None,
    tfds_split: str | Mapping[str, str] | None,
    download: bool,
    columns: Given,
    task: str,
    model_labels: Sequence[str] | None,
) -> tuple[str, SourceData]:
    if isinstance(source, ImageData):
        raise InputError("Expected images that are not loaded yet. Received: ImageData. Use it as it is.")
    text = as_text(source)
    if tfds_split is not None and not (text and text.startswith("tfds:")):
        raise InputError(
            f"Expected tfds_split only with tfds:NAME. Received it with {text or 'arrays'!r}. Leave it out."
        )
    is_list = bool(text) and not str(text).startswith("tfds:") and not find_source(str(text)).is_dir()
    if not (is_list or columns.optional) and (
        named := [f"{kind}_column" for kind in KINDS if getattr(columns, kind) is not None]
    ):
        raise InputError(
            f"Expected {named[0]} only with a CSV or Parquet list. Received it with {text or 'arrays'!r}. Leave it out."
        )
    if text is None and holds_splits(source):
        return "split", read_splits(source, class_names)
    if text is None:
        return "arrays", read_arrays(source, class_names, task)
    if class_names is not None:
        raise InputError(
            f"Expected class_names only with arrays. Received them with {text!r}, which has its own. Leave them out."
        )
    if text.startswith("tfds:"):
        from transfer.images.tfds_source import read_tfds

        options: dict[str, Any] = {"data_dir": data_dir, "download": download, "split": tfds_split}
        return text[5:], read_tfds(text[5:], **options, task=task)
    path = find_source(text)
    name = printable(path.resolve().name)
    if path.is_dir():
        return name, read_folder(path)
    for_test = model_labels is not None
    return Path(name).stem, read_manifest(
        path, columns, task=task, for_test=for_test, known_labels=model_labels or ()
    )


def as_text(source: Any) -> str | None:
    """Return a path or a name as text; None for arrays."""
    return os.fsdecode(source) if isinstance(source, str | bytes | os.PathLike) else None


def numbered(name: str, data: SourceData, labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return labels as positions in, or columns of, the class names of a model; raise for unknown classes."""
    if data.task == REGRESSION:
        return labels
    index = {label: position for position, label in enumerate(class_names)}
    for label in data.class_names:
        if label not in index:
            raise unknown("class", label, class_names, hint=f"{name!r} has this class, the model does not.")
    positions = np.array([index[label] for label in data.class_names], "int64")
    if data.task != MULTI:
        return positions[labels]
    columns = np.zeros((len(labels), len(class_names)), "int8")
    columns[:, positions] = labels
    return columns
