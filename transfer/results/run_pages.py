"""Fill in the report of a run and the page of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transfer.adviser.label_issues import LabelIssue
from transfer.cases.policies import POLICIES, Case, Policy
from transfer.common.pages import data_uri, render
from transfer.common.tasks import REGRESSION, TASK, score_text
from transfer.common.text import format_duration, number
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.metrics import MIN_IMAGES_TO_PLOT, percent_range
from transfer.evaluation.reference import limit_notes
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.results.advice_tables import advice_table
from transfer.results.evaluation_texts import alt_text, caption, score_tiles, task_of_evaluation, verdict
from transfer.results.run_records import RunRecord
from transfer.training.option_table import APPLIES, Situation, ignored_options, refused_options

Thumbnail = Callable[[str], np.ndarray | None]


def run_page(record: RunRecord, *, thumbnail: Thumbnail | None = None) -> str:
    """Return the report of a run as HTML."""
    evaluation, lead = record.shown, record.lead
    sections = {
        "network": ("Network", True),
        "advice": ("Why this case", record.advice),
        "folds": ("Cross-validation", record.cross_validation),
        "test": ("Out-of-fold predictions" if record.of_folds else "Test", evaluation),
        "mistakes": ("Largest errors" if record.task == REGRESSION else "Mistakes", evaluation),
        "blocks": ("Filters", record.figures.get("blocks")),
        "training": ("Training", True),
        "data": ("Data", record.data),
        "reproduce": ("Reproduce", True),
    }
    part = render(
        "run.html",
        record=record,
        lead=lead,
        tiles=_tiles(record),
        sections=[(key, title) for key, (title, content) in sections.items() if content is not None],
        figures={
            name: (data_uri(content), alt_text(name, evaluation, lead), _caption(name, record))
            for name, content in record.figures.items()
        },
        advice=record.advice,
        steps=_steps(record),
        choices=advice_table(record.advice) if record.advice else {},
        outcome=_outcome(record),
        costs=_costs(record),
        data_part=record.data.to_part(thumbnail) if record.data else "",
        command=dataclasses.replace(record.config, output=None, split=None).command,
        options=_options(record),
        versions=record.versions,
        folds=_fold_values(record),
        **_test_values(
            evaluation,
            (record.folds if record.of_folds else record.details).get("label_issues", [])[:50],
            calibrated=record.config.calibrate or record.of_folds,  # they exclude each other
            of_folds=record.of_folds,
            notes=limit_notes(record.details),
        ),
    )
    title = f"{record.name}: case {_policy(record).number}, {record.metrics['case']}"
    return str(render("page.html", title=title, parts=[part]))


def _fold_values(record: RunRecord) -> dict[str, Any] | None:
    """Return the sentence and the table of a cross-validation."""
    result = record.cross_validation
    if result is None:
        return None
    accuracies = [f"{accuracy:.1%}" for accuracy in result.fold_accuracies]
    return {"sentence": result.sentence(), "rows": [*zip(accuracies, result.fold_sizes, strict=True)]}


def _caption(name: str, record: RunRecord) -> str:
    """Return the caption of a figure of a run."""
    if name == "learning_curves" and _solved(record):
        return "Choice of the regularization strength of the head, which was solved exactly, without epochs."
    return caption(name, record.task)


def _options(record: RunRecord) -> list[tuple[str, Any]]:
    """Return the options that the user set, those that shaped the training, and the seed."""
    config, solved = record.config, _solved(record)
    values = dataclasses.asdict(config)
    situations = {Situation.EXACT} if solved else config.situations
    unused = ignored_options(values, situations)
    without = unused.keys() | set(refused_options(values, situations))
    shown = {*config.given, *(APPLIES.keys() - without), "seed"}
    return [
        (name, f"{value} (no effect)" if name in unused else value)
        for name, value in values.items()
        if name in shown and value is not None
    ]


def _solved(record: RunRecord) -> bool:
    """Return whether the head was solved exactly and nothing else was trained."""
    solved = record.metrics.get("regularization") is not None and _policy(record).frozen
    return solved and record.config.unfreeze_from is None


def _outcome(record: RunRecord) -> str:
    """Compare the measured score with the estimate of the advice; say if the run did not follow the advice."""
    advice, config, metric = record.advice or {}, record.config, TASK[record.task]
    measured = record.metrics.get(f"test_{metric.metric}")
    sentences = list(record.metrics.get("compared", []))
    if config.cut is not None and config.cut != advice.get("cut"):
        sentences.append(f"This run has the cut {config.cut}, which you set as an option.")
    interval = record.metrics.get("expected_interval")
    if measured is not None and interval:
        side = "in" if interval[0] <= measured <= interval[1] else "outside"
        score = score_text(metric.metric, measured)
        sentences.append(f"The measured test {metric.metric_name} is {score}, {side} the estimated interval.")
    return " ".join(sentences)


def evaluation_page(
    title: str,
    evaluation: AnyEvaluation,
    label_issues: Sequence[LabelIssue],
    figures: Mapping[str, bytes],
    notes: Sequence[str] = (),
) -> str:
    """Return the page of an evaluation as HTML."""
    shown = {
        name: (data_uri(content), alt_text(name, evaluation), caption(name, task_of_evaluation(evaluation)))
        for name, content in figures.items()
    }
    part = render("test.html", figures=shown, **_test_values(evaluation, label_issues, notes=notes))
    return str(render("page.html", title=title, parts=[part]))


def _test_values(
    evaluation: AnyEvaluation | None,
    label_issues: Sequence[Any],
    *,
    calibrated: bool = False,
    of_folds: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the values of `test.html`."""
    return {
        "of_folds": of_folds,
        "evaluation": evaluation,
        "task": task_of_evaluation(evaluation),
        "verdict": verdict(evaluation, calibrated=calibrated) if evaluation else "",
        "min_calibration": MIN_IMAGES_TO_PLOT,
        "confused": evaluation.confused[:10] if isinstance(evaluation, Evaluation) else [],
        "worst": _worst(evaluation),
        "label_issues": label_issues,
        "notes": notes,
    }


