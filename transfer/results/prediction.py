"""The predictions for images: classes, labels or numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common import display
from transfer.common.decision_rules import decide, expected_ranks
from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, REGRESSION, SINGLE
from transfer.common.text import number, plural
from transfer.common.whole_numbers import at_least
from transfer.images.label_forms import SEPARATOR

if TYPE_CHECKING:
    import pandas

NO_LABEL = "no label"
"""Shown for an image without a predicted label."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        name: Path of the image, or its position in the input if it has no path.
        class_names: Class names in the order of the probabilities; one name, that of the number, for regression.
        probabilities: Probability of each class or label, shape (classes,); None if there is a problem, and for
            regression.
        problem: Why the image could not be read; empty for a readable image.
        distance: Mean cosine distance of the image's features to the nearest training images, 0 to 2. None if the run
            has no `reference.npz`, or if there is a problem.
        known: Whether the image looks like the training images: True, or False if its distance is above that of 95% of
            held-out images. None if there is no distance.
        prediction_set: Class names that contain the true one with the probability `coverage` of `predict`, the most
            probable class first. None without `coverage`, or if there is a problem.
        rule: Rule that decides the label of ordered classes: `"most-probable"`, `"median"` or `"expected"` (the rounded
            expected rank). None for classes without an order.
        task: What the labels are: `"single"`, `"multi"`, `"ordinal"` or `"regression"`.
        thresholds: Probability of each label above which it is predicted, shape (classes,), for the task `"multi"`;
            None is 0.5.
        value: Predicted number of a regression, in the unit of the labels; None otherwise.
        interval: Lower and upper end of the interval that contains the true number with the probability `coverage` of
            `predict`. None without `coverage`.

    Example:
        >>> prediction = Prediction("photo.jpg", ("cat", "dog"), np.array([0.25, 0.75]))
        >>> prediction.label, prediction.top(1)
        ('dog', [('dog', 0.75)])
        >>> Prediction("photo.jpg", ("cat", "dog"), np.array([0.6, 0.75]), task="multi").labels
        ('cat', 'dog')
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: np.ndarray | None
    problem: str = ""
    distance: float | None = None
    known: bool | None = None
    prediction_set: tuple[str, ...] | None = None
    rule: str | None = None
    task: str = SINGLE
    thresholds: np.ndarray | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None

    def __repr__(self) -> str:
        label, more = _cells(self)
        named = label if self.task == REGRESSION or label == NO_LABEL else display.quoted(label)
        more = f"({more})" if self.task == REGRESSION and more else more
        text = self.problem or f"{named} {more}".strip()
        return display.one_line(self, f"{display.quoted(self.name)}: {text}")

    @property
    def label(self) -> str | None:
        """The most probable class, or that of the rule of ordered classes; None if the image could not be read.

        Several labels have bars between them, such as `"cat|dog"`, and `""` means no label. The predicted number of a
        regression is text.
        """
        if self.value is not None:
            return f"{self.value:.7g}"
        if self.probabilities is None:
            return None
        return SEPARATOR.join(self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The predicted labels in the order of `class_names`; one class for single labels; empty for regression."""
        return tuple(self.class_names[k] for k in self._chosen)

    @property
    def probability(self) -> float | None:
        """Probability of the class, 0 to 1; None for several labels and for regression, and for unreadable images."""
        if self.probabilities is None or self.task == MULTI:
            return None
        return float(self.probabilities[self._chosen[0]])

    @property
    def expected_rank(self) -> float | None:
        """Expected value of the rank of ordered classes, 1 for the lowest class; None without an order."""
        if self.probabilities is None or self.rule is None:
            return None
        return float(expected_ranks(self.probabilities[None])[0])

    @property
    def _chosen(self) -> list[int]:
        """Positions of the predicted classes."""
        if self.probabilities is None:
            return []
        if self.task != MULTI:
            return [int(decide(self.probabilities[None], self.rule)[0])]
        limits = 0.5 if self.thresholds is None else self.thresholds
        return np.flatnonzero(self.probabilities > limits).tolist()

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, in descending order."""
        if not at_least(1, count):
            raise InputError(f"Expected a number of classes of 1 or more in top(count). Received: {count!r}.")
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


def _cells(one: Prediction) -> tuple[str, str]:
    """Return the label and its probability as text, or the number and its interval."""
    if one.value is not None:
        interval = f"{number(one.interval[0])} to {number(one.interval[1])}" if one.interval else ""
        return number(one.value), interval
    if one.probabilities is None:
        return "", ""
    of_label = dict(zip(one.class_names, one.probabilities.tolist(), strict=True))
    return one.label or NO_LABEL, ", ".join(f"{of_label[name]:.1%}" for name in one.labels)


class Predictions(list[Prediction]):
    """The predictions of `predict`: a list with one `Prediction` per image.

    Example:
        >>> predictions = Predictions([Prediction("photo.jpg", ("cat", "dog"), np.array([0.25, 0.75]))])
        >>> predictions, predictions[0].label
        (Predictions(1 image), 'dog')
    """

    @property
    def task(self) -> str:
        """What the labels are, as in `Prediction`."""
        return self[0].task if self else SINGLE

    def __repr__(self) -> str:
        problems = sum(bool(one.problem) for one in self)
        text = f", {problems:,} of them cannot be read" if problems else ""
        return display.one_line(self, plural(len(self), "image") + text)

    def _repr_html_(self) -> str:
        """Return names and predictions for a notebook; of many images, the first and the last."""
        rows = [(one.name, *((one.problem, "") if one.problem else _cells(one))) for one in self]
        header = (
            ("name", "value", "interval") if self.task == REGRESSION else ("name", "label", "probability")
        )
        table = display.Table(header, rows, left=2)
        return display.to_html(repr(self), table.shortened() if rows else "")

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with one row per image.

        Its columns are `name`, `label`, `probability` of the class, `problem`, `known`, `expected_rank` of ordered
        classes, and the probability of each class or label under its name. If a class has the name of another column,
        "(class)" is appended to its name. For regression, the columns are `name`, `value`, `low` and `high` of the
        interval if there is one, `problem` and `known`. An image that could not be read has only a name and a problem.

        Raises:
            InputError: pandas is not installed.
        """
        if self.task == REGRESSION:
            return display.data_frame(self._values())
        names = ["name", "label", "probability", "problem", "known"]
        if self.task == MULTI:
            names.remove("probability")
        columns: dict[str, Any] = {name: [getattr(one, name) for one in self] for name in names}
        if any(one.rule is not None for one in self):
            columns["expected_rank"] = [one.expected_rank for one in self]
        classes = self[0].class_names if self else ()
        unknown_row = np.full(len(classes), np.nan)
        rows = [unknown_row if one.probabilities is None else one.probabilities for one in self]
        values = np.reshape(rows, (len(self), len(classes)))
        return display.data_frame(columns | display.class_columns(classes, values, columns))

    def _values(self) -> dict[str, Any]:
        """Return the columns of predicted numbers."""
        columns: dict[str, Any] = {name: [getattr(one, name) for one in self] for name in ("name", "value")}
        if any(one.interval for one in self):
            for place, name in enumerate(("low", "high")):
                columns[name] = [one.interval[place] if one.interval else None for one in self]
        return columns | {name: [getattr(one, name) for one in self] for name in ("problem", "known")}
