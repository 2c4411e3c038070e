"""The predictions of a model for images with several labels, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common import display
from transfer.common.bootstrap import score_interval
from transfer.common.label_metrics import mean_average_precision, mean_average_precisions
from transfer.common.text import plural
from transfer.evaluation.label_metrics import (
    LabelScore,
    co_occurrence,
    f1_scores,
    label_scores,
)
from transfer.evaluation.metrics import percent_range
from transfer.evaluation.sentences import as_json, counted_images, percent, require_images, seen_warning
from transfer.images.label_forms import label_texts

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

MOST_PAIRS = 10
"""Maximum number of pairs of labels in `LabelEvaluation.to_dict`."""


@dataclass(frozen=True)
class LabelEvaluation:
    """Predicted probabilities of a model for images with several labels, and the metrics computed from them.

    Attributes:
        class_names: names of the labels, in the order of the columns.
        labels: labels of each image, 0 or 1, shape (N, labels).
        probabilities: predicted probability of each label, 0 to 1, shape (N, labels).
        names: name of each image.
        groups: group of each image, such as its patient; empty without groups.
        seen: number of images that were used for training or validation; 0 for held-out images.
        thresholds: probability of each label above which it is predicted, shape (labels,); 0.5 if empty.

    Example:
        >>> labels, probabilities = np.array([[1, 1], [0, 1], [1, 0]]), np.array([[0.9, 0.3], [0.2, 0.8], [0.6, 0.1]])
        >>> evaluation = LabelEvaluation(("cat", "dog"), labels, probabilities, ("a", "b", "c"))
        >>> evaluation.mean_average_precision, evaluation.predictions.tolist(), round(evaluation.f1_micro, 3)
        (1.0, [[1, 0], [0, 1], [1, 0]], 0.857)
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]
    groups: Sequence[str] = ()
    seen: int = 0
    thresholds: Sequence[float] | np.ndarray = ()

    @property
    def outputs(self) -> np.ndarray:
        """Outputs of the model: the probabilities."""
        return self.probabilities

    @property
    def limits(self) -> np.ndarray:
        """Threshold of each label, shape (labels,)."""
        return np.array(self.thresholds) if len(self.thresholds) else np.full(len(self.class_names), 0.5)

    @property
    def predictions(self) -> np.ndarray:
        """Predicted labels of each image, int8 of 0 and 1, shape (N, labels)."""
        return (self.probabilities > self.limits).astype("int8")

    @cached_property
    def mean_average_precision(self) -> float:
        """Mean of the average precision of the labels that have images, 0 to 1, without interpolation."""
        return mean_average_precision(self.probabilities, self.labels)

    @property
    def score(self) -> float:
        """The metric of the task: the mean average precision."""
        return self.mean_average_precision

    @property
    def headline(self) -> str:
        """The metric of the task as text, such as "mean average precision: 73.3%"."""
        return f"mean average precision: {percent(self.score)}"

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean average precision, by the bootstrap over images, or over groups if there are any."""
        return score_interval(self.scores, len(self.labels), groups=self.groups, cost=len(self.class_names))

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Return the metric of the task for each row of weights of the images, shape (rows, N)."""
        return mean_average_precisions(self.probabilities, self.labels, weights)

    def take(self, positions: np.ndarray) -> LabelEvaluation:
        """Return the evaluation of the images at `positions`, in that order."""
        names = tuple(self.names[k] for k in positions)
        groups = tuple(self.groups[k] for k in positions) if len(self.groups) else ()
        arrays = {"labels": self.labels[positions], "probabilities": self.probabilities[positions]}
        return replace(self, names=names, groups=groups, **arrays)

    @property
    def f1_micro(self) -> float:
        """F1 of all decisions together, 0 to 1."""
        return f1_scores(self.predictions, self.labels)["micro"]

    @property
    def f1_macro(self) -> float:
        """Mean F1 of the labels that have images, 0 to 1."""
        return f1_scores(self.predictions, self.labels)["macro"]

    @property
    def exact_match(self) -> float:
        """Fraction of images whose labels are all predicted, and no others, 0 to 1."""
        return float((self.predictions == self.labels).all(axis=1).mean())

    @property
    def loss(self) -> float:
        """Binary cross-entropy, the mean over images and labels, in nats."""
        least = np.finfo(self.probabilities.dtype).eps
        right = np.where(self.labels > 0, self.probabilities, 1 - self.probabilities)
        return float(-np.log(np.maximum(right, least)).mean())

    @cached_property
    def by_label(self) -> tuple[LabelScore, ...]:
        """Average precision, precision, recall and F1 of each label; not a number for labels without images."""
        return label_scores(self.probabilities, self.predictions, self.labels, self.class_names)

    @property
    def co_occurrence(self) -> np.ndarray:
        """Number of images with both labels of each pair, shape (labels, labels); the diagonal counts each label."""
        return co_occurrence(self.labels)

    @property
    def mistakes(self) -> np.ndarray:
        """Position of the image and of the label of each wrong decision, shape (M, 2), the clearest first.

        The order is that of the distance to the threshold, as a fraction of the largest possible one.
        """
        probabilities, limits = self.probabilities, self.limits
        above = (probabilities - limits) / np.maximum(1 - limits, 1e-12)
        below = (limits - probabilities) / np.maximum(limits, 1e-12)
        images, labels = np.nonzero(self.predictions != self.labels)
        clear = np.where(self.labels > 0, below, above)[images, labels]
        return np.stack([images, labels], axis=1)[np.argsort(-clear, kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as a dictionary for JSON."""
        values = {
            "num_images": len(self.labels),
            "num_seen": self.seen,
            "mean_average_precision": self.mean_average_precision,
            "interval": list(self.interval),
            "f1_micro": self.f1_micro,
            "f1_macro": self.f1_macro,
            "exact_match": self.exact_match,
            "log_loss": self.loss,
            "thresholds": self.limits.tolist(),
            "labels": [score._asdict() for score in self.by_label],
            "pairs": [dict(zip(("labels", "images"), pair, strict=True)) for pair in self._pairs(MOST_PAIRS)],
        }
        return dict(as_json(values))

    def _pairs(self, most: int) -> list[tuple[list[str], int]]:
        """Return the pairs of labels that most images have together."""
        counts = np.triu(self.co_occurrence, 1)
        pairs = sorted(np.argwhere(counts).tolist(), key=lambda pair: (-counts[*pair], pair))
        return [([self.class_names[k] for k in pair], int(counts[*pair])) for pair in pairs[:most]]

    def to_text(self) -> str:
        """Return the metrics as lines of text."""
        if not len(self.labels):
            return "No images.\n"
        lines = [*self._sentences(), "", self._table(self.by_label).to_text()]
        if pairs := self._pairs(5):
            lines += ["", "Most frequent pairs of labels:"]
            lines += [f"  {' and '.join(names)}: {plural(count, 'image')}" for names, count in pairs]
        return "\n".join([*lines, ""])

    def _sentences(self) -> list[str]:
        return [
            f"Mean average precision: {percent(self.score)} on {counted_images(self)} (95% interval "
            f"{percent_range(self.interval, 1)}).",
            *seen_warning(self),
            f"F1: micro {percent(self.f1_micro)}, macro {percent(self.f1_macro)}. All labels right: "
            f"{self.exact_match:.1%} of the images.",
            f"Binary cross-entropy: {self.loss:.3f}.",
        ]

    def _table(self, scores: Sequence[LabelScore]) -> display.Table:
        limits = dict(zip(self.class_names, self.limits.tolist(), strict=True))
        rows = [
            (one.name, *map(percent, one[1:5]), f"{limits[one.name]:.2f}", f"{one.images:,}")
            for one in scores
        ]
        header = ("label", "average precision", "precision", "recall", "F1", "threshold", "images")
        return display.Table(header, rows)

    def __repr__(self) -> str:
        count = len(self.labels)
        if not count:
            return display.one_line(self, f"no images, {len(self.class_names)} labels")
        interval = percent_range(self.interval)
        text = f"mean average precision {percent(self.score)} (95% interval {interval}) on {plural(count, 'image')}"
        seen = f", {self.seen:,} of them used for training or validation" if self.seen else ""
        return display.one_line(self, text + seen)

    def _repr_html_(self) -> str:
        """Return the metrics for a notebook; of many labels, those with the lowest average precision."""
        if not len(self.labels):
            return display.to_html("No images.")
        scores, most, hidden = self.by_label, display.MAX_ROWS, ""
        if len(scores) > most:
            hidden = f"The {most} of {len(scores):,} labels with the lowest average precision:"
            scores = tuple(self.lowest(most))
        return display.to_html(*self._sentences(), hidden, self._table(scores))

    def lowest(self, count: int) -> list[LabelScore]:
        """Return the scores of the labels with the lowest average precision; those without images are left out."""
        return sorted((one for one in self.by_label if one.images), key=lambda one: one.average_precision)[
            :count
        ]

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with one row per image.

        Its columns are `name`, `label` and `predicted` (names with bars between them), `group` if there are groups,
        and the probability of each label under the label's name. If a label has the name of another column, "(class)"
        is appended to its name.

        Raises:
            InputError: pandas is not installed.
        """
        columns: dict[str, Any] = {
            "name": list(self.names),
            "label": label_texts(self.labels, self.class_names),
            "predicted": label_texts(self.predictions, self.class_names),
        }
        columns |= {"group": list(self.groups)} if len(self.groups) else {}
        return display.data_frame(
            columns | display.class_columns(self.class_names, self.probabilities, columns)
        )

    def plot_labels(self) -> Figure:
        """Draw the average precision, recall and precision of each label, the lowest average precision at the top."""
        from transfer.evaluation.label_plots import label_plot

        require_images(self)
        return label_plot(self)

    def plot_co_occurrence(self) -> Figure:
        """Draw which labels images have together: true and predicted counts of each pair."""
        from transfer.evaluation.label_plots import co_occurrence_plot

        require_images(self)
        return co_occurrence_plot(self)
