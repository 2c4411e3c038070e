"""Fill in the report of a run, the comparison of several runs, the page of an evaluation, and the model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from transfer.adviser.label_issues import LabelIssue
from transfer.cases.policies import POLICIES, Case, Policy
from transfer.common.errors import InputError
from transfer.common.pages import data_uri, render
from transfer.common.text import format_duration
from transfer.evaluation.evaluation import Evaluation, ordinal_text
from transfer.evaluation.metrics import MIN_IMAGES_TO_PLOT, mcnemar_test, percent_range
from transfer.evaluation.reference import limit_notes
from transfer.results.run_metrics import describe_training
from transfer.results.run_records import RunRecord
from transfer.training.option_table import APPLIES, Situation, ignored_options, refused_options

Thumbnail = Callable[[str], np.ndarray | None]

CALIBRATION_GAP = 0.05
"""Smallest calibration gap (mean confidence minus accuracy) that the report mentions."""

CAPTIONS = {
    "four_cases": "These data among the four cases, with known data sets for comparison.",
    "layer_curve": "Cross-validated accuracy of a linear head on each single layer, and on all layers together.",
    "network": "The network by blocks, with the layers that the head sees.",
    "learning_curves": "Loss and accuracy by epoch.",
    "confusion_matrix": "Confusion matrix: rows are true classes, columns are predicted classes.",
    "classes": "Recall and precision by class with 95% intervals, the lowest F1 first.",
    "calibration": "Reliability diagram: accuracy by confidence, in bins of nearly equal numbers of images.",
    "mistakes": "The mistakes with the highest confidence in the wrong class, with Grad-CAM heat maps.",
    "predictions": "Test images with their predicted classes.",
    "blocks": "Image regions with the strongest responses of some filters, by block.",
}


def run_page(record: RunRecord, *, thumbnail: Thumbnail | None = None) -> str:
    """Return the report of a run as HTML."""
    evaluation, lead = record.shown, _lead(record)
    sections = {
        "network": ("Network", True),
        "advice": ("Why this case", record.advice),
        "folds": ("Cross-validation", record.cross_validation),
        "test": ("Out-of-fold predictions" if _of_folds(record) else "Test", evaluation),
        "mistakes": ("Mistakes", evaluation),
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
        choices=_choices(record.advice) if record.advice else [],
        outcome=_outcome(record),
        costs=_costs(record),
        data_part=record.data.to_part(thumbnail) if record.data else "",
        command=dataclasses.replace(record.config, output=None, split=None).command,
        options=_options(record),
        versions=_versions(record),
        folds=_fold_values(record),
        **_test_values(
            evaluation,
            (record.folds if _of_folds(record) else record.details).get("label_issues", [])[:50],
            calibrated=record.config.calibrate or _of_folds(record),  # they exclude each other
            of_folds=_of_folds(record),
            notes=limit_notes(record.details),
        ),
    )
    title = f"{record.name}: case {_policy(record).number}, {record.metrics['case']}"
    return str(render("page.html", title=title, parts=[part]))


def _of_folds(record: RunRecord) -> bool:
    """Return whether the report shows out-of-fold predictions, because there are no test images."""
    return record.evaluation is None and record.cross_validation is not None


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
    return CAPTIONS[name]


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
    """Compare the measured accuracy with the estimate of the advice; say if the run did not follow the advice."""
    advice, config, measured = record.advice or {}, record.config, record.metrics.get("test_accuracy")
    sentences = []
    if config.cut is not None and config.cut != advice.get("cut"):
        sentences.append(f"This run has the cut {config.cut}, which you set as an option.")
    interval = record.metrics.get("expected_interval")
    if measured is not None and interval:
        side = "in" if interval[0] <= measured <= interval[1] else "outside"
        sentences.append(f"The measured test accuracy is {measured:.1%}, {side} the estimated interval.")
    return " ".join(sentences)


def evaluation_page(
    title: str,
    evaluation: Evaluation,
    label_issues: Sequence[LabelIssue],
    figures: Mapping[str, bytes],
    notes: Sequence[str] = (),
) -> str:
    """Return the page of an evaluation as HTML."""
    shown = {
        name: (data_uri(content), alt_text(name, evaluation), CAPTIONS[name])
        for name, content in figures.items()
    }
    part = render("test.html", figures=shown, **_test_values(evaluation, label_issues, notes=notes))
    return str(render("page.html", title=title, parts=[part]))


def _test_values(
    evaluation: Evaluation | None,
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
        "verdict": verdict(evaluation, calibrated=calibrated) if evaluation else "",
        "min_calibration": MIN_IMAGES_TO_PLOT,
        "confused": evaluation.confused[:10] if evaluation else [],
        "label_issues": label_issues,
        "notes": notes,
    }


def _policy(record: RunRecord) -> Policy:
    return POLICIES[Case.parse(record.metrics["case"])]


def _versions(record: RunRecord) -> str:
    return ", ".join(
        f"{name} {version}" for name, version in sorted(record.metrics.get("versions", {}).items())
    )


def _lead(record: RunRecord) -> str:
    what = describe_training(record.metrics, record.config)
    return f"{_network(record)} on {record.config.data}: {what}."


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return the label, the value and a note of each tile at the top of the report."""
    metrics, evaluation = record.metrics, record.shown
    tiles = []
    if evaluation is not None:
        interval, error = percent_range(evaluation.interval, 1), evaluation.calibration.error
        kind = "cross-validated accuracy" if _of_folds(record) else "test accuracy"
        tiles.append((kind, f"{evaluation.accuracy:.1%}", f"95% interval {interval}"))
        if scores := evaluation.ordinal:
            kappa = f"quadratic weighted kappa {scores.quadratic_weighted_kappa:.3f}"
            tiles.append(("mean absolute error", f"{scores.mean_absolute_error:.3f} ranks", kappa))
        tiles.append(("macro F1", f"{evaluation.macro.f1:.1%}", "mean over the classes"))
        tiles.append(("log loss", f"{evaluation.loss:.3f}", f"calibration error {error:.3f}"))
    counts = f"{metrics['num_val']:,} validation, {metrics['num_test']:,} test"
    tiles.append(("training images", f"{metrics['num_train']:,}", counts))
    tiles.append(("time", format_duration(metrics["seconds_total"]), "with loading, advice and test"))
    if metrics.get("peak_memory_mb"):
        tiles.append(("memory", f"{metrics['peak_memory_mb'] / 1024:.1f} GB", "peak"))
    return tiles


