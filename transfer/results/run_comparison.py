"""Fill in the page that compares several runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transfer.common.bootstrap import score_interval
from transfer.common.errors import InputError
from transfer.common.pages import data_uri, render
from transfer.common.tasks import ORDINAL, REGRESSION, SINGLE, TASK
from transfer.common.text import format_duration
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.metrics import mcnemar_test
from transfer.results.evaluation_texts import alt_text, caption, score_rows, task_of_evaluation
from transfer.results.run_records import RunRecord


def comparison_page(records: Sequence[RunRecord]) -> str:
    """Return a page that compares several runs as HTML."""
    if len(records) < 2:
        raise InputError(f"Expected two runs or more to compare. Received: {len(records)}.")
    if len(tasks := {SINGLE if record.task == ORDINAL else record.task for record in records}) > 1:
        raise InputError(
            f"Expected runs of the same task to compare. Received: {', '.join(sorted(tasks))}. Compare fewer runs."
        )
    names = [record.name for record in records]
    names = [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
    tested = [record.evaluation for record in records if record.evaluation]
    best = max((one.score for one in tested), default=None)
    options = [dataclasses.asdict(record.config) for record in records]
    differing = [key for key in options[0] if len({repr(one[key]) for one in options}) > 1]
    figures = []
    for figure in ("confusion_matrix", "labels", "values", "learning_curves", "network"):
        shown = [
            (data_uri(r.figures[figure]), alt_text(figure, r.evaluation, r.lead), name)
            for r, name in zip(records, names, strict=True)
            if figure in r.figures
        ]
        figures.append((caption(figure, records[0].task), shown))
    part = render(
        "comparison.html",
        names=names,
        rows=_compared(records),
        best=[r.evaluation is not None and r.evaluation.score == best for r in records],
        options=[(key, [one[key] for one in options]) for key in differing],
        pairs=_pairs(records, names),
        figures=figures,
    )
    return str(render("page.html", title="Comparison of runs", parts=[part]))


def _compared(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table that compares runs: a label, and a value for each run."""

    def cut(record: RunRecord) -> str:
        layers = len(record.metrics.get("cuts") or ())
        return f"{layers} layers" if layers > 1 else str(record.metrics["cut"])

    rows: dict[str, Callable[[RunRecord], str]] = {
        "cross-validated accuracy": lambda r: (
            f"{r.cross_validation.accuracy:.1%}" if r.cross_validation else "no folds"
        ),
        "network": lambda r: r.network,
        "case": lambda r: str(r.metrics["case"]),
        "cut": cut,
        "training images": lambda r: f"{r.metrics['num_train']:,}",
        "test images": lambda r: f"{r.metrics['num_test']:,}",
        "total time": lambda r: format_duration(r.metrics["seconds_total"]),
        "peak memory": lambda r: f"{r.metrics.get('peak_memory_mb') or float('nan'):,.0f} MB",
    }
    if not any(record.cross_validation for record in records):
        del rows["cross-validated accuracy"]
    others = [(label, [text(record) for record in records]) for label, text in rows.items()]
    return [*_scores(records), *others]


def _scores(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the rows of the metrics on the test images."""
    scores = [score_rows(record.evaluation) if record.evaluation else None for record in records]
    names = list(dict.fromkeys(name for one in scores for name in one or ())) or ["accuracy"]
    headers = [f"test {name}" if k == 0 else name for k, name in enumerate(names)]
    texts = [["no test images" if one is None else one.get(name, "") for one in scores] for name in names]
    return list(zip(headers, texts, strict=True))


def _pairs(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Compare the best run with each other run on the test images that both share."""
    tested = [(r.evaluation, name) for r, name in zip(records, names, strict=True) if r.evaluation]
    if len(tested) < 2:
        return []
    first, first_name = max(tested, key=lambda pair: pair[0].score)
    return [_pair(first, other, (first_name, name)) for other, name in tested if other is not first]


def _pair(first: AnyEvaluation, other: AnyEvaluation, names: tuple[str, str]) -> str:
    """Compare two runs on the test images that both share, as a sentence."""
    places = {image: i for i, image in enumerate(other.names)}
    both = [(i, places[image]) for i, image in enumerate(first.names) if image in places]
    if not both or first.class_names != other.class_names:
        return (
            f"{names[0]} and {names[1]} have no common test images, or different classes, so their test results cannot "
            "be compared."
        )
    mine, yours = (np.array(side) for side in zip(*both, strict=True))
    if not isinstance(first, Evaluation) or not isinstance(other, Evaluation):
        return _difference(first, other, mine, yours, names)
    correct = (first.labels == first.predictions)[mine], (other.labels == other.predictions)[yours]
    gained, lost, p_value = mcnemar_test(*correct)
    significant = "significant" if p_value <= 0.05 else "not significant"
    return (
        f"On {len(both):,} common test images, only {names[0]} is correct on {gained:,}, and only {names[1]} on "
        f"{lost:,}. The difference is {significant} (McNemar's exact test, p = {p_value:.2g})."
    )


def _difference(first: Any, other: Any, mine: np.ndarray, yours: np.ndarray, names: tuple[str, str]) -> str:
    """Compare two runs on common test images by the paired bootstrap of the metric of their task."""
    a, b = first.take(mine), other.take(yours)
    ends = score_interval(lambda weights: a.scores(weights) - b.scores(weights), len(mine), groups=a.groups)
    task = task_of_evaluation(a)
    unit = "" if task == REGRESSION else " points"
    difference, low, high = (
        f"{value:+.3f}" if task == REGRESSION else f"{100 * value:+.1f}"
        for value in (a.score - b.score, *ends)
    )
    significant = "significant" if ends[0] > 0 or ends[1] < 0 else "not significant"
    return (
        f"On {len(mine):,} common test images, the {TASK[task].metric_name} of {names[0]} minus that of {names[1]} is "
        f"{difference}{unit} (95% interval {low} to {high}, paired bootstrap). The difference is {significant}."
    )
