"""Estimated accuracy and training time of each choice, and the choice to recommend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transfer.adviser.trials import Trial
from transfer.cases.policies import Case, frozen_case, rule_of_thumb
from transfer.common.display import one_line
from transfer.common.text import format_duration, plural
from transfer.training.schedules import BATCH_SIZE

Z_90 = 1.645
"""Half width of a normal distribution's 90% interval, in standard deviations."""

RANDOM = "random"
"""Value of `CaseEstimate.cut` for training the whole network from random weights."""


@dataclass(frozen=True)
class Gain:
    """A gain of accuracy with its standard deviation."""

    mean: float
    sd: float

    def __add__(self, other: Gain) -> Gain:
        return Gain(self.mean + other.mean, math.hypot(self.sd, other.sd))

    def after(self, accuracy: float) -> Gain:
        """Return the gain of a model with some accuracy before it, which is smaller if few errors are left."""
        factor = max(0.05, min(1.0, (1 - accuracy) / FEW_ERRORS))
        return Gain(factor * self.mean, factor * self.sd)


@dataclass(frozen=True)
class HeadEvidence:
    """Expected accuracy of a head, from out-of-fold predictions."""

    cut: str  # a layer, several layers separated by commas, or "all"
    accuracy: float
    standard_error: float
    whole: bool = True  # whether it sees the last layer, so that the network is not cut


@dataclass(frozen=True)
class Evidence:
    """The measurements that the estimates rest on."""

    num_train: int
    num_sampled: int  # training images in the sample
    num_test: int  # 0 without test images
    num_classes: int
    heads: tuple[HeadEvidence, ...]  # the best one first
    growth: float  # gain of accuracy from twice as many images
    chance: float  # accuracy of always predicting the most frequent class
    signal: bool
    pixel_accuracy: float | None  # cross-validated accuracy of a linear classifier on pixels
    similar: bool | None  # whether the images are similar to the pre-training data
    trial: Trial | None
    seconds_per_image: float  # duration of a forward pass
    steps: int  # training steps of fine-tuning
    steps_scratch: int  # training steps from random weights

    @property
    def data_case(self) -> Case:
        """Case of the data by the rule of thumb; unknown similarity counts as different."""
        return rule_of_thumb(self.num_train, bool(self.similar))

    @property
    def fine_tuning_case(self) -> Case:
        """Case of fine-tuning; unknown similarity counts as different."""
        return Case.LARGE_SIMILAR if self.similar else Case.LARGE_DIFFERENT

    def __repr__(self) -> str:
        heads = ", ".join(f"{one.cut} {one.accuracy:.1%}" for one in self.heads)
        return one_line(self, f"{plural(self.num_sampled, 'image')} in the sample; heads: {heads or 'none'}")


@dataclass(frozen=True)
class CaseEstimate:
    """A way to train, with its estimated accuracy and training time."""

    case: Case
    # Last layer that is kept, "all" for a head on several layers, None for fine-tuning, or "random".
    cut: str | None
    expected_accuracy: float
    interval: tuple[float, float]  # 90% interval of the test accuracy
    seconds: float | None  # training time on this machine
    basis: str  # what the estimate rests on

    @property
    def is_head(self) -> bool:
        """Whether it trains a head on the frozen network only."""
        return self.cut not in (None, RANDOM)

    def __repr__(self) -> str:
        low, high = self.interval
        text = f"{self.case}, cut={self.cut!r}: {self.expected_accuracy:.1%} (90% interval {low:.0%} to {high:.0%})"
        return one_line(self, f"{text}, {format_duration(self.seconds)}")


FINE_TUNING_GAIN = Gain(0.037, 0.06)
"""Test accuracy of the fine-tuned network minus that of the best head, on eleven tuning sets at 128 pixels, one seed
each: from -9 to +16 points. The gain of a trial of 40 steps did not predict it, so a trial only measures the time."""

FEW_ERRORS = 0.1
"""Fraction of errors below which gains shrink in proportion."""

SCRATCH_ERROR = 0.12
"""Standard deviation of the accuracy from random weights around its estimate. Not measured, therefore wide."""

SCRATCH_GAIN = 0.0
"""Accuracy of training from random weights minus that of a linear classifier on pixels."""

FORWARD_PASSES = 3.0
"""Smallest cost of a training step in forward passes: one forward, and a backward pass that costs two."""

