"""Advice on which case to use, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from transfer.adviser.curves import LayerCurve, SizePoint
from transfer.adviser.estimates import MIN_IMPROVEMENT, RANDOM, CaseEstimate, Evidence, best_head
from transfer.adviser.label_issues import DataWarning
from transfer.adviser.probes import RidgeProbe
from transfer.adviser.similarity import Similarity
from transfer.adviser.trials import Trial
from transfer.cases.cuts import ALL_LAYERS
from transfer.cases.policies import POLICIES, SMALL_DATA, Case
from transfer.common import display
from transfer.common.errors import InputError, unknown
from transfer.common.text import format_duration
from transfer.evaluation.metrics import percent_range

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

MAX_LAYERS = 12
"""Maximum number of rows of the layer curve in the text. Of more layers, every second or every third is shown."""


@dataclass(frozen=True, eq=False)
class Advice:
    """The recommended case for some images, and the measurements that it rests on.

    Attributes:
        data: name of the data.
        model: name of the network.
        image_size: height and width in pixels at which the network ran.
        choice: the recommended choice.
        choices: all choices, the highest estimated accuracy first.
        time_budget: limit of the training time in seconds; None is no limit.
        similarity: similarity to the pre-training data; None if it could not be measured.
        images_per_class: number of training images of each class.
        curve: cross-validated accuracy by layer; None if there are too few images.
        sizes: cross-validated accuracy by number of images.
        trial: timing of a few steps of fine-tuning; None if there was no trial.
        warnings: possible problems of the data.
        notes: measurements that could not be made, and the consequences.
        evidence: the numbers that the recommendation rests on.
        seconds: duration of the advice.

    Example:
        >>> import keras, transfer
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> advice = transfer.advise(transfer.load_data("emoji"), base, max_images=100, trial=False)
        >>> advice.case in transfer.Case, advice.choice in advice.choices
        (True, True)
    """

    data: str
    model: str
    image_size: tuple[int, int]
    choice: CaseEstimate
    choices: tuple[CaseEstimate, ...]
    time_budget: float | None
    similarity: Similarity | None
    images_per_class: dict[str, int]
    curve: LayerCurve | None
    sizes: tuple[SizePoint, ...]
    trial: Trial | None
    warnings: tuple[DataWarning, ...]
    notes: tuple[str, ...]
    evidence: Evidence
    seconds: float

    @property
    def case(self) -> Case:
        """Case of the recommended method."""
        return self.choice.case

    @property
    def data_case(self) -> Case:
        """Case of the data by the rule of thumb: small or large, similar to the pre-training data or different."""
        return self.evidence.data_case

    @property
    def cut(self) -> str | None:
        """Recommended cut: a layer, `"all"` (head on all layers), None (fine-tuning) or `"random"` (random weights)."""
        return self.choice.cut

    @property
    def signal(self) -> bool:
        """Whether the features predict the labels better than shuffled labels."""
        return self.evidence.signal

    @property
    def reason(self) -> str:
        """The data, and the recommended method, in three to five sentences."""
        if not self.signal:
            return self._no_signal()
        case = f"case {POLICIES[self.case].number}"
        text = f"{self.data_sentence} Recommended method: {action(self.choice)} ({case})"
        if not self.evidence.heads:
            return f"{text}, by the rule of thumb. There are too few images to estimate the accuracy."
        return (
            f"{text}{self._why()}. Estimated test accuracy {self.choice.expected_accuracy:.0%} (90% interval "
            f"{percent_range(self.choice.interval)}), {_time(self.choice, ' of training here')}.{self._alternative()}"
        )

    def _no_signal(self) -> str:
        """Return both reasons why no layer predicts the labels, with the accuracies."""
        scores = ""
        if self.curve is not None:
            accuracy, shuffled = self.curve.all_layers.accuracy, self.curve.chance[0]
            scores = f" (accuracy {accuracy:.0%}, and {shuffled:.0%} with shuffled labels)"
        return (
            f"No signal: the features of {self.model} predict the labels no better than chance{scores}. Either the "
            "labels are wrong, such as shuffled ones, or the features do not suit the images, such as those of random "
            "weights. Check the labels, or use a pre-trained network or more images."
        )

    @property
    def data_sentence(self) -> str:
        """A sentence on the size and the similarity of the data."""
        count, source = self.evidence.num_train, "the pre-training data"
        if self.similarity is not None and self.similarity.calibrated:
            source = "ImageNet"
        similar = f"of unknown similarity to {source}"
        if self.evidence.similar is not None:
            similar = f"similar to {source}" if self.evidence.similar else f"different from {source}"
        return (
            f"Your data: {'small' if count < SMALL_DATA else 'large'} ({count:,} training images), {similar}; that is "
            f"case {POLICIES[self.data_case].number} by the rule of thumb."
        )

    def _why(self) -> str:
        """Return why the recommended method is not the case of the data; empty if it is."""
        choice, number = self.choice, POLICIES[self.data_case].number
        if choice.case is self.data_case:
            return ""
        rivals = [one for one in self.choices if one.case is self.data_case]
        if not rivals:
            return ", because no early layer is better than the last one"
        rival = max(rivals, key=lambda one: one.expected_accuracy)
        scores = [f"{one.expected_accuracy:.0%}" for one in (choice, rival)]
        if choice.expected_accuracy > rival.expected_accuracy and scores[0] != scores[1]:
            numbers = " against ".join(scores)
            return f", because its estimated test accuracy is higher than that of case {number}: {numbers}"
        if self.time_budget is not None and (rival.seconds or 0) > self.time_budget:
            return f", because case {number} does not fit the time budget"
        if choice.is_head and not rival.is_head:
            return ", because the options ask for a frozen network"
        return f", because case {number} is estimated at {scores[1]}, which is not clearly better than {scores[0]}"

    def _alternative(self) -> str:
        """Return a sentence on fine-tuning, or on the best head if fine-tuning is recommended."""
        others = [choice for choice in self.choices if choice.cut is None and choice is not self.choice]
        others = others or ([best_head(self.choices)] if self.choice.cut is None else [])
        if not others:
            return ""
        other = others[0]
        better = other.expected_accuracy > self.choice.expected_accuracy + MIN_IMPROVEMENT
        title = "More accurate, but slower" if better else "Next best"
        return f" {title}: {action(other)}, {other.expected_accuracy:.0%}, {_time(other)}."

    def to_text(self) -> str:
        """Return the advice as lines of text."""
        counts = list(self.images_per_class.values())
        height, width = self.image_size
        lines = [
            f"Data: {self.data}, {sum(counts):,} training images in {len(counts)} classes of {min(counts):,} to "
            f"{max(counts):,} images.",
            f"Network: {self.model} at {width} x {height} pixels.",
            "",
            self.reason,
            "",
            self._table().to_text(),
            "",
            *self._similarity_lines(),
            *self._size_lines(),
            *self._layer_lines(),
        ]
        for title, texts in self._remarks():
            lines += ["", f"{title}:", *(f"- {text}" for text in texts)] if texts else []
        return "\n".join([*lines, "", f"The advice took {format_duration(self.seconds)}.", ""])

    def _remarks(self) -> list[tuple[str, Sequence[str]]]:
        return [("Warnings", [warning.text for warning in self.warnings]), ("Not measured", self.notes)]

    def _table(self) -> display.Table:
        rows = [
            (
                f"{'->' if choice is self.choice else '  '} {POLICIES[choice.case].number} {action(choice)}",
                f"{choice.expected_accuracy:.1%}",
                percent_range(choice.interval),
                format_duration(choice.seconds),
            )
            for choice in self.choices
        ]
        return display.Table(("Case and action", "est. accuracy", "90% interval", "training time"), rows)

    def __repr__(self) -> str:
        text = f"{action(self.choice)} (case {POLICIES[self.case].number})" if self.signal else "no signal"
        if self.signal and self.evidence.heads:
            interval = percent_range(self.choice.interval)
            text += f", estimated accuracy {self.choice.expected_accuracy:.0%} (90% interval {interval})"
        return display.one_line(self, f"{display.quoted(self.data)} with {self.model}: {text}")

    def _repr_html_(self) -> str:
        """Return the recommendation, the choices and the remarks for a notebook."""
        remarks = [f"{title}: {text}" for title, texts in self._remarks() for text in texts]
        return display.to_html(self.reason, self._table(), *remarks)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return the choices as a pandas data frame, one row per choice, the highest estimate first.

        Its columns are `number` and `case`, `action` in words, `cut`, `expected_accuracy`, the ends `low` and `high` of
        its 90% interval, `seconds` of training, `basis` of the estimate, and whether the choice is `recommended`.

        Raises:
            InputError: pandas is not installed.
        """
        rows = [
            {
                "number": POLICIES[one.case].number,
                "case": str(one.case),
                "action": action(one),
                "cut": one.cut,
                "expected_accuracy": one.expected_accuracy,
                "low": one.interval[0],
                "high": one.interval[1],
                "seconds": one.seconds,
                "basis": one.basis,
                "recommended": one is self.choice,
            }
            for one in self.choices
        ]
        return display.data_frame({name: [row[name] for row in rows] for name in rows[0]})

    def plot(self, figure: str | None = None) -> Figure:
        """Draw a figure of the advice.

        Args:
            figure: `"layer_curve"` is the cross-validated accuracy of each layer, `"four_cases"` the data among the
                four cases. None draws the first one that was measured.

        Raises:
            InputError: the figure does not exist, or nothing was measured that it could show.
        """
        from transfer.adviser.advice_plots import FIGURES, advice_drawings

        if figure is not None and figure not in FIGURES:
            raise unknown("figure", figure, FIGURES)
        drawings = advice_drawings(self)
        draw = (
            drawings.get(figure)
            if figure
            else next((drawings[one] for one in FIGURES if one in drawings), None)
        )
        if draw is None:
            reasons = " ".join(self.notes) or "There are too few images."
            raise InputError(
                f"Expected advice with measurements to draw. Received advice without them. {reasons}"
            )
        return draw()

    def _similarity_lines(self) -> list[str]:
        if self.similarity is None:
            return []
        similar = "similar" if self.similarity.similar else "different"
        percentiles = ", ".join(f"{name} {value:.2f}" for name, value in self.similarity.percentiles.items())
        nearest = f" Nearest reference set: {self.similarity.nearest}." if self.similarity.nearest else ""
        return [
            f"Similarity to the pre-training data: {self.similarity.score:.2f} of 1 ({similar}).{nearest} Percentiles "
            f"among the reference sets: {percentiles}."
        ]

    def _size_lines(self) -> list[str]:
        if len(self.sizes) < 2:
            return []
        points = ", ".join(f"{point.accuracy:.0%} with {point.num_images:,}" for point in self.sizes)
        growth = 100 * self.evidence.growth
        return [f"Data size: accuracy {points} images. Twice as many images: about {growth:+.1f} points."]

    def _layer_lines(self) -> list[str]:
        if self.curve is None:
            return []
        names, step = self.curve.names, -(-len(self.curve.names) // MAX_LAYERS)
        rows = [
            (name, probe, "  <- best single layer" if name == self.curve.cut else "")
            for i, (name, probe) in enumerate(zip(names, self.curve.probes, strict=True))
            if (len(names) - 1 - i) % step == 0 or name == self.curve.cut
        ]
        rows.append(("all layers", self.curve.all_layers, ""))
        width = max(len(name) for name, _, _ in rows)
        return ["Layers: cross-validated accuracy of a linear head, with its standard error"] + [
            f"  {name:{width}} {probe.accuracy:6.1%} +- {probe.standard_error:.1%} "
            f"{'#' * round(30 * probe.accuracy)}{mark}"
            for name, probe, mark in rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as a dictionary for JSON."""
        curve = all_layers = None
        if self.curve is not None:
            pairs = zip(self.curve.names, self.curve.probes, strict=True)
            curve = [{"layer": name, **_scores(probe)} for name, probe in pairs]
            all_layers = _scores(self.curve.all_layers)
        return {
            "data": self.data,
            "model": self.model,
            "image_size": list(self.image_size),
            "data_case": str(self.data_case),
            "case": str(self.case),
            "cut": self.cut,
            "expected_accuracy": self.choice.expected_accuracy,
            "interval": list(self.choice.interval),
            "expected_seconds": self.choice.seconds,
            "reason": self.reason,
            "signal": self.signal,
            "similarity": None if self.similarity is None else self.similarity.score,
            "similarity_parts": None if self.similarity is None else asdict(self.similarity),
            "images_per_class": self.images_per_class,
            "layer_curve": curve,
            "all_layers": all_layers,
            "size_curve": [asdict(point) for point in self.sizes],
            "cases": [
                {**asdict(c), "case": str(c.case), "interval": list(c.interval), "action": action(c)}
                for c in self.choices
            ],
            "trial": None if self.trial is None else asdict(self.trial),
            "time_budget": self.time_budget,
            "warnings": [warning._asdict() for warning in self.warnings],
            "notes": list(self.notes),
            "evidence": {k: v for k, v in asdict(self.evidence).items() if k != "trial"},
            "seconds": round(self.seconds, 2),
        }

    def to_json(self) -> str:
        """Return the advice as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"


def _scores(probe: RidgeProbe) -> dict[str, float]:
    return {"accuracy": float(probe.accuracy), "standard_error": float(probe.standard_error)}


def _time(choice: CaseEstimate, where: str = "") -> str:
    if choice.seconds is None:
        return "training time unknown"
    return (f"about {format_duration(choice.seconds)}" if choice.seconds >= 1 else "under 1 s") + where


def action(choice: CaseEstimate) -> str:
    """Return a choice in words, such as "fine-tune the whole network"."""
    if choice.cut is None:
        if choice.case is Case.LARGE_DIFFERENT:
            return "fine-tune all layers, or restart from random weights"
        return "fine-tune the whole network"
    if choice.cut == RANDOM:
        return "train the whole network from random weights"
    if choice.cut == ALL_LAYERS:
        return "train a new head on all frozen layers"
    if blocks := choice.cut.count(","):  # with the last layer
        return f"train a new head on the last {blocks} frozen blocks"
    if choice.case is Case.SMALL_SIMILAR:
        return "train a new head on the frozen network"
    return f"train a new head on frozen {choice.cut}"
