"""Compare an exported file with Keras, and decide whether it is good enough."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.bootstrap import score_interval
from transfer.common.display import one_line, quoted
from transfer.common.tasks import MULTI, REGRESSION, SINGLE, TASK, score_text
from transfer.common.text import plural
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.images.label_forms import task_of

MIN_AGREEMENT = 0.99
"""Smallest fraction of images on which a float file must predict the same class as Keras. Not 1, since an image may
lie between two classes. Ties (see `TIE`) always count as agreement."""

TIE = 1e-3
"""Two classes whose probabilities differ by less than this are tied: rounding decides between them."""

MAX_DIFFERENCE = {None: 1e-3, "float16": 0.2}
"""Largest difference of a probability from Keras'. Rounding in float32 caused 1.4e-5 at most. float16 has three digits;
rounded weights caused up to 0.06 where two classes were close. A mistake, such as images scaled twice, causes more."""

SAME_NUMBER = 0.01
"""Two predicted numbers that differ by less than this fraction of the standard deviation of Keras' numbers are the
same. The largest difference is in this unit, too."""

MAX_ACCURACY_LOSS = 0.01
"""Accuracy, mean average precision or R2 that an int8 file may lose."""

CHANCE = 1.64
"""Standard deviations that an int8 file may lose on top of `MAX_ACCURACY_LOSS`. With 1.64, 5% of the files that lose
exactly this much are rejected; with 0, half of them. Only images on which one of the two is correct add variance."""


@dataclass(frozen=True)
class Exported:
    """An exported file, with the results of its verification."""

    path: Path
    kind: str
    quantize: str | None  # "float16" or "int8"
    size: int  # bytes of all files that the runtime loads
    num_images: int
    # Largest difference of a probability from Keras', 0 to 1; of a number, in standard deviations of Keras' numbers.
    largest_difference: float
    agreement: float  # fraction of images with the same class, labels or number as Keras, 0 to 1
    accuracy: float | None  # accuracy of the file, 0 to 1; None for several labels and for regression
    keras_accuracy: float | None
    images_per_second: float
    keras_images_per_second: float
    num_gained: int = 0  # images on which only the file is correct
    num_lost: int = 0  # images on which only Keras is correct
    task: str = SINGLE
    score: float | None = None  # mean average precision or R2 of the file; None for classes
    keras_score: float | None = None
    least_loss: float | None = None  # of the score: 95% of the losses in a bootstrap are larger

    def __repr__(self) -> str:
        kind = f"{format_name(self.kind, self.quantize)}, {self.size / 1e6:.1f} MB"
        checked = f"same {self._what} as Keras for {self.agreement:.1%} of {plural(self.num_images, 'image')}"
        return one_line(self, f"{quoted(str(self.path))}: {kind}; {checked}")

    @property
    def _what(self) -> str:
        """What the file predicts."""
        return {MULTI: "labels", REGRESSION: "number"}.get(self.task, "class")

    @property
    def _scores(self) -> tuple[str, str, str]:
        """The name of the metric, and its values for the file and for Keras."""
        metric = TASK[self.task]
        pair = (self.accuracy, self.keras_accuracy) if self.score is None else (self.score, self.keras_score)
        values = [score_text(metric.metric, float("nan") if value is None else value) for value in pair]
        return metric.metric_name, values[0], values[1]

    @property
    def problem(self) -> str:
        """Why the file is not good enough; empty for a good file."""
        if not math.isfinite(self.largest_difference):
            return "it returns NaN or infinity"
        if self.quantize == "int8":
            name, own, of_keras = self._scores
            most = f"{MAX_ACCURACY_LOSS:g}" if self.task == REGRESSION else f"{MAX_ACCURACY_LOSS:.0%}"
            text = f"its {name} is {own} and that of Keras {of_keras}, a loss of more than {most}"
            return f"{text} that is not due to chance" if self._loses_too_much else ""
        if self.agreement < MIN_AGREEMENT:
            return (
                f"it predicts the same {self._what} for {self.agreement:.1%}, less than {MIN_AGREEMENT:.0%}"
            )
        bound = MAX_DIFFERENCE[self.quantize]
        if self.largest_difference > bound:
            return f"{self._differs} {self.largest_difference:.2g}{self._unit}, more than {bound:g}"
        return ""

    @property
    def _loses_too_much(self) -> bool:
        """Whether an int8 file loses more of the score than it may, beyond chance."""
        if self.task in (MULTI, REGRESSION):
            return self.least_loss is not None and self.least_loss > MAX_ACCURACY_LOSS
        chance = CHANCE * math.sqrt(self.num_lost + self.num_gained)
        return self.num_lost - self.num_gained > MAX_ACCURACY_LOSS * self.num_images + chance

    @property
    def _differs(self) -> str:
        return "a number differs by" if self.task == REGRESSION else "a probability differs by"

    @property
    def _unit(self) -> str:
        return " standard deviations" if self.task == REGRESSION else ""

    def to_dict(self) -> dict[str, Any]:
        """Return all values but the path and those of other tasks, for JSON."""
        others = {name for name in _OF_SOME_TASKS if getattr(self, name) is None}
        return {name: value for name, value in asdict(self).items() if name not in {"path", *others}}

    def to_text(self) -> str:
        """Return a line that describes the file and its verification."""
        (name, own, of_keras), differ = (
            self._scores,
            "numbers" if self.task == REGRESSION else "probabilities",
        )
        return (
            f"{format_name(self.kind, self.quantize)}: {self.path}, {self.size / 1e6:.1f} MB. Compared with Keras on "
            f"{self.num_images:,} held-out images: same {self._what} for {self.agreement:.1%}; {differ} differ by "
            f"{self.largest_difference:.2g}{self._unit} at most; {name} {own} (Keras {of_keras}); "
            f"{self.images_per_second:,.0f} images/s (Keras {self.keras_images_per_second:,.0f})."
        )


def format_name(kind: str, quantize: str | None) -> str:
    """Return the name of a format with its quantization, such as "litert int8"."""
    return f"{kind} {quantize}" if quantize else kind


_OF_SOME_TASKS = ("accuracy", "keras_accuracy", "score", "keras_score", "least_loss")


def compare(
    outputs: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray,
    *,
    task: str = SINGLE,
    thresholds: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare a file's outputs with Keras', both of shape (N, outputs); return fields of `Exported`."""
    unit = max(float(expected.std()), 1e-30) if task == REGRESSION else 1.0
    finite = np.isfinite(outputs).all()
    found: dict[str, Any] = {"num_images": len(labels), "task": task}
    found["largest_difference"] = float(np.abs(outputs - expected).max()) / unit if finite else math.inf
    if not finite or task not in (MULTI, REGRESSION):
        return found | _compare_classes(outputs, expected, labels)
    if task == REGRESSION:
        names: tuple[str, ...] = ("",)
        pair: list[Any] = [ValueEvaluation(names, labels, values[:, 0], ()) for values in (outputs, expected)]
        same = np.abs(outputs - expected)[:, 0] <= SAME_NUMBER * unit
    else:
        names = tuple(map(str, range(labels.shape[1])))
        limits = np.full(len(names), 0.5) if thresholds is None else thresholds
        pair = [
            LabelEvaluation(names, labels, values, (), thresholds=limits) for values in (outputs, expected)
        ]
        tie = np.abs(expected - limits) < TIE
        same = (tie | (pair[0].predictions == pair[1].predictions)).all(axis=1)
    own, of_keras = pair
    losses = score_interval(
        lambda weights: of_keras.scores(weights) - own.scores(weights),
        len(labels),
        cost=len(names),
        confidence=0.9,
    )
    return found | {
        "agreement": float(same.mean()),
        "accuracy": None,
        "keras_accuracy": None,
        "score": own.score,
        "keras_score": of_keras.score,
        "least_loss": losses[0],
    }


def _compare_classes(probabilities: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compare the classes of a file with Keras'; return fields of `Exported`."""
    if task_of(labels) != SINGLE:  # a file of another task that returns NaN or infinity
        return {"agreement": 0.0, "accuracy": None, "keras_accuracy": None}
    top = np.sort(expected, axis=1)
    tie = top[:, -1] - top[:, -2] < TIE
    predicted, keras_predicted = probabilities.argmax(axis=1), expected.argmax(axis=1)
    correct, keras_correct = predicted == labels, keras_predicted == labels
    return {
        "agreement": float(np.mean(tie | (predicted == keras_predicted))),
        "accuracy": float(correct.mean()),
        "keras_accuracy": float(keras_correct.mean()),
        "num_gained": int((correct & ~keras_correct).sum()),
        "num_lost": int((keras_correct & ~correct).sum()),
    }
