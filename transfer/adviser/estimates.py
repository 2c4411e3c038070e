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
    """How a head did on pictures that were left out.

    Attributes:
        cut: its layer, or `"all"`.
        accuracy: on pictures that neither it nor its regularisation was chosen by.
        error: standard error.
    """

    cut: str
    accuracy: float
    error: float


@dataclass(frozen=True)
class Evidence:
    """All that a decision rests on.

    Attributes:
        num_train: pictures to train on.
        num_looked: of them that were looked at.
        num_test: pictures of the test, whose accuracy is to be foretold; 0 where there are none.
        num_classes: 2 or more.
        heads: the last layer's, that of the advised cut where it is another, and of all layers together; empty where
            nothing could be measured.
        growth: accuracy that twice as many pictures bring.
        chance: accuracy of always naming the most frequent class.
        signal: whether labels have to do with pictures.
        pixels: accuracy of a head on the bare pixels, left out; None where it was not measured.
        similar: to the pre-training's pictures; None where that could not be measured.
        trial: of fine-tuning; None where there was none.
        seconds_per_picture: of the forward pass.
        steps: of fine-tuning everything.
        steps_scratch: of training from random weights.
    """

    num_train: int
    num_looked: int
    num_test: int
    num_classes: int
    heads: tuple[HeadEvidence, ...]
    growth: float
    chance: float
    signal: bool
    pixels: float | None
    similar: bool | None
    trial: Trial | None
    seconds_per_picture: float
    steps: int
    steps_scratch: int


@dataclass(frozen=True)
class Choice:
    """One of the ways to train, with what it would give and cost.

    Attributes:
        case: which of the four.
        cut: the last layer that is kept, `"all"` for a head on several; None where everything trains from the
            pre-trained weights, `"random"` where it does from random ones.
        expected_accuracy: on the test.
        interval: where the test's accuracy lies nine times in ten.
        seconds: of training on this machine; None where that was not measured.
        source: what the expectation rests on, in words.
    """

    case: Case
    cut: str | None
    expected_accuracy: float
    interval: tuple[float, float]
    seconds: float | None
    source: str


# The first four of these, and `SURELY`, are from what `tests/benchmarks/advice.py fit` prints of its tuning sets.

HEAD_GAIN = 0.02
"""What a head on a test has beyond what leaving out foretells: it is trained on all pictures."""

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
"""A training step costs at least so many forward passes over its pictures: one forward, and two of its size back."""

SURELY = 0.03
"""Accuracy that a head on a single layer must be expected to have beyond one on all layers, to be taken: heads
chosen so lost 0.4 points to the best on the tuning sets, and 1.4 without such a margin."""

WORTH = 0.005
"""Accuracy that the costlier choice must bring beyond the cheaper one."""


def choices_of(evidence: Evidence) -> tuple[Choice, ...]:
    """Foretell what each case would give.

    Args:
        evidence: what was measured.

    Returns:
        The choices, from the cheapest to the costliest: heads on the frozen network, everything from the pre-trained
        weights, everything from random ones; none where no head could be measured.

    Example:
        >>> head = HeadEvidence("top", 0.8, 0.02)
        >>> known = dict(num_train=400, num_looked=400, num_test=100, num_classes=2, growth=0.02, chance=0.5)
        >>> rest = dict(pixels=0.6, similar=True, trial=None, seconds_per_picture=0.01, steps=400, steps_scratch=1200)
        >>> found = choices_of(Evidence(heads=(head,), signal=True, **known, **rest))
        >>> [choice.case.value for choice in found]
        ['small-similar', 'large-similar', 'large-different']
    """
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
            evidence.seconds_per_picture * evidence.num_train,
            "pictures left out",
        )
        for head in evidence.heads
    ]
    return (*frozen, _tuned(evidence, best_head(frozen).cut, more), *_scratch(evidence))


def _similar_all(evidence: Evidence, head: HeadEvidence) -> bool:
    """Nothing is sliced off for a head on all layers: with similar pictures that is the first case."""
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
        return least_seconds(evidence.seconds_per_picture, steps) or None
    return trial.seconds_start + steps * trial.seconds_per_step


def least_seconds(seconds_per_picture: float, steps: int) -> float:
    """Say how long training everything takes at least.

    Args:
        seconds_per_picture: of the forward pass.
        steps: of training.

    Returns:
        Seconds.

    Example:
        >>> least_seconds(0.01, 100)
        96.0
    """
    return FORWARD_PASSES * seconds_per_picture * BATCH_SIZE * steps


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
    """Say where the accuracy on a test lies, with its own errors of counting.

    Args:
        expected: accuracy, 0 to 1.
        errors: standard errors that are independent of each other.
        num_test: pictures of the test; 0 is as many as one likes.
        width: in standard errors, on either side.

    Returns:
        Lower and upper end, from 0 to 1.

    Example:
        >>> [round(end, 2) for end in interval_of(0.8, (0.02,), num_test=100)]
        [0.73, 0.87]
    """
    # Not 0 for an accuracy of 1: half a picture is added to either side (Agresti and Coull 1998).
    share = (expected * num_test + 0.5) / (num_test + 1) if num_test else expected
    counting = share * (1 - share) / num_test if num_test else 0.0
    half = width * math.sqrt(sum(error**2 for error in errors) + counting)
    return max(0.0, expected - half), min(1.0, expected + half)


def pick(choices: Sequence[Choice], *, time_budget: float | None = None, frozen: bool = False) -> Choice:
    """Take the choice that is expected to be the most accurate, in the time that there is.

    Of heads, that on all layers is taken unless one on a single layer is surely better (see `SURELY`). What costs more
    must be worth it (see `WORTH`). Where nothing fits into the time, a head is taken.

    Args:
        choices: from the cheapest to the costliest, one or more.
        time_budget: seconds of training; None is as much as it takes.
        frozen: take none that trains everything.

    Returns:
        One of them.

    Example:
        >>> quick = Choice(Case.SMALL_SIMILAR, "top", 0.8, (0.7, 0.9), 10.0, "")
        >>> slow = Choice(Case.LARGE_SIMILAR, None, 0.9, (0.8, 1.0), 600.0, "")
        >>> pick([quick, slow]).case.value, pick([quick, slow], time_budget=60).case.value
        ('large-similar', 'small-similar')
    """
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
    """Take one of several heads, all of which cost the same.

    Args:
        heads: one or more.

    Returns:
        That on all layers, unless another is surely better (see `SURELY`); without it, the most accurate.

    Example:
        >>> one, every = (Choice(Case.SMALL_SIMILAR, cut, 0.8, (0.7, 0.9), 1.0, "") for cut in ("top", "all"))
        >>> best_head([one, every]).cut
        'all'
    """
    best = max(heads, key=lambda head: head.expected_accuracy)
    every = [head for head in heads if head.cut == ALL_LAYERS]
    if every and best.expected_accuracy <= every[0].expected_accuracy + SURELY:
        return every[0]
    return best


def in_words(seconds: float | None) -> str:
    """Say how long something takes.

    Args:
        seconds: 0 or more; None is unknown.

    Returns:
        A few words.

    Example:
        >>> in_words(8.2), in_words(100), in_words(660), in_words(9000), in_words(None)
        ('8 s', '1.7 minutes', '11 minutes', '2.5 hours', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        minutes = seconds / 60
        return f"{minutes:.0f} minutes" if minutes >= 10 else f"{minutes:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"
