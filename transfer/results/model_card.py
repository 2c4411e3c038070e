"""Fill in the model card of a run."""

from __future__ import annotations

from typing import Any

import yaml

from transfer.common.pages import render
from transfer.common.tasks import MULTI, REGRESSION
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.results.evaluation_texts import lowest_f1, score_rows
from transfer.results.run_records import RunRecord


def model_card(record: RunRecord) -> str:
    """Return the model card as Markdown with the YAML header that model hubs read."""
    evaluation, of_folds = record.shown, record.of_folds
    text = render(
        "card.md",
        header=yaml.safe_dump(_header(record), sort_keys=False, allow_unicode=True),
        record=record,
        lead=record.lead,
        evaluation=evaluation,
        purpose=_purpose(record),
        rows=score_rows(evaluation) if evaluation else {},
        num_folds=len(record.cross_validation.fold_accuracies) if record.cross_validation and of_folds else 0,
        lowest=_lowest(evaluation),
        findings=[finding.text for finding in record.data.findings] if record.data else [],
        size=record.metrics.get("image_size"),
        versions=record.versions,
        command=record.config.command,
    )
    # Quotes need no escapes in Markdown; other marks stay escaped.
    return (str(text).rstrip() + "\n").replace("&#39;", "'").replace("&#34;", '"')


def _header(record: RunRecord) -> dict[str, Any]:
    """Return the YAML header that model hubs read."""
    evaluation, kind = (
        record.shown,
        "image-regression" if record.task == REGRESSION else "image-classification",
    )
    header: dict[str, Any] = {"library_name": "keras"}
    if record.task != REGRESSION:  # hubs know no pipeline that returns a number
        header["pipeline_tag"] = kind
    header["tags"] = [kind, "transfer-learning", "keras", record.network]
    if evaluation is not None:
        data = {"name": record.config.data, "type": "imagefolder"}
        result = {
            "task": {"type": kind},
            "dataset": data | ({} if record.of_folds else {"split": "test"}),
            "metrics": [
                {"type": name, "value": round(value, 4)} for name, value in _metrics(evaluation).items()
            ],
        }
        header["model-index"] = [{"name": record.name, "results": [result]}]
    return header


def _metrics(evaluation: AnyEvaluation) -> dict[str, float]:
    """Return the metrics of the header under the names of the hub."""
    if isinstance(evaluation, LabelEvaluation):
        return {"mean_average_precision": evaluation.score, "f1": evaluation.f1_macro}
    if isinstance(evaluation, ValueEvaluation):
        return {"r_squared": evaluation.r2, "mae": evaluation.mean_absolute_error}
    return {"accuracy": evaluation.accuracy, "f1": evaluation.macro.f1}


def _purpose(record: RunRecord) -> tuple[str, str]:
    """Return what the model does with an image, and what it returns."""
    evaluation, count = record.shown, record.metrics["num_classes"]
    names = f": {', '.join(evaluation.class_names)}" if evaluation else ""
    if record.task == REGRESSION:
        name = f" {evaluation.class_names[0]}" if evaluation else ""
        return (
            f"The model predicts the number{name} of an image.",
            "this number, in the unit of the training labels",
        )
    returned = "a probability for each class, in the order of `labels.txt`"
    if record.task == MULTI:
        returned = returned.replace("class", "label")
        does = f"The model predicts which of {count} labels an image has, any number of them{names}."
        return does, f"{returned}; `metrics.json` has the threshold of each label above which it is predicted"
    return f"The model assigns an image to one of {count} classes{names}.", returned


def _lowest(evaluation: AnyEvaluation | None) -> tuple[str, list[str], list[list[str]]] | None:
    """Return the title, the header and the rows of the table of the classes or labels with the lowest results."""
    if isinstance(evaluation, Evaluation):
        rows = [(one.name, one.precision, one.recall, one.images) for one in lowest_f1(evaluation, 5)]
        title, header = "Classes with the lowest F1", ["class", "precision", "recall", "images"]
    elif isinstance(evaluation, LabelEvaluation):
        rows = [(one.name, one.average_precision, one.recall, one.images) for one in evaluation.lowest(5)]
        title = "Labels with the lowest average precision"
        header = ["label", "average precision", "recall", "images"]
    else:
        return None
    return (
        title,
        header,
        [
            [name.replace("|", "\\|"), f"{first:.1%}", f"{recall:.1%}", f"{images}"]
            for name, first, recall, images in rows
        ],
    )
