"""The predictions of a model on some images, and their metrics as numbers, text, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common import display
from transfer.common.decision_rules import decide, expected_ranks
from transfer.common.errors import InputError
from transfer.common.text import plural
from transfer.evaluation.metrics import (
    Calibration,
    ClassScore,
    Confused,
    accuracy_interval,
    calibration,
    class_scores,
    confused_pairs,
    confusion_matrix,
    log_loss,
    percent_range,
    top_k,
)
from transfer.evaluation.ordinal import OrdinalScores, describe_scores, ordinal_scores
from transfer.evaluation.sentences import counted_images, require_images, seen_warning

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

MOST_CONFUSED = 10
"""Maximum number of pairs of confused classes in `Evaluation.to_dict`."""


@dataclass(frozen=True)
class Evaluation:
    """Predicted probabilities of a model on some images, and the metrics computed from them.

    Attributes:
        class_names: names in the order of the labels.
        labels: true class of each image, shape (N,).
        probabilities: predicted probabilities, shape (N, classes); rows sum to 1.
        names: name of each image.
        groups: group of each image, such as its patient; empty without groups.
        seen: number of images that were used for training or validation; 0 for held-out images.
        rule: rule that decides the classes of ordered classes, `"most-probable"`,
            `"median"` or `"expected"` (the rounded expected rank). None for classes without an order.

    Example:
        >>> evaluation = Evaluation(("ant", "bee"), np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]), ("a", "b"))
        >>> evaluation.accuracy, evaluation.confusion.tolist()
        (0.5, [[1, 0], [1, 0]])
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]
    groups: Sequence[str] = ()
    seen: int = 0
    rule: str | None = None

    @property
    def predictions(self) -> np.ndarray:
        """Predicted class of each image, shape (N,): the most probable one, or that of the rule of ordered classes."""
        return decide(self.probabilities, self.rule)

    @property
    def confidences(self) -> np.ndarray:
        """Probability of the predicted class of each image, shape (N,)."""
        return self.probabilities[np.arange(len(self.labels)), self.predictions]

    @cached_property
    def ordinal(self) -> OrdinalScores | None:
        """Mean absolute error in ranks, quadratic weighted kappa (Cohen, 1968) and accuracy within one rank.

        None for classes without an order.
        """
        return ordinal_scores(self.confusion) if self.rule is not None else None

    @property
    def outputs(self) -> np.ndarray:
        """Outputs of the model: the probabilities."""
        return self.probabilities

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified images, 0 to 1."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def score(self) -> float:
        """The metric of the task: the accuracy."""
        return self.accuracy

    @property
    def headline(self) -> str:
        """The metric of the task as text, such as "accuracy: 86.0%"."""
        return f"accuracy: {self.accuracy:.1%}"

    @property
    def loss(self) -> float:
        """Log loss: mean negative log probability of the true class, in nats."""
        return log_loss(self.labels, self.probabilities)

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix of counts, shape (classes, classes); rows are true classes."""
        return confusion_matrix(self.labels, self.predictions, len(self.class_names))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy, by the bootstrap over images, or over groups if there are any."""
        return accuracy_interval(self.labels == self.predictions, groups=self.groups)

    def top_k(self, k: int) -> float:
        """Fraction of images whose class is among the `k` most probable classes, 0 to 1."""
        return top_k(self.labels, self.probabilities, k)

    @cached_property
    def by_class(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of each class."""
        return class_scores(self.labels, self.predictions, self.class_names)

    @property
    def macro(self) -> ClassScore:
        """Macro average: mean precision, recall and F1 over the classes that have images."""
        scores = [score for score in self.by_class if score.images]
        precision, recall, f1 = (float(np.mean([score[i] for score in scores])) for i in (1, 2, 3))
        return ClassScore("macro average", precision, recall, f1, len(self.labels))

    @cached_property
    def calibration(self) -> Calibration:
        """Confidence and accuracy in bins of equal counts, and the expected calibration error in these bins."""
        return calibration(self.labels, self.probabilities)

    @property
    def confused(self) -> tuple[Confused, ...]:
        """Pairs of confused classes, the most frequent first."""
        return confused_pairs(self.confusion, self.class_names)

    @property
    def mistakes(self) -> np.ndarray:
        """Indices of misclassified images, the highest probability of the predicted, wrong class first."""
        wrong = np.flatnonzero(self.labels != self.predictions)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as a dictionary for JSON."""
        macro, ks = self.macro, range(1, min(5, len(self.class_names)) + 1)
        return {
            "num_images": len(self.labels),
            "num_seen": self.seen,
            "accuracy": self.accuracy,
            **({"decision_rule": self.rule, **self.ordinal._asdict()} if self.ordinal else {}),
            "interval": list(self.interval),
            "top_k": {str(k): self.top_k(k) for k in ks},
            "log_loss": self.loss,
            "calibration_error": self.calibration.error,
            "macro": {"precision": macro.precision, "recall": macro.recall, "f1": macro.f1},
            "classes": [score._asdict() for score in self.by_class],
            "confused": [pair._asdict() for pair in self.confused[:MOST_CONFUSED]],
        }

    def to_text(self) -> str:
        """Return the metrics as lines of text."""
        if not len(self.labels):
            return "No images.\n"
        lines = [*self._sentences(), "", self._class_table([*self.by_class, self.macro]).to_text()]
        if self.confused:
            lines += ["", "Most frequent confusions:"]
            lines += [
                f"  {pair.label} predicted as {pair.predicted}: {pair.images:,} ({pair.fraction:.0%})"
                for pair in self.confused[:5]
            ]
        return "\n".join([*lines, ""])

    def _sentences(self) -> list[str]:
        k = min(5, len(self.class_names) - 1)
        lines = [
            f"Accuracy: {self.accuracy:.1%} on {counted_images(self)} (95% interval "
            f"{percent_range(self.interval, 1)}).",
            *seen_warning(self),
        ]
        lines += [text.strip()] if (text := ordinal_text(self)) else []
        lines += [f"Top-{k} accuracy: {self.top_k(k):.1%}."] if k > 1 else []
        lines.append(
            f"Log loss: {self.loss:.3f}. Expected calibration error: {self.calibration.error:.3f} (0 is perfect)."
        )
        return lines

    def _class_table(self, scores: Sequence[ClassScore]) -> display.Table:
        rows = [
            (one.name, *(f"{value:.1%}" for value in (one.precision, one.recall, one.f1)), f"{one.images:,}")
            for one in scores
        ]
        return display.Table(("class", "precision", "recall", "F1", "images"), rows)

    def __repr__(self) -> str:
        count = len(self.labels)
        if not count:
            return display.one_line(self, f"no images, {len(self.class_names)} classes")
        text = f"accuracy {self.accuracy:.1%} (95% interval {percent_range(self.interval)}) on {plural(count, 'image')}"
        seen = f", {self.seen:,} of them used for training or validation" if self.seen else ""
        return display.one_line(self, text + seen)

    def _repr_html_(self) -> str:
        """Return the metrics for a notebook; of many classes, those with the lowest F1."""
        if not len(self.labels):
            return display.to_html("No images.")
        scores, most = self.by_class, display.MAX_ROWS
        hidden = ""
        if len(scores) > most:
            hidden = f"The {most} of {len(scores):,} classes with the lowest F1:"
            scores = tuple(sorted((one for one in scores if one.images), key=lambda one: one.f1)[:most])
        return display.to_html(*self._sentences(), hidden, self._class_table([*scores, self.macro]))

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with one row per image.

        Its columns are `name`, `label`, `predicted`, `group` if there are groups, `expected_rank` of ordered classes
        (1 for the lowest class), and the probability of each class under the class's name. If a class has the name of
        another column, "(class)" is appended to its name.

        Raises:
            InputError: pandas is not installed.
        """
        names = np.array(self.class_names, dtype=object)
        columns: dict[str, Any] = {
            "name": list(self.names),
            "label": names[self.labels],
            "predicted": names[self.predictions],
        }
        columns |= {"group": list(self.groups)} if len(self.groups) else {}
        columns |= {"expected_rank": expected_ranks(self.probabilities)} if self.rule is not None else {}
        return display.data_frame(
            columns | display.class_columns(self.class_names, self.probabilities, columns)
        )

    def plot_confusion(self) -> Figure:
        """Draw the confusion matrix; each row is a true class."""
        from transfer.evaluation.evaluation_plots import confusion_matrix

        return confusion_matrix(self._not_empty())

    def plot_classes(self) -> Figure:
        """Draw recall and precision of each class with 95% intervals, the lowest F1 at the top."""
        from transfer.evaluation.evaluation_plots import class_plot

        return class_plot(self._not_empty())

    def plot_calibration(self) -> Figure:
        """Draw the reliability diagram: accuracy by confidence, in bins of nearly equal numbers of images."""
        from transfer.evaluation.evaluation_plots import calibration_plot

        return calibration_plot(self._not_empty().calibration)

    def _not_empty(self) -> Evaluation:
        require_images(self)
        return self


def ordinal_text(evaluation: Evaluation) -> str:
    """Return the metrics of ordered classes as sentences with a space at the end; empty for other classes."""
    scores = evaluation.ordinal
    return f"{describe_scores(scores, evaluation.rule)} " if scores else ""


def check_evaluation(value: Any, call: str) -> None:
    """Raise unless an argument is an evaluation of single labels; `call` shows the order of arguments."""
    if isinstance(value, Evaluation):
        return
    advice = "Make one first: evaluation = transfer.evaluate(model, data)."
    if hasattr(value, "headline"):  # of another task
        advice = "It needs one label per image: load the images with task='single' or 'ordinal'."
    raise InputError(
        f"Expected an evaluation in {call}. Received: {'None' if value is None else type(value).__name__}. {advice}"
    )