def _choices(advice: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of cases."""
    rows = []
    for choice in advice["cases"]:
        rows.append(
            {
                "case": f"{POLICIES[Case.parse(choice['case'])].number} {choice['case']}",
                "action": choice["action"],
                "expected": f"{choice['expected_accuracy']:.1%}",
                "interval": percent_range(choice["interval"]),
                "time": format_duration(choice["seconds"]),
                "chosen": choice["case"] == advice["case"] and choice["cut"] == advice["cut"],
            }
        )
    return rows


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


def _network(record: RunRecord) -> str:
    """Return the name of the network of a run."""
    return str(record.metrics.get("model") or record.config.model)


def verdict(evaluation: Evaluation, *, calibrated: bool = False) -> str:
    """Describe the accuracy and the calibration of a model in two or three sentences."""
    confidence = float(evaluation.confidences.mean())
    gap, seen = confidence - evaluation.accuracy, evaluation.seen
    which = "images" if seen else "held-out images"
    text = (
        f"Accuracy: {evaluation.accuracy:.1%} on {len(evaluation.labels):,} {which} (95% interval "
        f"{percent_range(evaluation.interval, 1)}). {ordinal_text(evaluation)}Mean confidence is {confidence:.0%}"
    )
    if seen:
        were = "1 of these images was" if seen == 1 else f"{seen:,} of these images were"
        return (
            f"{text}. {were} used for training or validation, so the accuracy on new images is probably lower. Leave "
            "them out of the test."
        )
    if abs(gap) <= CALIBRATION_GAP:
        return f"{text}, close to the accuracy."
    if evaluation.interval[0] <= confidence <= evaluation.interval[1]:
        return f"{text}, within that interval: there are too few images to tell whether the model is overconfident."
    side = "above the accuracy (overconfident)" if gap > 0 else "below the accuracy (underconfident)"
    return f"{text}, {side}." + (" Try --calibrate." if not calibrated else "")


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


def alt_text(name: str, evaluation: Evaluation | None, lead: str = "") -> str:
    """Describe a figure of a run for readers who cannot see it."""
    if name == "network":
        return f"Drawing of the network: {lead}"
    if evaluation is None or name not in ("confusion_matrix", "calibration", "classes"):
        return CAPTIONS[name]
    if name == "confusion_matrix":
        pairs = ", ".join(f"{c.label} as {c.predicted} ({c.images})" for c in evaluation.confused[:3])
        return (
            f"Confusion matrix: accuracy {evaluation.accuracy:.1%}. Most frequent: {pairs or 'no mistakes'}."
        )
    if name == "calibration":
        calibration = evaluation.calibration
        points = zip(calibration.confidence, calibration.accuracy, strict=True)
        listed = "; ".join(f"confidence {sure:.0%}, accuracy {right:.0%}" for sure, right in points)
        return f"Reliability diagram, calibration error {calibration.error:.3f}: {listed}."
    worst = ", ".join(f"{c.name} (F1 {c.f1:.0%})" for c in _lowest_f1(evaluation, 3))
    return f"Recall and precision by class. Lowest F1: {worst}."


def _lowest_f1(evaluation: Evaluation, count: int) -> list[Any]:
    return sorted((c for c in evaluation.by_class if c.images), key=lambda c: c.f1)[:count]


def comparison_page(records: Sequence[RunRecord]) -> str:
    """Return a page that compares several runs as HTML."""
    if len(records) < 2:
        raise InputError(f"Expected two runs or more to compare. Received: {len(records)}.")
    names = [record.name for record in records]
    names = [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
    best = max((r.evaluation.accuracy for r in records if r.evaluation), default=None)
    options = [dataclasses.asdict(record.config) for record in records]
    differing = [key for key in options[0] if len({repr(one[key]) for one in options}) > 1]
    figures = []
    for figure in ("confusion_matrix", "learning_curves", "network"):
        shown = [
            (data_uri(r.figures[figure]), alt_text(figure, r.evaluation, _lead(r)), name)
            for r, name in zip(records, names, strict=True)
            if figure in r.figures
        ]
        figures.append((CAPTIONS[figure], shown))
    part = render(
        "comparison.html",
        names=names,
        rows=_compared(records),
        best=[r.evaluation is not None and r.evaluation.accuracy == best for r in records],
        options=[(key, [one[key] for one in options]) for key in differing],
        pairs=_pairs(records, names),
        figures=figures,
    )
    return str(render("page.html", title="Comparison of runs", parts=[part]))


def _compared(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table that compares runs: a label, and a value for each run."""

    def test(text: Callable[[Evaluation], str]) -> Callable[[RunRecord], str]:
        return lambda record: text(record.evaluation) if record.evaluation else "no test images"

    def cut(record: RunRecord) -> str:
        layers = len(record.metrics.get("cuts") or ())
        return f"{layers} layers" if layers > 1 else str(record.metrics["cut"])

    rows: dict[str, Callable[[RunRecord], str]] = {
        "test accuracy": test(lambda e: f"{e.accuracy:.1%}"),
        "95% interval": test(lambda e: percent_range(e.interval, 1)),
        "cross-validated accuracy": lambda r: (
            f"{r.cross_validation.accuracy:.1%}" if r.cross_validation else "no folds"
        ),
        "macro F1": test(lambda e: f"{e.macro.f1:.1%}"),
        "log loss": test(lambda e: f"{e.loss:.3f}"),
        "calibration error": test(lambda e: f"{e.calibration.error:.3f}"),
        "network": _network,
        "case": lambda r: str(r.metrics["case"]),
        "cut": cut,
        "training images": lambda r: f"{r.metrics['num_train']:,}",
        "test images": lambda r: f"{r.metrics['num_test']:,}",
        "total time": lambda r: format_duration(r.metrics["seconds_total"]),
        "peak memory": lambda r: f"{r.metrics.get('peak_memory_mb') or float('nan'):,.0f} MB",
    }
    if not any(record.cross_validation for record in records):
        del rows["cross-validated accuracy"]
    return [(label, [text(record) for record in records]) for label, text in rows.items()]


def _pairs(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Compare the best run with each other run on the test images that both share."""
    tested = [(r.evaluation, name) for r, name in zip(records, names, strict=True) if r.evaluation]
    if len(tested) < 2:
        return []
    first, first_name = max(tested, key=lambda pair: pair[0].accuracy)
    sentences = []
    for other, name in tested:
        if other is first:
            continue
        places = {image: i for i, image in enumerate(other.names)}
        both = [(i, places[image]) for i, image in enumerate(first.names) if image in places]
        if not both or first.class_names != other.class_names:
            sentences.append(
                f"{first_name} and {name} have no common test images, or different classes, so their accuracies "
                "cannot be compared."
            )
            continue
        mine, yours = (np.array(side) for side in zip(*both, strict=True))
        correct = (first.labels == first.predictions)[mine], (other.labels == other.predictions)[yours]
        gained, lost, p_value = mcnemar_test(*correct)
        significant = "significant" if p_value <= 0.05 else "not significant"
        sentences.append(
            f"On {len(both):,} common test images, only {first_name} is correct on {gained:,}, and only {name} on "
            f"{lost:,}. The difference is {significant} (McNemar's exact test, p = {p_value:.2g})."
        )
    return sentences


def model_card(record: RunRecord) -> str:
    """Return the model card as Markdown with the YAML header that model hubs read."""
    evaluation, of_folds = record.shown, _of_folds(record)
    header: dict[str, Any] = {"library_name": "keras", "pipeline_tag": "image-classification"}
    header["tags"] = ["image-classification", "transfer-learning", "keras", _network(record)]
    if evaluation is not None:
        metrics = {"accuracy": evaluation.accuracy, "f1": evaluation.macro.f1}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": record.config.data, "type": "imagefolder"}
            | ({} if of_folds else {"split": "test"}),
            "metrics": [{"type": kind, "value": round(value, 4)} for kind, value in metrics.items()],
        }
        header["model-index"] = [{"name": record.name, "results": [result]}]
    text = render(
        "card.md",
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        record=record,
        lead=_lead(record),
        evaluation=evaluation,
        num_folds=len(record.cross_validation.fold_accuracies) if record.cross_validation and of_folds else 0,
        interval=percent_range(evaluation.interval, 1) if evaluation else "",
        lowest_f1=_lowest_f1(evaluation, 5) if evaluation else [],
        findings=[finding.text for finding in record.data.findings] if record.data else [],
        size=record.metrics.get("image_size"),
        versions=_versions(record),
        command=record.config.command,
    )
    # Quotes need no escapes in Markdown; other marks stay escaped.
    return (str(text).rstrip() + "\n").replace("&#39;", "'").replace("&#34;", '"')
