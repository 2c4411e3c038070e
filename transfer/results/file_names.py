"""Names of the files in a run's folder."""

MODEL, LABELS, CONFIG = "model.keras", "labels.txt", "config.yaml"
METRICS, HISTORY, ADVICE, DATA = "metrics.json", "history.csv", "advice.json", "data.json"
SPLIT, PREDICTIONS, EVALUATION = "split.csv", "predictions.csv", "evaluation.json"
PAGE, CARD = "report.html", "README.md"

REFERENCE = "reference.npz"
"""Features of training images and scores of held-out images, for `--abstain` and `--coverage`."""

COMPARISON = "comparison.html"
"""Default name of the page that compares several runs."""

FIGURES = (
    "four_cases",
    "layer_curve",
    "head_scores",
    "network",
    "learning_curves",
    "confusion_matrix",
    "classes",
    "calibration",
    "labels",
    "co_occurrence",
    "values",
    "mistakes",
    "predictions",
    "blocks",
)
"""PNG files of a run without their suffix, in the order in which its page shows them."""

EXPORTED = "exported"
"""Folder of the exported files in a run's folder."""

STEPS = "steps.json"
"""The steps of a run that was improved while its time budget lasted."""

OUT_OF_FOLD, FOLDS = "out_of_fold.csv", "cross_validation.json"
"""The predictions and the metrics of a cross-validation."""

_TABLES = (METRICS, HISTORY, ADVICE, DATA, SPLIT, PREDICTIONS, EVALUATION, STEPS, OUT_OF_FOLD, FOLDS)

RUN_FILES = frozenset(
    (MODEL, LABELS, CONFIG, REFERENCE, *_TABLES, PAGE, CARD, EXPORTED, *(f"{name}.png" for name in FIGURES))
)
"""Names of all files and folders in a run's folder."""