MIN_IMPROVEMENT = 0.005
"""Gain of accuracy that a more expensive choice needs to be recommended."""


def estimate_choices(evidence: Evidence) -> tuple[CaseEstimate, ...]:
    """Estimate each choice, the highest estimate first; no choices without evidence on heads."""
    if not evidence.heads:
        return ()
    choices: list[CaseEstimate] = []
    chance = evidence.chance if evidence.signal else 0.0

    def add(
        case: Case,
        cut: str | None,
        accuracy: float,
        errors: Sequence[float],
        seconds: float | None,
        basis: str,
    ) -> None:
        accuracy = min(1.0, max(chance, accuracy))
        interval = prediction_interval(accuracy, errors, num_test=evidence.num_test)
        choices.append(CaseEstimate(case, cut, accuracy, interval, seconds, basis))

    # The sample holds some of the training images; each doubling adds `growth`.
    doublings = math.log2(max(1.0, evidence.num_train / max(1, evidence.num_sampled)))
    more = evidence.growth * doublings
    basis = f"out-of-fold predictions of {evidence.num_sampled} images"
    seconds: float | None = evidence.seconds_per_image * evidence.num_train
    for head in evidence.heads:
        case, accuracy = frozen_case(whole=head.whole), head.accuracy + more
        add(case, head.cut, accuracy, [head.standard_error], seconds, basis)
    head = evidence.heads[0]
    gain = FINE_TUNING_GAIN.after(head.accuracy + more)
    accuracy, errors = head.accuracy + more + gain.mean, [head.standard_error, gain.sd]
    seconds, basis = (
        _training_seconds(evidence, evidence.steps),
        "the best head, and gains on other data sets",
    )
    add(evidence.fine_tuning_case, None, accuracy, errors, seconds, basis)
    if evidence.pixel_accuracy is not None:
        accuracy, errors = evidence.pixel_accuracy + SCRATCH_GAIN, [SCRATCH_ERROR]
        seconds = _training_seconds(evidence, evidence.steps_scratch)
        add(Case.LARGE_DIFFERENT, RANDOM, accuracy, errors, seconds, "a linear classifier on pixels")
    return tuple(sorted(choices, key=lambda choice: -choice.expected_accuracy))


def _training_seconds(evidence: Evidence, steps: int) -> float | None:
    """Return the training time by the trial, or its lower bound without a trial."""
    trial = evidence.trial
    if trial is None:
        return minimum_seconds(evidence.seconds_per_image, steps) or None
    return trial.seconds_start + steps * trial.seconds_per_step


def minimum_seconds(seconds_per_image: float, steps: int) -> float:
    """Return a lower bound of the time to train the whole network."""
    return FORWARD_PASSES * seconds_per_image * BATCH_SIZE * steps


def prediction_interval(
    expected: float, errors: Sequence[float], *, num_test: int = 0, width: float = Z_90
) -> tuple[float, float]:
    """Return the interval of a test accuracy from independent standard errors and the test set's size."""
    # Normal approximation: expected +- width * sqrt(sum of errors^2 + p (1 - p) / num_test). Half an image is added to
    # either side, so that the variance is not 0 for an accuracy of 1 (Agresti and Coull, 1998).
    p = (expected * num_test + 0.5) / (num_test + 1) if num_test else expected
    variance = p * (1 - p) / num_test if num_test else 0.0
    half = width * math.sqrt(sum(error**2 for error in errors) + variance)
    return max(0.0, expected - half), min(1.0, expected + half)


def pick(
    choices: Sequence[CaseEstimate], *, time_budget: float | None = None, frozen: bool = False
) -> CaseEstimate:
    """Pick the choice with the highest estimated accuracy within the time budget, or the best head."""
    best = best_head(choices)
    for choice in choices:
        if frozen or choice.is_head:
            continue
        fits = time_budget is None or choice.seconds is None or choice.seconds <= time_budget
        if fits and choice.expected_accuracy > best.expected_accuracy + MIN_IMPROVEMENT:
            best = choice
    return best


def best_head(choices: Sequence[CaseEstimate]) -> CaseEstimate:
    """Return the head with the highest estimate, among equals the first."""
    heads = [choice for choice in choices if choice.is_head]
    return max(heads or choices, key=lambda choice: choice.expected_accuracy)
