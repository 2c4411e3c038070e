"""What each case would give and cost: decisions on numbers that were measured, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transfer.adviser.trials import Trial
from transfer.cases.cuts import ALL_LAYERS
from transfer.cases.policies import Case
from transfer.training.schedules import BATCH_SIZE

NINETY_PERCENT = 1.645
"""Standard errors on either side of a normal distribution's 90% interval."""

RANDOM = "random"
"""Instead of a cut, where everything trains from random weights."""


@dataclass(frozen=True)
class HeadEvidence:
    """How a head did on images that were left out."""

    cut: str
    accuracy: float
    error: float


@dataclass(frozen=True)
class Evidence:
    """All that a decision rests on."""

    num_train: int
    num_looked: int
    # Images of the test, whose accuracy is to be foretold.
    num_test: int
    num_classes: int
    # The last layer's, that of the advised cut where it is another, and of all layers together.
    heads: tuple[HeadEvidence, ...]
    growth: float
    chance: float
    signal: bool
    # Accuracy of a head on the bare pixels, left out.
    pixels: float | None
    # To the pre-training's images.
    similar: bool | None
    # Of fine-tuning.
    trial: Trial | None
    seconds_per_image: float
    steps: int
    steps_scratch: int


@dataclass(frozen=True)
class Choice:
    """One of the ways to train, with what it would give and cost."""

    case: Case
    # The last layer that is kept, `"all"` for a head on several.
    cut: str | None
    expected_accuracy: float
    interval: tuple[float, float]
    # Of training on this machine.
    seconds: float | None
    source: str


# The first four of these, and `SURELY`, are from what `tests/benchmarks/advice.py fit` prints of its tuning sets.

HEAD_GAIN = 0.02
"""What a head on a test has beyond what leaving out foretells: it is trained on all images."""

HEAD_ERROR = 0.035
"""Standard deviation of that, with the errors of counting."""

GAIN_SHARE = 0.15
"""What fine-tuning everything mends of what the best head has wrong."""

LEAST_GAIN = 0.01
"""But so much it is expected to bring beyond that head: it was better in 179 of 192 settings of Kornblith et al. 2019
(arXiv:1805.08974)."""

TUNED_ERROR = 0.05
"""Standard deviation of what fine-tuning gives from what is foretold so. What a trial of forty steps gained said
nothing of it: these take the network away from where it was, and what is gained comes later."""

SCRATCH_ERROR = 0.12
"""The same of random weights, foretold from bare pixels: wide, since it was never measured."""

SCRATCH_GAIN = 0.0
"""What training from random weights gives beyond a linear head on bare pixels."""

FORWARD_PASSES = 3.0
"""A training step costs at least so many forward passes over its images: one forward, and two of its size back."""

SURELY = 0.03
"""Accuracy that a head on a single layer must be expected to have beyond one on all layers, to be taken: heads
chosen so lost 0.4 points to the best on the tuning sets, and 1.4 without such a margin."""

WORTH = 0.005
"""Accuracy that the costlier choice must bring beyond the cheaper one."""


def choices_of(evidence: Evidence) -> tuple[Choice, ...]:
    """Foretell what each case would give."""
    if not evidence.heads:
        return ()
    more = evidence.growth * math.log2(max(1.0, evidence.num_train / max(1, evidence.num_looked)))
    last = evidence.heads[0].cut
    frozen = [
        _choice(
            evidence,
            Case.SMALL_SIMILAR if head.cut == last or _similar_all(evidence, head) else Case.SMALL_DIFFERENT,
            head.cut,
            head.accuracy + HEAD_GAIN + more,
            (head.error, HEAD_ERROR),
            evidence.seconds_per_image * evidence.num_train,
            "images left out",
        )
        for head in evidence.heads
    ]
    return (*frozen, _tuned(evidence, best_head(frozen).cut, more), *_scratch(evidence))


