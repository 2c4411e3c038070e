"""Predictions as lines of text, as cells of CSV and as JSON objects, for all tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from transfer.common.tasks import MULTI, ORDINAL, REGRESSION
from transfer.common.text import number
from transfer.results.prediction import NO_LABEL, Prediction

Cells = Callable[[Prediction], Sequence[str]]

_PREDICTED = {ORDINAL: ("predicted", "expected_rank"), MULTI: ("predicted",)}
"""The last columns of CSV by task: what the rule or the thresholds decide."""


def line(prediction: Prediction, top: int, *, abstain: bool) -> str:
    """Return a prediction as a line of text; empty for an image that could not be read."""
    if prediction.problem:
        return ""
    if prediction.value is not None:
        cells = [number(prediction.value)]
        if prediction.interval is not None:
            cells.append("(interval {} to {})".format(*map(number, prediction.interval)))
    else:
        shown = prediction.top(len(prediction.prediction_set or ()) or top)
        cells = [f"{name} {value:.1%}" for name, value in shown]
    if prediction.expected_rank is not None:
        cells.insert(0, f"predicted {prediction.label}, expected rank {prediction.expected_rank:.2f}")
    if prediction.task == MULTI:
        cells.insert(0, f"predicted {prediction.label or NO_LABEL}:")
    if abstain and prediction.known is False:
        cells.insert(0, "unknown")
    return "  ".join([prediction.name, *cells]) + "\n"


def csv_columns(top: int, *, task: str, abstain: bool, sets: bool) -> tuple[list[str], Cells]:
    """Return the header of CSV, and a function that returns the cells of a prediction."""
    header, named = ["path"], _PREDICTED.get(task, ())
    if task == REGRESSION:
        header += ["value", *(["low", "high"] if sets else [])]
    else:
        header += [f"{name}{i + 1}" for i in range(top) for name in ("class", "probability")]
    header += ["known"] if abstain else []
    header += ["prediction_set"] if sets and task != REGRESSION else []

    def cells(prediction: Prediction) -> list[str]:
        row = [
            prediction.name,
            *(_numbers(prediction, sets) if task == REGRESSION else _classes(prediction, top)),
        ]
        if abstain:
            row.append("" if prediction.known is None else str(prediction.known).lower())
        if sets and task != REGRESSION:  # names may contain any separator, so that this cell is JSON
            found = prediction.prediction_set
            row.append("" if found is None else json.dumps(found, ensure_ascii=False))
        if named:
            row.append(prediction.label or "")
        if task == ORDINAL:
            rank = prediction.expected_rank
            row.append("" if rank is None else f"{rank:.4f}")
        return row

    return [*header, *named], cells


def _classes(prediction: Prediction, top: int) -> list[str]:
    """Return the cells of the most probable classes."""
    cells = [cell for name, value in prediction.top(top) for cell in (name, f"{value:.6f}")]
    return cells + [""] * (2 * top - len(cells))


def _numbers(prediction: Prediction, sets: bool) -> list[str]:
    """Return the cells of a number and its interval."""
    values = [prediction.value, *((prediction.interval or (None, None)) if sets else ())]
    return ["" if value is None else f"{value:.7g}" for value in values]


def json_row(prediction: Prediction, top: int, *, abstain: bool) -> dict[str, Any]:
    """Return a prediction as a JSON object."""
    row: dict[str, Any] = {"path": prediction.name}
    if prediction.task == REGRESSION:
        row["value"] = _rounded(prediction.value)
        row |= {"interval": [*map(_rounded, prediction.interval)]} if prediction.interval else {}
    else:
        classes = prediction.top(top)
        row["classes"] = [{"class": name, "probability": round(value, 6)} for name, value in classes]
    if prediction.task == MULTI and not prediction.problem:
        row["predicted"] = list(prediction.labels)
    if abstain and prediction.distance is not None:
        row |= {"known": prediction.known, "distance": round(prediction.distance, 6)}
    if prediction.prediction_set is not None:
        row["prediction_set"] = list(prediction.prediction_set)
    if prediction.expected_rank is not None:
        row |= {"predicted": prediction.label, "expected_rank": round(prediction.expected_rank, 4)}
    return row | ({"problem": prediction.problem} if prediction.problem else {})


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")
