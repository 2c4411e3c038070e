"""The table of an advice in the report of a run."""

from __future__ import annotations

from typing import Any

from transfer.cases.policies import POLICIES, Case
from transfer.common.tasks import TASK, score_text
from transfer.common.text import format_duration
from transfer.evaluation.metrics import percent_range


def advice_table(advice: dict[str, Any]) -> dict[str, Any]:
    """Return the header and the rows: whether each is recommended, its name, and its cells."""
    return _of_heads(advice) if "heads" in advice else _of_cases(advice)


def _of_cases(advice: dict[str, Any]) -> dict[str, Any]:
    rows = [
        (
            one["case"] == advice["case"] and one["cut"] == advice["cut"],
            f"{POLICIES[Case.parse(one['case'])].number} {one['case']}",
            (
                one["action"],
                f"{one['expected_accuracy']:.1%}",
                percent_range(one["interval"]),
                format_duration(one["seconds"]),
            ),
        )
        for one in advice["cases"]
    ]
    return {
        "header": ("case", "training", "estimated accuracy", "90% interval", "estimated time"),
        "rows": rows,
    }


def _of_heads(advice: dict[str, Any]) -> dict[str, Any]:
    task = TASK[advice["task"]]
    rows = [
        (
            ",".join(one["cuts"]) == advice["cut"],
            one["name"],
            (
                score_text(task.metric, one["score"]),
                score_text(task.metric, one["standard_error"]),
                f"{one['loss']:.4g}",
            ),
        )
        for one in advice["heads"]
    ]
    return {"header": ("head on", task.metric_name, "standard error", "loss"), "rows": rows}
