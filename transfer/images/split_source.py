"""Read splits of loaded data again, such as `data.train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer.common.errors import InputError
from transfer.images.label_forms import task_of
from transfer.images.splitting import SourceData, Split


def holds_splits(source: Any) -> bool:
    """Return whether a source is a split of loaded data, or several by name."""
    parts = source.values() if isinstance(source, Mapping) else [source]
    return any(isinstance(part, Split) for part in parts)


def read_splits(source: Any, class_names: Sequence[str] | None) -> SourceData:
    """Return splits of loaded data as a source."""
    parts = dict(source) if isinstance(source, Mapping) else {"train": source}
    for part in parts.values():
        if not isinstance(part, Split):
            raise InputError(
                f"Expected splits of loaded data only, such as data.train and data.val. Received one together with: "
                f"{type(part).__name__}."
            )
    task = task_of(parts.get("train", next(iter(parts.values()))).labels)
    count = max(_count(part.labels) for part in parts.values())
    names = class_names or next((part.class_names for part in parts.values() if part.class_names), ())
    return SourceData(parts, [*map(str, names or range(count))], task=task)


def _count(labels: np.ndarray) -> int:
    """Return the smallest number of classes that labels may have."""
    if labels.ndim == 2:
        return int(labels.shape[1])
    return 1 if labels.dtype.kind == "f" else int(labels.max(initial=-1)) + 1
