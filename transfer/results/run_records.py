"""What a run's folder says, read for pages: figures, options, predictions, images; no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError
from transfer.config import TrainConfig, load_config
from transfer.evaluation.evaluate import Evaluation
from transfer.images.data_report import DataReport
from transfer.results.finished_runs import CONFIG, METRICS, MODEL, missing_run, read_json, read_metrics
from transfer.results.prediction_files import read_predictions

DATA, ADVICE, EVALUATION, PREDICTIONS = "data.json", "advice.json", "evaluation.json", "predictions.csv"

FIGURES = (
    "four_cases",
    "layer_curve",
    "network",
    "learning_curves",
    "confusion_matrix",
    "classes",
    "calibration",
    "mistakes",
    "predictions",
    "blocks",
)
"""Images of a run, by name, in the order of a page."""

_MOST_BYTES = 2**25  # of an image


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished run, as its files tell it."""

    folder: Path
    metrics: dict[str, Any]
    config: TrainConfig
    # What it makes of the test images.
    evaluation: Evaluation | None
    details: dict[str, Any]
    # Why it is this case.
    advice: dict[str, Any] | None
    # The check of the data.
    data: DataReport | None
    figures: dict[str, bytes]

    @property
    def name(self) -> str:
        """What to call it: the folder's name."""
        return self.folder.resolve().name.removeprefix(".").removesuffix(".partial")


def read_record(folder: str | Path) -> RunRecord:
    """Read a run's folder."""
    place = Path(folder)
    if not (place / MODEL).is_file():
        raise InputError(missing_run(place))
    for name in (METRICS, CONFIG):
        if not (place / name).is_file():
            raise InputError(f"Expected the folder of a finished run. {place} has no {name}.")
    data = read_json(place / DATA)
    predictions = place / PREDICTIONS
    return RunRecord(
        place,
        read_metrics(place),
        load_config(place / CONFIG),
        read_predictions(predictions) if predictions.is_file() else None,
        read_json(place / EVALUATION) or {},
        read_json(place / ADVICE),
        DataReport.from_dict(data) if data is not None else None,
        {name: _png(place / f"{name}.png") for name in FIGURES if (place / f"{name}.png").is_file()},
    )


def _png(path: Path) -> bytes:
    """Read an image of the run's own: a link could put any file of the reader's onto a page."""
    if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
        raise InputError(f"Expected an image of the run itself. Received a link, or something huge: {path}.")
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"Expected a PNG. Received something else: {path}.")
    return content
