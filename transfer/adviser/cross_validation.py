"""Cross-validation: predict each image by a model that was trained without it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from transfer.adviser.fold_training import FoldTraining
from transfer.adviser.label_issues import LabelIssue, label_issues_of
from transfer.common import display
from transfer.common.arguments import explain_arguments
from transfer.common.decision_rules import choose_rule
from transfer.common.errors import unknown
from transfer.common.files import replacing, write_text
from transfer.common.text import format_duration, plural
from transfer.config import TrainConfig
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.metrics import percent_range
from transfer.frozen.store_keys import digests_of
from transfer.images.datasets import check_data, check_one_class
from transfer.images.folds import FoldedData, fold_data
from transfer.images.image_data import ImageData
from transfer.networks.arguments import check_network
from transfer.networks.graphs import fingerprint
from transfer.networks.hub import plain_network
from transfer.training.settings import read_settings, require_same_settings

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

FOLD = "fold-"
"""Start of the names of folders that hold the checkpoints or the result of a fold."""

_RESULT, _SETTINGS = "result.npz", "folds.json"
_SHORT = 10.0  # seconds that need no estimate
_NOT_OPTIONS = ("data", "model", "weights", "custom_objects", "output", "resume", "folds")


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Out-of-fold predictions: each image is predicted by a model that was trained without its fold.

    Attributes:
        evaluation: out-of-fold predictions with their metrics, such as `confusion`, `macro` and `by_class`. The recall
            of `macro` is the balanced accuracy.
        folds: number of the fold of each image of the evaluation, from 0, shape (N,).
        label_issues: images whose label is more likely wrong than right, the most probable first. Each has `name`,
            `label`, `likely` and `probability`.

    Example:
        >>> predicted = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
        >>> evaluation = Evaluation(("ant", "bee"), np.array([0, 1, 0, 1]), predicted, ("a", "b", "c", "d"))
        >>> CrossValidation(evaluation, np.array([0, 0, 1, 1])).fold_accuracies
        (0.5, 1.0)
    """

    evaluation: Evaluation
    folds: np.ndarray
    label_issues: tuple[LabelIssue, ...] = ()

    @property
    def accuracy(self) -> float:
        """Fraction of all images whose out-of-fold prediction is correct, 0 to 1."""
        return self.evaluation.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy, by the bootstrap over images, or over groups if there are any."""
        return self.evaluation.interval

    @cached_property
    def fold_accuracies(self) -> tuple[float, ...]:
        """Accuracy of each fold, 0 to 1."""
        correct = self.evaluation.labels == self.evaluation.predictions
        return tuple(float(correct[self.folds == fold].mean()) for fold in np.unique(self.folds))

    @property
    def mean(self) -> float:
        """Mean accuracy of the folds."""
        return float(np.mean(self.fold_accuracies))

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracies of the folds."""
        return float(np.std(self.fold_accuracies, ddof=1))

    @property
    def fold_sizes(self) -> tuple[int, ...]:
        """Number of tested images of each fold."""
        return tuple(np.unique(self.folds, return_counts=True)[1].tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as a dictionary for JSON."""
        return {
            "num_folds": len(self.fold_accuracies),
            "fold_accuracies": list(self.fold_accuracies),
            "fold_sizes": list(self.fold_sizes),
            "fold_mean": self.mean,
            "fold_deviation": self.deviation,
            **self.evaluation.to_dict(),
            "label_issues": [issue._asdict() for issue in self.label_issues],
        }

    def sentence(self) -> str:
        """Return the accuracy with its interval and its spread over the folds."""
        count, macro = len(self.fold_accuracies), self.evaluation.macro
        return (
            f"Cross-validated accuracy: {self.accuracy:.1%} (95% interval {percent_range(self.interval, 1)}) on "
            f"{plural(len(self.folds), 'image')}. Balanced accuracy: {macro.recall:.1%}. Macro F1: {macro.f1:.1%}. "
            f"Mean of {count} folds: {self.mean:.1%}, standard deviation {100 * self.deviation:.1f} points."
        )

    def to_text(self) -> str:
        """Return the metrics as lines of text."""
        each = ", ".join(f"{accuracy:.1%}" for accuracy in self.fold_accuracies)
        return f"{self.sentence()}\nAccuracy by fold: {each}.\n\n{self.evaluation.to_text()}"

    def to_dataframe(self) -> pandas.DataFrame:
        """Return the table of `Evaluation.to_dataframe` with the column `fold`, from 1.

        Raises:
            InputError: pandas is not installed.
        """
        table = self.evaluation.to_dataframe()
        table.insert(3, "fold" if "fold" not in table else "fold (number)", self.folds + 1)
        return table

    def __repr__(self) -> str:
        text = f"accuracy {self.accuracy:.1%} (95% interval {percent_range(self.interval)})"
        count = plural(len(self.folds), "image")
        return display.one_line(self, f"{text} on {count}, {len(self.fold_accuracies)} folds")

    def _repr_html_(self) -> str:
        """Return the accuracy and its values by fold for a notebook."""
        values = zip(self.fold_accuracies, self.fold_sizes, strict=True)
        rows = [
            (str(number), f"{accuracy:.1%}", f"{size:,}") for number, (accuracy, size) in enumerate(values, 1)
        ]
        return display.to_html(
            self.sentence(), display.Table(("fold", "accuracy", "images"), rows).shortened()
        )


@explain_arguments()
def cross_validate(
    data: ImageData,
    base: keras.Model,
    *,
    folds: int = 5,
    checkpoints: str | Path | None = None,
    **options: Any,
) -> CrossValidation:
    """Measure the accuracy of a training by cross-validation.

    The images are divided into folds, stratified by class. Duplicates and groups stay in one fold. For each fold, a
    model is trained on the other folds, and predicts the images of this fold. All images count: training images,
    and the validation and test images that `load_data` drew. Validation and test sets of the source are in no fold.
    Images with conflicting labels are used for training only.

    A head on a frozen network takes seconds: the network runs once over all images, and the head and its
    regularization are chosen and solved anew in each fold. The case `"auto"` also chooses the layers of the head in
    each fold, on the training images of the fold alone. Other cases train the network once per fold.

    The interval treats images (or groups) as independent. The models of the folds share training images, so the true
    uncertainty is somewhat larger (Bates et al., 2021, arXiv:2104.00673).

    Args:
        data: images from `load_data`.
        base: a pre-trained network, from `load_backbone` or `keras.applications`.
        folds: number of folds, 2 or more, and at most the number of different images of the largest class.
        checkpoints: folder for finished folds and checkpoints. The same call resumes after an interruption. None saves
            nothing.
        options: options of `TrainConfig` for the case and the training, such as `case`, `cut`, `epochs`, `solver` and
            `seed`. Options of the data and of the output, such as `test`, have no effect.

    Returns:
        The out-of-fold predictions with their accuracy, its interval, the accuracy of each fold, and label issues.

    Raises:
        InputError: the data do not come from `load_data`, an option is unknown or out of range, there are too few
            images for the folds, or `checkpoints` holds another cross-validation.

    Example:
        >>> import transfer
        >>> data = transfer.load_data(transfer.make_shapes(120))
        >>> result = transfer.cross_validate(data, transfer.DemoCNN(weights=None), folds=3, case="small-similar")
        >>> len(result.folds), len(result.fold_accuracies)
        (120, 3)
    """
    check_data(data, "cross_validate(data, base)")
    check_one_class(data, "cross_validate(data, base)")
    base = plain_network(base)
    check_network(base)
    names = [field.name for field in fields(TrainConfig) if field.name not in _NOT_OPTIONS]
    for name in options:
        if name not in names:
            raise unknown("option", name, names)
    config = TrainConfig(**options, folds=folds)
    training = FoldTraining(config, fold_data(data, folds, seed=config.seed), base)
    return run_folds(training, None if checkpoints is None else Path(checkpoints))


def run_folds(training: FoldTraining, folder: Path | None, *, trainings_after: int = 0) -> CrossValidation:
    """Predict the images of all folds, after those that an interrupted run has predicted; log each fold."""
    folded, done = training.folded, 0
    images, count = folded.data.train, folded.count
    training.extract()
    start = time.perf_counter()
    if folder is not None:
        _check_settings(training, folder)
    probabilities = np.zeros((len(images), folded.data.num_classes))
    for number in range(count):
        found = _read_result(folder, number)
        out = np.flatnonzero(folded.folds == number)
        fresh = found is None or len(found) != len(out)
        values = _predict(training, folder, number) if fresh or found is None else found
        done += fresh
        probabilities[out] = values / values.sum(axis=1, keepdims=True)
        accuracy = float((values.argmax(axis=1) == images.labels[out]).mean())
        left = (time.perf_counter() - start) / max(1, done) * (count - number - 1 + trainings_after)
        more = f" About {format_duration(left)} left (estimated)." if done and left > _SHORT else ""
        log.info(
            "Fold %d of %d: accuracy %.1f%% on %d images.%s",
            number + 1,
            count,
            100 * accuracy,
            len(out),
            more,
        )
    return _result(folded, probabilities)


def _result(folded: FoldedData, probabilities: np.ndarray) -> CrossValidation:
    """Return the predictions of the images that a fold tests."""
    tested = folded.tested
    images = folded.data.train.take(tested)
    evaluation = Evaluation(
        folded.data.class_names,
        images.labels,
        probabilities[tested],
        tuple(images.names),
        tuple(images.groups),
        rule=choose_rule(images.labels, probabilities[tested]) if folded.data.ordered else None,
    )
    return CrossValidation(evaluation, folded.folds[tested], label_issues_of(evaluation))


def _predict(training: FoldTraining, folder: Path | None, number: int) -> np.ndarray:
    """Predict a fold, and save its predictions in place of its checkpoints if it was trained."""
    if folder is None or training.exact:
        return training.predict(number, None)
    place = folder / f"{FOLD}{number + 1}"
    probabilities = training.predict(number, place / "training")
    place.mkdir(parents=True, exist_ok=True)
    with replacing(place / _RESULT) as partial, partial.open("wb") as file:
        np.savez(file, probabilities=probabilities)
    shutil.rmtree(place / "training", ignore_errors=True)
    return probabilities


def _read_result(folder: Path | None, number: int) -> np.ndarray | None:
    """Return the predictions of a fold that was finished before; None if there are none."""
    if folder is not None:
        with (
            contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
            np.load(folder / f"{FOLD}{number + 1}" / _RESULT, allow_pickle=False) as file,
        ):
            return np.asarray(file["probabilities"])
    return None


def _check_settings(training: FoldTraining, folder: Path) -> None:
    """Raise if a folder holds another cross-validation; otherwise note the settings of this one."""
    data, folds = training.folded.data, training.folded.folds.tolist()
    images = [
        *zip(digests_of(data.train), data.train.labels.tolist(), folds, strict=True),
        *digests_of(data.val),
    ]
    settings = {
        **json.loads(json.dumps(training.config.result_options, default=str)),
        "images": hashlib.sha256(repr(images).encode()).hexdigest()[:16],
        "network": fingerprint(training.base)[:16],
    }
    if (folder / _SETTINGS).is_file():
        require_same_settings(read_settings(folder / _SETTINGS), settings, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _SETTINGS, json.dumps(settings, indent=2))