def _similar_all(evidence: Evidence, head: HeadEvidence) -> bool:
    """Nothing is sliced off for a head on all layers: with similar images that is the first case."""
    return head.cut == ALL_LAYERS and bool(evidence.similar)


def _tuned(evidence: Evidence, best: str | None, more: float) -> Choice:
    head = next(head for head in evidence.heads if head.cut == best)
    expected = max(head.accuracy + GAIN_SHARE * (1 - head.accuracy), head.accuracy + HEAD_GAIN + LEAST_GAIN)
    case = Case.LARGE_SIMILAR if evidence.similar else Case.LARGE_DIFFERENT
    seconds, errors = _seconds(evidence, evidence.steps), (head.error, TUNED_ERROR)
    return _choice(
        evidence, case, None, expected + more, errors, seconds, "what it brought on other data sets"
    )


def _scratch(evidence: Evidence) -> tuple[Choice, ...]:
    if evidence.pixels is None:
        return ()
    expected = evidence.pixels + SCRATCH_GAIN
    seconds = _seconds(evidence, evidence.steps_scratch)
    errors = (0.0, SCRATCH_ERROR)
    return (
        _choice(evidence, Case.LARGE_DIFFERENT, RANDOM, expected, errors, seconds, "a head on bare pixels"),
    )


def _seconds(evidence: Evidence, steps: int) -> float | None:
    """As measured in the trial; without one, the least that it can be."""
    trial = evidence.trial
    if trial is None:
        return least_seconds(evidence.seconds_per_image, steps) or None
    return trial.seconds_start + steps * trial.seconds_per_step


def least_seconds(seconds_per_image: float, steps: int) -> float:
    """Say how long training everything takes at least."""
    return FORWARD_PASSES * seconds_per_image * BATCH_SIZE * steps


def _choice(
    evidence: Evidence,
    case: Case,
    cut: str | None,
    expected: float,
    errors: Sequence[float],
    seconds: float | None,
    source: str,
) -> Choice:
    expected = min(1.0, max(evidence.chance if evidence.signal else 0.0, expected))
    interval = interval_of(expected, errors, num_test=evidence.num_test)
    return Choice(case, cut, expected, interval, seconds, source)


def interval_of(
    expected: float, errors: Sequence[float], *, num_test: int = 0, width: float = NINETY_PERCENT
) -> tuple[float, float]:
    """Say where the accuracy on a test lies, with its own errors of counting."""
    # Not 0 for an accuracy of 1: half an image is added to either side (Agresti and Coull 1998).
    share = (expected * num_test + 0.5) / (num_test + 1) if num_test else expected
    counting = share * (1 - share) / num_test if num_test else 0.0
    half = width * math.sqrt(sum(error**2 for error in errors) + counting)
    return max(0.0, expected - half), min(1.0, expected + half)


def pick(choices: Sequence[Choice], *, time_budget: float | None = None, frozen: bool = False) -> Choice:
    """Take the choice that is expected to be the most accurate, in the time that there is."""
    heads = [choice for choice in choices if choice.cut not in (None, RANDOM)]
    best = best_head(heads) if heads else choices[0]
    for choice in choices:
        if frozen or choice in heads:
            continue
        fits = time_budget is None or choice.seconds is None or choice.seconds <= time_budget
        if fits and choice.expected_accuracy > best.expected_accuracy + WORTH:
            best = choice
    return best


def best_head(heads: Sequence[Choice]) -> Choice:
    """Take one of several heads, all of which cost the same."""
    best = max(heads, key=lambda head: head.expected_accuracy)
    every = [head for head in heads if head.cut == ALL_LAYERS]
    if every and best.expected_accuracy <= every[0].expected_accuracy + SURELY:
        return every[0]
    return best


def in_words(seconds: float | None) -> str:
    """Say how long something takes."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        minutes = seconds / 60
        return f"{minutes:.0f} minutes" if minutes >= 10 else f"{minutes:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"
