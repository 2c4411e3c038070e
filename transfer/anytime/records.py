"""The records of an anytime run: its steps as lines of the log and as `steps.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from transfer.anytime.decisions import typical_gain
from transfer.anytime.plan import Kind, Step
from transfer.cases.policies import POLICIES, Case
from transfer.common.errors import InputError
from transfer.common.files import disk_reason, write_text
from transfer.common.text import format_duration


@dataclass(frozen=True, kw_only=True)
class StepRecord(Step):
    """A step that was taken."""

    # What it did, in words, such as "Head on the last 6 blocks, 224 px".
    title: str
    # Name of the case of its model.
    case: str
    # Time that it took.
    seconds: float
    # Validated accuracy of its model, its standard deviation, and its 90% interval for the test images.
    accuracy: float
    sd: float
    interval: tuple[float, float]
    # Whether its model replaced the one before.
    kept: bool
    # What the accuracy rests on.
    basis: str

    @property
    def fine_tuned(self) -> bool:
        """Whether its model is fine-tuned."""
        return bool(self.case) and not POLICIES[Case.parse(self.case)].frozen

    def line(self) -> str:
        """Return the step as a line of the log."""
        low, high = (f"{100 * end:.0f}" for end in self.interval)
        kept = "Kept." if self.kept else "Not kept."
        return f"{self.title}: {format_duration(self.seconds)}, {self.accuracy:.0%} ({low} to {high}). {kept}"


@dataclass(frozen=True)
class History:
    """The steps of an anytime run, for `steps.json`."""

    steps: tuple[StepRecord, ...] = ()
    # The time budget in seconds; None is no limit.
    budget: float | None = None
    # Whether a signal stopped the run before the end of its budget, or before its report was complete.
    stopped: bool = False
    # For each validation image, whether the kept model classifies it correctly; its head was trained without them.
    correct: tuple[bool, ...] = ()

    @property
    def kept(self) -> StepRecord | None:
        """The last step that was kept."""
        return next((step for step in reversed(self.steps) if step.kept), None)

    @property
    def kept_head(self) -> StepRecord | None:
        """The last step that was kept and chose a head on a frozen network."""
        kinds = (Kind.HEAD, Kind.LARGER, Kind.NETWORK)
        return next((step for step in reversed(self.steps) if step.kept and step.kind in kinds), None)

    @property
    def nominal(self) -> float:
        """The nominal seconds of all steps."""
        return sum(step.nominal for step in self.steps)

    def covers(self, budget: float | None) -> bool:
        """Return whether a run with this budget is complete."""
        if self.stopped:
            return False
        return self.budget is None or (budget is not None and budget <= self.budget)

    def with_step(self, step: StepRecord, correct: np.ndarray | None) -> History:
        """Return the history with one more step; `correct` is that of its model, if that was kept."""
        known = self.correct if correct is None else tuple(map(bool, correct))
        return replace(self, steps=(*self.steps, step), correct=known)

    def to_dict(self) -> dict[str, Any]:
        """Return the history for JSON."""
        values = asdict(self)
        values["correct"] = "".join("01"[one] for one in self.correct)
        return values

    def save(self, path: Path) -> None:
        """Write the history."""
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")


def read_history(path: Path) -> History | None:
    """Read the steps of a run; None if there is no file. Raise if it is damaged, or if another version wrote it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        steps = tuple(_record_from(step) for step in values["steps"])
        correct = tuple(letter == "1" for letter in values["correct"])
        budget = None if values["budget"] is None else float(values["budget"])
        history = History(steps, budget, bool(values["stopped"]), correct)
        if history.kept_head is None:
            raise ValueError
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {disk_reason(error)}. Make it readable, or choose another --output."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, InputError):
        raise damaged(path.parent) from None
    return history


def damaged(run: Path) -> InputError:
    """Return the error for steps that do not describe a run."""
    return InputError(
        f"Cannot continue the run in {run}: its steps.json is damaged, or another version wrote it. Choose another "
        "--output, or delete this run."
    )


def _record_from(values: dict[str, Any]) -> StepRecord:
    kinds: dict[str, Callable[[Any], Any]]
    kinds = {"int": int, "float": _finite, "str": str, "bool": bool, "Kind": Kind}
    names = {field.name: kinds.get(str(field.type), _interval) for field in fields(StepRecord)}
    record = StepRecord(**{name: kind(values[name]) for name, kind in names.items()})
    if record.case:
        Case.parse(record.case)
    return record


def _interval(values: Any) -> tuple[float, float]:
    low, high = map(_finite, values)
    return low, high


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


def describe_next(step: Step) -> str:
    """Return a step that would come next in words."""
    if step.kind in (Kind.FINE_TUNING, Kind.LONGER):
        return f"{step.kind} at {step.training_size} px"
    if step.kind is Kind.LARGER:
        return f"larger images ({step.image_size} px)"
    if step.kind is Kind.NETWORK:
        return f"the network {step.network}"
    return "the average of the frozen head and the fine-tuned network"


def describe_budget(step: Step | None, accuracy: float, command: str) -> str:
    """Return the last line of a run: what a larger budget is expected to bring."""
    if step is None:
        return "A larger time budget is not expected to raise the accuracy."
    gain = 100 * typical_gain(step.kind, accuracy).mean
    return (
        f"A larger budget adds {describe_next(step)}, about {format_duration(step.nominal)}. Expected gain: "
        f"{gain:.1f} points (typical gain on other data sets). To continue: {command}"
    )


def budget_text(seconds: float) -> str:
    """Return a round time budget of at least some seconds, such as "90s", "3m" or "2h"."""
    for step, unit, size in ((30, "s", 1), (1, "m", 60), (10, "m", 60), (1, "h", 3600)):
        count = -(-seconds // (step * size)) * step
        if count * size <= {"s": 90, "m": 600 if step == 1 else 5400, "h": float("inf")}[unit]:
            return f"{count:.0f}{unit}"
    return "none"
