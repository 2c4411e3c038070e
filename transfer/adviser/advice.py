"""Advice as people read it, a table and a few sentences, and as programs do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from transfer.adviser.curves import LayerCurve, SizePoint
from transfer.adviser.estimates import RANDOM, Choice, Evidence, best_head, in_words
from transfer.adviser.label_issues import DataWarning
from transfer.adviser.similarity import Similarity
from transfer.adviser.trials import Trial
from transfer.cases.cuts import ALL_LAYERS
from transfer.cases.policies import POLICIES, SMALL_DATA, Case

MOST_LAYERS = 12
"""Lines of the layer curve in the table; of more layers every second one, and so on, is left out."""


@dataclass(frozen=True, eq=False)
class Advice:
    """What to do with some images, and all that it rests on.

    Attributes:
        data: its name.
        model: the network's name.
        image_size: height and width in pixels at which it was looked through.
        choice: what is advised.
        choices: what there is to choose from, from the cheapest to the costliest.
        time_budget: seconds that training may take; None is as much as it takes.
        similarity: to what the network was trained on; None where it could not be measured.
        images_per_class: counts of images to train on.
        curve: left-out accuracy by layer; None where there are too few images.
        sizes: left-out accuracy by number of images.
        trial: a few steps of fine-tuning, timed; None where there were none.
        warnings: what may be wrong with the data.
        notes: what could not be measured, and what that means.
        evidence: the numbers that the choice rests on.
        seconds: that the advice took.
    """

    data: str
    model: str
    image_size: tuple[int, int]
    choice: Choice
    choices: tuple[Choice, ...]
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
        """The advised case."""
        return self.choice.case

    @property
    def cut(self) -> str | None:
        """The advised cut: a layer, or `"all"` for a head on several; see `expectations.Choice`."""
        return self.choice.cut

    @property
    def signal(self) -> bool:
        """Whether labels have to do with images, as far as the network sees."""
        return self.evidence.signal

    @property
    def reason(self) -> str:
        """The advice in a sentence or two."""
        if not self.evidence.signal:
            return "the labels look shuffled: find out why before anything is trained"
        size = "large" if self.evidence.num_train >= SMALL_DATA else "small"
        like = "" if self.similarity is None else ", similar" if self.similarity.similar else ", different"
        low, high = self.choice.interval
        text = (
            f"{size}{like}: {action(self.choice)}; expected {self.choice.expected_accuracy:.0%} "
            f"({low:.0%} to {high:.0%}) in {in_words(self.choice.seconds)}"
        )
        return text + "".join(f". {other}" for other in self._others()) + "."

    def _others(self) -> list[str]:
        tuned = [c for c in self.choices if c.cut is None and c is not self.choice]
        frozen = [c for c in self.choices if c.cut not in (None, RANDOM)]
        if tuned and self.evidence.signal:
            more = 100 * (tuned[0].expected_accuracy - self.choice.expected_accuracy)
            what = "would bring about" if abs(more) >= 0.5 else "would make no difference:"
            return [f"Fine-tuning everything {what} {more:+.0f} in {in_words(tuned[0].seconds)}"]
        if self.choice.cut is None and frozen:
            best = best_head(frozen)
            less = 100 * (best.expected_accuracy - self.choice.expected_accuracy)
            return [f"A head on the frozen network would be at about {less:+.0f} in {in_words(best.seconds)}"]
        return []

    def to_text(self) -> str:
        """Give all of it as lines for people."""
        counts = list(self.images_per_class.values())
        height, width = self.image_size
        lines = [
            f"{self.data} through {self.model} at {width} x {height} pixels: {sum(counts):,} images to train on, "
            f"{len(counts)} classes of {min(counts):,} to {max(counts):,}",
            "",
            self.reason[0].upper() + self.reason[1:],
            "",
            f"{'':50}{'expected':>9}{'nine in ten':>14}{'training':>14}",
            *(self._line(choice) for choice in self.choices),
        ]
        lines += ["", *self._similarity_lines(), *self._size_lines(), *self._layer_lines()]
        for title, texts in (
            ("Warnings", [w.text for w in self.warnings]),
            ("Not measured", list(self.notes)),
        ):
            lines += ["", f"{title}:", *(f"- {text}" for text in texts)] if texts else []
        return "\n".join([*lines, "", f"This took {in_words(self.seconds)}.", ""])

    def _line(self, choice: Choice) -> str:
        low, high = choice.interval
        mark = "->" if choice is self.choice else "  "
        name = f"{mark} {POLICIES[choice.case].number} {action(choice)}"
        interval = f"{low:.0%} to {high:.0%}"
        return f"{name:50}{choice.expected_accuracy:>9.1%}{interval:>14}{in_words(choice.seconds):>14}"

    def _similarity_lines(self) -> list[str]:
        if self.similarity is None:
            return []
        like = "similar to" if self.similarity.similar else "different from"
        parts = ", ".join(
            f"{name.replace('_', ' ')} {share:.2f}" for name, share in self.similarity.percentiles.items()
        )
        near = f"; nearest to {self.similarity.nearest}" if self.similarity.nearest else ""
        return [
            f"Similarity {self.similarity.score:.2f}: {like} what the network knows{near} (0 to 1 among "
            f"reference sets: {parts})"
        ]

    def _size_lines(self) -> list[str]:
        if len(self.sizes) < 2:
            return []
        points = ", ".join(f"{point.accuracy:.0%} with {point.count:,}" for point in self.sizes)
        return [
            f"Size: {points} images; twice as many would bring about {100 * self.evidence.growth:+.1f} points"
        ]

    def _layer_lines(self) -> list[str]:
        if self.curve is None:
            return []
        names, step = self.curve.names, -(-len(self.curve.names) // MOST_LAYERS)
        shown = [
            i for i in range(len(names)) if (len(names) - 1 - i) % step == 0 or names[i] == self.curve.cut
        ]
        width = max(len(names[i]) for i in shown)
        lines = ["Layers, each image judged by a head that never saw it:"]
        for i in shown:
            accuracy, error = self.curve.accuracy[i], self.curve.standard_error[i]
            bar = "#" * round(30 * float(accuracy))
            mark = "  <- cut" if names[i] == self.curve.cut else ""
            lines.append(f"  {names[i]:{width}} {accuracy:6.1%} +- {error:.1%} {bar}{mark}")
        together = self.curve.together
        bar = "#" * round(30 * together.accuracy)
        return [
            *lines,
            f"  {'all together':{width}} {together.accuracy:6.1%} +- {together.standard_error:.1%} {bar}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Give all of it for programs."""
        curve = None
        if self.curve is not None:
            rows = zip(self.curve.names, self.curve.accuracy, self.curve.standard_error, strict=True)
            curve = [
                {"layer": name, "accuracy": float(acc), "standard_error": float(se)} for name, acc, se in rows
            ]
        return {
            "data": self.data,
            "model": self.model,
            "image_size": list(self.image_size),
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
            "all_layers": None
            if self.curve is None
            else {
                "accuracy": self.curve.together.accuracy,
                "standard_error": self.curve.together.standard_error,
            },
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
        """Give the same as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"


def action(choice: Choice) -> str:
    """Say what is done in a choice."""
    if choice.cut is None:
        return "train everything from the pre-trained weights"
    if choice.cut == RANDOM:
        return "train everything from random weights"
    if choice.cut == ALL_LAYERS:
        return "freeze everything, train a head on all layers"
    if choice.case is Case.SMALL_SIMILAR:
        return "freeze everything, train the head"
    return f"cut at {choice.cut}, train the head"
