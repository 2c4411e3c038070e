"""Texts about evaluations of all tasks: verdicts, tiles, metrics, and descriptions of figures."""

from __future__ import annotations

from typing import Any

from transfer.common.tasks import MULTI, ORDINAL, REGRESSION, SINGLE, TASK
from transfer.common.text import number
from transfer.evaluation.evaluation import Evaluation, ordinal_text
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.metrics import percent_range
from transfer.evaluation.prediction_sets import COVERAGE
from transfer.evaluation.sentences import percent
from transfer.evaluation.value_evaluation import ValueEvaluation

CALIBRATION_GAP = 0.05
"""Smallest calibration gap (mean confidence minus accuracy) that the report mentions."""

CAPTIONS = {
    "four_cases": "These data among the four cases, with known data sets for comparison.",
    "head_scores": "Score of the head on each choice of layers, on out-of-fold predictions, with standard errors.",
    "layer_curve": "Cross-validated accuracy of a linear head on each single layer, and on all layers together.",
    "network": "The network by blocks, with the layers that the head sees.",
    "learning_curves": "Loss and {metric} by epoch.",
    "confusion_matrix": "Confusion matrix: rows are true classes, columns are predicted classes.",
    "classes": "Recall and precision by class with 95% intervals, the lowest F1 first.",
    "calibration": "Reliability diagram: accuracy by confidence, in bins of nearly equal numbers of images.",
    "labels": "Average precision, recall and precision by label, the lowest average precision first.",
    "co_occurrence": "Labels that images have together, and labels that are predicted together. The color is the "
    "fraction of the images with the label of the row.",
    "values": "Predicted and true number of each image. The band shows the intervals of the predictions.",
    "mistakes": "The mistakes with the highest confidence in the wrong class, with Grad-CAM heat maps.",
    "predictions": "Test images with their predicted classes.",
    "blocks": "Image regions with the strongest responses of some filters, by block.",
}

_CAPTIONS_OF_TASK = {
    MULTI: {
        "mistakes": "The clearest wrong decisions, with Grad-CAM heat maps of the label.",
        "predictions": "Test images with their predicted labels.",
    },
    REGRESSION: {
        "mistakes": "The largest errors, with Grad-CAM heat maps of what raises the predicted number.",
        "predictions": "Test images with their predicted numbers, from the lowest to the highest true number.",
    },
}


def task_of_evaluation(evaluation: AnyEvaluation | None) -> str:
    """Return the task of an evaluation; that of single labels without one."""
    if isinstance(evaluation, LabelEvaluation):
        return MULTI
    if isinstance(evaluation, ValueEvaluation):
        return REGRESSION
    return ORDINAL if evaluation is not None and evaluation.rule is not None else SINGLE


def caption(name: str, task: str = SINGLE) -> str:
    """Return the caption of a figure of a run."""
    text = _CAPTIONS_OF_TASK.get(task, {}).get(name, CAPTIONS[name])
    return text.format(metric=TASK[task].metric_name) if name == "learning_curves" else text


def verdict(evaluation: AnyEvaluation, *, calibrated: bool = False) -> str:
    """Describe the metrics of a model in two or three sentences."""
    if isinstance(evaluation, Evaluation):
        return _verdict_of_classes(evaluation, calibrated=calibrated)
    count = f"{len(evaluation.labels):,} {'' if evaluation.seen else 'held-out '}images"
    if isinstance(evaluation, LabelEvaluation):
        text = (
            f"Mean average precision: {percent(evaluation.score)} on {count} (95% interval "
            f"{percent_range(evaluation.interval, 1)}). With its thresholds, the model finds all labels and no others "
            f"for {evaluation.exact_match:.1%} of the images."
        )
    else:
        low, high = evaluation.interval
        text = (
            f"R2: {evaluation.r2:.3f} on {count} (95% interval {low:.3f} to {high:.3f}). The mean absolute error is "
            f"{number(evaluation.mean_absolute_error)}; the standard deviation of the true numbers is "
            f"{number(evaluation.labels.std())}."
        )
    return f"{text}{_seen_text(evaluation.seen, TASK[task_of_evaluation(evaluation)].metric_name)}"


def _seen_text(seen: int, metric: str) -> str:
    """Return a sentence about images that were used for training, with a space before it; empty without such images."""
    if not seen:
        return ""
    were = "1 of these images was" if seen == 1 else f"{seen:,} of these images were"
    return (
        f" {were} used for training or validation, so the {metric} on new images is probably lower. Leave them out of "
        "the test."
    )


def _verdict_of_classes(evaluation: Evaluation, *, calibrated: bool) -> str:
    """Describe the accuracy and the calibration of a model in two or three sentences."""
    confidence = float(evaluation.confidences.mean())
    gap, seen = confidence - evaluation.accuracy, evaluation.seen
    which = "images" if seen else "held-out images"
    text = (
        f"Accuracy: {evaluation.accuracy:.1%} on {len(evaluation.labels):,} {which} (95% interval "
        f"{percent_range(evaluation.interval, 1)}). {ordinal_text(evaluation)}Mean confidence is {confidence:.0%}"
    )
    if seen:
        return f"{text}.{_seen_text(seen, 'accuracy')}"
    if abs(gap) <= CALIBRATION_GAP:
        return f"{text}, close to the accuracy."
    if evaluation.interval[0] <= confidence <= evaluation.interval[1]:
        return f"{text}, within that interval: there are too few images to tell whether the model is overconfident."
    side = "above the accuracy (overconfident)" if gap > 0 else "below the accuracy (underconfident)"
    return f"{text}, {side}." + (" Try --calibrate." if not calibrated else "")


