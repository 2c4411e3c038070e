"""The evaluations of all tasks."""

from __future__ import annotations

from typing import Any

from transfer.common.errors import InputError
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.value_evaluation import ValueEvaluation

AnyEvaluation = Evaluation | LabelEvaluation | ValueEvaluation


def check_any_evaluation(value: Any, call: str) -> None:
    """Raise unless an argument comes from `evaluate`; `call` shows the order of arguments."""
    if not isinstance(value, AnyEvaluation):
        raise InputError(
            f"Expected an evaluation in {call}. Received: {'None' if value is None else type(value).__name__}. Make "
            "one first: evaluation = transfer.evaluate(model, data)."
        )
