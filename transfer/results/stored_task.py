"""Write and read the task of a run and the thresholds of its labels, which travel with the model."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, ORDINAL, SINGLE, TASK

_ENTRY = "task.json"
_MAX_BYTES = 2**20


def add_task(path: Path, task: str, thresholds: Sequence[float] | None) -> None:
    """Add the task and the thresholds of its labels to a zip-based model file; Keras ignores the extra entry."""
    values = {"task": task, **({} if thresholds is None else {"thresholds": [*thresholds]})}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_ENTRY, json.dumps(values))


def read_task(metrics: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the metrics of a run, with the task and the thresholds in its model file if the metrics have none."""
    if "task" in metrics or not zipfile.is_zipfile(file):
        return dict(metrics)
    with zipfile.ZipFile(file) as archive:
        if _ENTRY not in archive.namelist() or archive.getinfo(_ENTRY).file_size > _MAX_BYTES:
            return dict(metrics)
        try:
            values = json.loads(archive.read(_ENTRY))
        except ValueError:
            values = None
    if not isinstance(values, dict):
        raise InputError(f"Expected a JSON object as {_ENTRY} in {file}. Restore the file.")
    return {**metrics, **values}


def task_in(values: Mapping[str, Any], place: Path) -> str:
    """Return the task of a run; those of earlier versions do not state it, and have single or ordered classes."""
    task = values.get("task", ORDINAL if values.get("decision_rule") else SINGLE)
    if not isinstance(task, str) or task not in TASK:
        raise InputError(f"Expected one of the tasks {', '.join(TASK)} in {place}. Received: {task!r}.")
    return task


def thresholds_in(values: Mapping[str, Any], count: int, place: Path) -> np.ndarray | None:
    """Return the thresholds of the labels of a run; None for other tasks."""
    if task_in(values, place) != MULTI:
        return None
    given = values.get("thresholds", [0.5] * count)
    try:
        thresholds = np.array(given, "float64")
    except (TypeError, ValueError):
        thresholds = np.zeros(0)
    if thresholds.shape != (count,) or not ((thresholds >= 0) & (thresholds <= 1)).all():
        raise InputError(
            f"Expected {count} thresholds from 0 to 1 in {place}, one for each label. Received: {str(given)[:80]}."
        )
    return thresholds