def score_tiles(evaluation: AnyEvaluation, measured: str = "test") -> list[tuple[str, str, str]]:
    """Return the label, the value and a note of each tile with a metric; `measured` is how it was measured."""
    if isinstance(evaluation, LabelEvaluation):
        return [
            (
                f"{measured} mean average precision",
                percent(evaluation.score),
                f"95% interval {percent_range(evaluation.interval, 1)}",
            ),
            ("micro F1", percent(evaluation.f1_micro), f"macro F1 {percent(evaluation.f1_macro)}"),
            ("all labels right", f"{evaluation.exact_match:.1%}", "of the images"),
            ("binary cross-entropy", f"{evaluation.loss:.3f}", "mean over images and labels"),
        ]
    if isinstance(evaluation, ValueEvaluation):
        low, high = evaluation.interval
        median, error = number(evaluation.median_absolute_error), number(evaluation.root_mean_squared_error)
        tiles = [
            (f"{measured} R2", f"{evaluation.r2:.3f}", f"95% interval {low:.3f} to {high:.3f}"),
            ("mean absolute error", number(evaluation.mean_absolute_error), f"median {median}"),
            ("root mean squared error", error, f"standard deviation {number(evaluation.labels.std())}"),
        ]
        if evaluation.interval_width is not None:
            tiles.append((f"{COVERAGE:.0%} interval", number(evaluation.interval_width), "width"))
        return tiles
    interval, error = percent_range(evaluation.interval, 1), f"{evaluation.calibration.error:.3f}"
    tiles = [(f"{measured} accuracy", f"{evaluation.accuracy:.1%}", f"95% interval {interval}")]
    if scores := evaluation.ordinal:
        kappa = f"quadratic weighted kappa {scores.quadratic_weighted_kappa:.3f}"
        tiles.append(("mean absolute error", f"{scores.mean_absolute_error:.3f} ranks", kappa))
    tiles.append(("macro F1", f"{evaluation.macro.f1:.1%}", "mean over the classes"))
    return [*tiles, ("log loss", f"{evaluation.loss:.3f}", f"calibration error {error}")]


def score_rows(evaluation: AnyEvaluation) -> dict[str, str]:
    """Return the metrics of an evaluation by name, as text; the metric of the task comes first."""
    if isinstance(evaluation, LabelEvaluation):
        return {
            "mean average precision": percent(evaluation.score),
            "95% interval": percent_range(evaluation.interval, 1),
            "micro F1": percent(evaluation.f1_micro),
            "macro F1": percent(evaluation.f1_macro),
            "all labels right": f"{evaluation.exact_match:.1%}",
            "binary cross-entropy": f"{evaluation.loss:.3f}",
        }
    if isinstance(evaluation, ValueEvaluation):
        return {
            "R2": f"{evaluation.r2:.3f}",
            "95% interval": "{:.3f} to {:.3f}".format(*evaluation.interval),
            "mean absolute error": number(evaluation.mean_absolute_error),
            "median absolute error": number(evaluation.median_absolute_error),
            "root mean squared error": number(evaluation.root_mean_squared_error),
        }
    rows = {"accuracy": f"{evaluation.accuracy:.1%}", "95% interval": percent_range(evaluation.interval, 1)}
    if scores := evaluation.ordinal:
        rows |= {
            "mean absolute error": f"{scores.mean_absolute_error:.3f} ranks",
            "quadratic weighted kappa": f"{scores.quadratic_weighted_kappa:.3f}",
            "accuracy within one rank": f"{scores.accuracy_within_one:.1%}",
        }
    return rows | {
        "macro F1": f"{evaluation.macro.f1:.1%}",
        "log loss": f"{evaluation.loss:.3f}",
        "expected calibration error": f"{evaluation.calibration.error:.3f}",
    }


def alt_text(name: str, evaluation: AnyEvaluation | None, lead: str = "") -> str:
    """Describe a figure of a run for readers who cannot see it."""
    if name == "network":
        return f"Drawing of the network: {lead}"
    if name == "labels" and isinstance(evaluation, LabelEvaluation):
        worst = ", ".join(f"{c.name} ({percent(c.average_precision)})" for c in evaluation.lowest(3))
        return f"Average precision, recall and precision by label. Lowest average precision: {worst}."
    if name == "values" and isinstance(evaluation, ValueEvaluation):
        return f"Predicted over true {evaluation.class_names[0]}: R2 {evaluation.r2:.3f}."
    if not isinstance(evaluation, Evaluation) or name not in ("confusion_matrix", "calibration", "classes"):
        return caption(name, task_of_evaluation(evaluation))
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
    worst = ", ".join(f"{c.name} (F1 {c.f1:.0%})" for c in lowest_f1(evaluation, 3))
    return f"Recall and precision by class. Lowest F1: {worst}."


def lowest_f1(evaluation: Evaluation, count: int) -> list[Any]:
    """Return the scores of the classes with the lowest F1; those without images are left out."""
    return sorted((c for c in evaluation.by_class if c.images), key=lambda c: c.f1)[:count]
