"""`python -m transfer.evaluate`: measure the accuracy of a trained run, on its own test images or on others."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common import streams
from transfer.common.commands import add_model_options, run_command
from transfer.common.errors import InputError
from transfer.common.files import check_writable, write_text
from transfer.common.parsers import Parser, take_place
from transfer.common.tasks import MULTI, REGRESSION, TASK, score_text
from transfer.results.evaluation_texts import task_of_evaluation
from transfer.results.file_names import SPLIT

if TYPE_CHECKING:
    from transfer.evaluation.kinds import AnyEvaluation
    from transfer.images.datasets import ImageData
    from transfer.results.finished_runs import FinishedRun


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parsed = _parser().parse_args(arguments)
    failures: list[str] = []

    def work() -> None:
        evaluation, least = _run(parsed), _least(parsed)
        if least is not None and not evaluation.score >= least:
            metric = TASK[task_of_evaluation(evaluation)].metric_name
            failures.append(f"The {metric}, {evaluation.score:.4f}, is below {least:g}.\n")

    code = run_command(work, stream=sys.stderr, stopped="Stopped. Nothing was written.")
    streams.print_text("".join(failures), sys.stderr)
    return code or len(failures)


def _run(parsed: argparse.Namespace) -> AnyEvaluation:
    """Evaluate the run, print the metrics, and write the files that the flags name."""
    vars(parsed).update(take_place(vars(parsed)))
    _least(parsed)  # raises for other values
    check_writable(parsed.json, parsed.csv, parsed.html)
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.adviser.label_issues import label_issues_of
    from transfer.evaluation.evaluate import evaluate
    from transfer.evaluation.reference import limit_notes, with_interval_width
    from transfer.images.split_file import training_digests
    from transfer.results import run_pages, run_writer
    from transfer.results.finished_runs import load_run
    from transfer.results.prediction_files import write_predictions

    run = load_run(parsed.run, custom_objects=parsed.custom_objects, class_names=parsed.class_names)
    _check_flags(parsed, run)
    data = run.data(parsed.data)
    if not len(data.test):
        raise _no_test_images(run)
    known = training_digests(run.folder / SPLIT)
    seen = sum(digest in known for digest in data.test.digests)
    with _without_warning():
        evaluation = replace(evaluate(run.model, data, engine=parsed.engine), seen=seen)
    evaluation = with_interval_width(evaluation, run.reference)
    issues = label_issues_of(evaluation)
    limits = _limits(parsed, run, data, evaluation)
    streams.print_text(evaluation.to_text())
    notes = limit_notes(limits)
    streams.print_text("".join(f"{note}\n" for note in notes))
    for issue in issues[:5]:
        streams.print_text(
            f"Possible label issue: {issue.name} is labeled {issue.label}, more likely {issue.likely}\n"
        )
    if parsed.json:
        run_writer.write_evaluation(Path(parsed.json), evaluation, issues, limits)
    if parsed.csv:
        write_predictions(Path(parsed.csv), evaluation)
    if parsed.html:
        from transfer.common.figures import draw_each
        from transfer.results import run_figures

        figures = dict(draw_each(run_figures.evaluation_drawings(run.model, data, evaluation)))
        page = run_pages.evaluation_page(f"{run.name} on {data.name}", evaluation, issues, figures, notes)
        write_text(Path(parsed.html), page)
    return evaluation


def _least(parsed: argparse.Namespace) -> float | None:
    """Return the smallest accepted score."""
    accuracy, score = parsed.assert_accuracy_at_least, parsed.assert_score_at_least
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise InputError(f"Expected an accuracy from 0 to 1, such as 0.9. Received: {accuracy:g}.")
    if score is not None and not score <= 1:
        raise InputError(f"Expected a score of at most 1, such as 0.7. Received: {score:g}.")
    if accuracy is not None and score is not None:
        raise InputError(
            "Expected --assert-accuracy-at-least or --assert-score-at-least. Received both. Leave one out."
        )
    return score if accuracy is None else accuracy


def _check_flags(parsed: argparse.Namespace, run: FinishedRun) -> None:
    """Raise for flags that do not suit the run, before its images are evaluated."""
    from transfer.evaluation.prediction_sets import set_threshold
    from transfer.results.predict import required_scores

    if parsed.coverage is not None:
        set_threshold(required_scores(run, "--coverage"), parsed.coverage)
    if parsed.assert_accuracy_at_least is not None and run.task in (MULTI, REGRESSION):
        raise InputError(
            f"Expected --assert-accuracy-at-least with one class per image. Received a run with the task {run.task}. "
            f"Use --assert-score-at-least: the score is {TASK[run.task].metric_name}."
        )


def _no_test_images(run: FinishedRun) -> InputError:
    """Return the error for a run without test images."""
    metric = TASK[run.task]
    measured, by_folds = run.metrics.get(f"cross_validated_{metric.metric}"), ""
    if measured is not None:
        score = score_text(metric.metric, measured)
        by_folds = f" Their cross-validated {metric.metric_name} is {score} (report.html)."
    return InputError(
        f"Expected test images in the run {run.name}. Received none. Its images were used for training or "
        f"validation, so the results on them would be too good.{by_folds} Pass other labeled images: "
        f"python -m transfer.evaluate {run.folder} path/to/new-images."
    )


def _limits(
    parsed: argparse.Namespace, run: FinishedRun, data: ImageData, evaluation: AnyEvaluation
) -> dict[str, Any]:
    """Measure the thresholds of a run on the test images, and on the images of no class that a flag names."""
    from transfer.evaluation.reference import measured
    from transfer.frozen.openvino_engine import in_float
    from transfer.results.predict import predict, required_reference

    if run.reference is None and parsed.unknown is None and parsed.coverage is None:
        return {}
    flag = "--unknown" if parsed.unknown is not None else "--coverage"
    reference, others = required_reference(run, flag), None
    if parsed.unknown is not None:
        found = predict(run, parsed.unknown, engine=in_float(parsed.engine))
        others = np.array([one.distance for one in found if one.distance is not None])
        if not len(others):
            raise InputError(f"Expected readable images for --unknown. Received none: {parsed.unknown}.")
    options = {"engine": parsed.engine, "coverage": parsed.coverage, "others": others}
    return measured(reference, run.model, data, evaluation, **options)


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Keep the warning about training images out of the log: the printed text has it."""
    log = logging.getLogger("transfer.evaluation.evaluate")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def _parser() -> Parser:
    parser = Parser(
        "evaluate",
        "Measure the accuracy of a trained run on its own test images, or on others; for several labels, the mean "
        "average precision, and for regression R2. The exit code is 0; 1 if the score is below "
        "--assert-accuracy-at-least or --assert-score-at-least; 2 for invalid input.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its .keras file")
    data = "labeled images, in any form that training takes (default: the run's own test images)"
    parser.add_place()
    parser.add_argument("--data", metavar="DATA", help=data)
    unknown = "images of no class: measure how many of them --abstain of predict marks as unknown"
    parser.add_argument("--unknown", metavar="IMAGES", help=unknown)
    coverage = "coverage of the measured prediction sets or intervals, such as 0.9 (default: 0.9, if the run allows it)"
    parser.add_argument("--coverage", type=float, metavar="X", help=coverage)
    parser.add_argument("--json", metavar="FILE", help="write the metrics as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the prediction for each image as CSV")
    parser.add_argument("--html", metavar="FILE", help="write a page with figures and images")
    least = "exit with code 1 if the accuracy is below this value, 0 to 1"
    parser.add_argument("--assert-accuracy-at-least", type=float, metavar="X", help=least)
    score = "exit with code 1 if the metric of the task is below: accuracy, mean average precision or R2"
    parser.add_argument("--assert-score-at-least", type=float, metavar="X", help=score)
    engine = "engine of frozen layers: auto, keras, openvino or openvino-int8 (default: auto)"
    parser.add_argument("--engine", default="auto", help=engine)
    add_model_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
