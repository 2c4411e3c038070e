"""The predicted numbers of a regression, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common import display
from transfer.common.bootstrap import score_interval
from transfer.common.label_metrics import r2, r2_scores
from transfer.common.tasks import REGRESSION, TASK, score_text
from transfer.common.text import number, plural
from transfer.evaluation.prediction_sets import COVERAGE
from transfer.evaluation.sentences import as_json, counted_images, require_images, seen_warning

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ValueEvaluation:
    """Predicted numbers of a model for some images, and the metrics computed from them.

    Attributes:
        class_names: one name, that of the number.
        labels: true number of each image, shape (N,).
        predictions: predicted number of each image, shape (N,), in the same unit.
        names: name of each image.
        groups: group of each image, such as its patient; empty without groups.
        seen: number of images that were used for training or validation; 0 for held-out images.
        interval_width: width of the interval around a prediction that contains the true number with a probability of
            90%: twice the split-conformal quantile of the absolute errors on the validation images (Angelopoulos and
            Bates, 2021, arXiv:2107.07511). None without these, or with fewer than 9 of them.

    Example:
        >>> evaluation = ValueEvaluation(("age",), np.array([1.0, 2, 3]), np.array([1.5, 2, 2.5]), ("a", "b", "c"))
        >>> evaluation.r2, round(evaluation.mean_absolute_error, 3)
        (0.75, 0.333)
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    names: tuple[str, ...]
    groups: Sequence[str] = ()
    seen: int = 0
    interval_width: float | None = None

    @property
    def outputs(self) -> np.ndarray:
        """Outputs of the model, shape (N, 1): the predictions."""
        return self.predictions[:, None]

    @property
    def errors(self) -> np.ndarray:
        """Predicted number minus true number of each image, shape (N,)."""
        return self.predictions - self.labels

    @property
    def r2(self) -> float:
        """Coefficient of determination R2: 1 is perfect, and 0 is as good as the mean of the true numbers.

        It is not a number if the true numbers are equal.
        """
        return r2(self.predictions, self.labels)

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Return R2 for each row of weights of the images, shape (rows, N)."""
        return r2_scores(self.predictions, self.labels, weights)

    def take(self, positions: np.ndarray) -> ValueEvaluation:
        """Return the evaluation of the images at `positions`, in that order."""
        names = tuple(self.names[k] for k in positions)
        groups = tuple(self.groups[k] for k in positions) if len(self.groups) else ()
        arrays = {"labels": self.labels[positions], "predictions": self.predictions[positions]}
        return replace(self, names=names, groups=groups, **arrays)

    @property
    def score(self) -> float:
        """The metric of the task: R2."""
        return self.r2

    @property
    def headline(self) -> str:
        """The metrics of the task as text, such as "R2: 0.824, mean absolute error: 3.1"."""
        score = score_text(TASK[REGRESSION].metric, self.r2)
        return f"R2: {score}, mean absolute error: {number(self.mean_absolute_error)}"

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of R2, by the bootstrap over images, or over groups if there are any."""
        return score_interval(self.scores, len(self.labels), groups=self.groups)

    @property
    def mean_absolute_error(self) -> float:
        """Mean absolute error, in the unit of the numbers."""
        return float(np.abs(self.errors).mean())

    @property
    def median_absolute_error(self) -> float:
        """Median absolute error, in the unit of the numbers."""
        return float(np.median(np.abs(self.errors)))

    @property
    def root_mean_squared_error(self) -> float:
        """Root of the mean squared error, in the unit of the numbers."""
        return float(np.sqrt(self.loss))

    @property
    def loss(self) -> float:
        """Mean squared error, in the square of the unit of the numbers."""
        return float((self.errors**2).mean())

    @property
    def mistakes(self) -> np.ndarray:
        """Positions of the images, the largest absolute error first; images without an error are left out."""
        errors = np.abs(self.errors)
        order = np.argsort(-errors, kind="stable")
        return order[errors[order] > 0]

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as a dictionary for JSON."""
        values = {
            "num_images": len(self.labels),
            "num_seen": self.seen,
            "r2": self.r2,
            "interval": list(self.interval),
            "mean_absolute_error": self.mean_absolute_error,
            "median_absolute_error": self.median_absolute_error,
            "root_mean_squared_error": self.root_mean_squared_error,
            "mean_error": float(self.errors.mean()),
            "mean_label": float(self.labels.mean()),
            "standard_deviation": float(self.labels.std()),
            "interval_width": self.interval_width,
        }
        return dict(as_json(values))

    def to_text(self) -> str:
        """Return the metrics as lines of text."""
        return "\n".join([*self._sentences(), ""]) if len(self.labels) else "No images.\n"

    def _sentences(self) -> list[str]:
        low, high = self.interval
        mean, spread = number(self.labels.mean()), number(self.labels.std())
        lines = [
            f"R2: {self.r2:.3f} on {counted_images(self)} (95% interval {low:.3f} to {high:.3f}).",
            *seen_warning(self),
            f"Mean absolute error: {number(self.mean_absolute_error)}. Median absolute error: "
            f"{number(self.median_absolute_error)}. Root mean squared error: {number(self.root_mean_squared_error)}.",
            f"True {self.class_names[0]}: mean {mean}, standard deviation {spread}. Mean of predicted minus true: "
            f"{number(self.errors.mean())}.",
        ]
        if self.interval_width is not None:
            lines.append(f"{COVERAGE:.0%} intervals of predictions are {number(self.interval_width)} wide.")
        return lines

    def __repr__(self) -> str:
        count = len(self.labels)
        if not count:
            return display.one_line(self, "no images")
        low, high = self.interval
        text = f"R2 {self.r2:.3f} (95% interval {low:.3f} to {high:.3f}) on {plural(count, 'image')}"
        seen = f", {self.seen:,} of them used for training or validation" if self.seen else ""
        return display.one_line(self, text + seen)

    def _repr_html_(self) -> str:
        """Return the metrics for a notebook."""
        return display.to_html(*self._sentences()) if len(self.labels) else display.to_html("No images.")

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with one row per image.

        Its columns are `name`, `label` and `predicted` (numbers), and `group` if there are groups.

        Raises:
            InputError: pandas is not installed.
        """
        columns: dict[str, Any] = {
            "name": list(self.names),
            "label": self.labels,
            "predicted": self.predictions,
        }
        columns |= {"group": list(self.groups)} if len(self.groups) else {}
        return display.data_frame(columns)

    def plot_values(self) -> Figure:
        """Draw the predicted number of each image over its true number, with the 90% interval of predictions."""
        from transfer.evaluation.value_plots import value_plot

        require_images(self)
        return value_plot(self)