def _worst(evaluation: AnyEvaluation | None) -> list[tuple[str, str, str]]:
    """Return the rows of the table of the largest errors of a regression: image, true number and predicted number."""
    if not isinstance(evaluation, ValueEvaluation):
        return []
    pairs = ((k, evaluation.labels[k], evaluation.predictions[k]) for k in evaluation.mistakes[:20])
    return [(evaluation.names[k], number(true), number(predicted)) for k, true, predicted in pairs]


def _policy(record: RunRecord) -> Policy:
    return POLICIES[Case.parse(record.metrics["case"])]


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return the label, the value and a note of each tile at the top of the report."""
    metrics, evaluation = record.metrics, record.shown
    tiles = score_tiles(evaluation, "cross-validated" if record.of_folds else "test") if evaluation else []
    counts = f"{metrics['num_val']:,} validation, {metrics['num_test']:,} test"
    tiles.append(("training images", f"{metrics['num_train']:,}", counts))
    tiles.append(("time", format_duration(metrics["seconds_total"]), "with loading, advice and test"))
    if metrics.get("peak_memory_mb"):
        tiles.append(("memory", f"{metrics['peak_memory_mb'] / 1024:.1f} GB", "peak"))
    return tiles


def _steps(record: RunRecord) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the table of steps: title, time, accuracy, interval, and whether its model was kept."""
    return [
        (
            step["title"],
            format_duration(step["seconds"]),
            f"{step['accuracy']:.1%}",
            percent_range(tuple(step["interval"])),
            "kept" if step["kept"] else "not kept",
        )
        for step in record.steps
    ]


def _costs(record: RunRecord) -> list[tuple[str, str]]:
    metrics = record.metrics
    cached = " (all features were in the cache)" if metrics.get("num_computed") == 0 else ""
    rows = [
        (
            "feature extraction with the frozen layers",
            f"{format_duration(metrics['seconds_features'])}{cached}",
        ),
        ("training", format_duration(metrics["seconds_training"])),
        ("total, with loading, advice and test", format_duration(metrics["seconds_total"])),
    ]
    if metrics["trainable_parameters"]:
        rows.append(("trainable parameters", f"{metrics['trainable_parameters']:,}"))
    if metrics.get("temperature") is not None:
        rows.append(("calibration temperature", f"{metrics['temperature']:.2f}"))
    if metrics.get("engine"):
        rows.append(("engine of the frozen layers", metrics["engine"]))
    if metrics.get("peak_memory_mb"):
        rows.append(("peak memory", f"{metrics['peak_memory_mb']:,.0f} MB"))
    return rows
