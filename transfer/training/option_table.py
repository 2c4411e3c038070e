"""Which option applies in which kind of training, as one table, and the options of a call that have no effect."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transfer.cases.policies import POLICIES, Case


class Situation(enum.StrEnum):
    """A kind of training."""

    EXACT = "an exact head"
    EPOCHS = "a head in epochs"
    FINE_TUNING = "fine-tuning"
    FROM_SCRATCH = "training from scratch"


HEAD = frozenset({Situation.EXACT, Situation.EPOCHS})
NETWORK = frozenset({Situation.FINE_TUNING, Situation.FROM_SCRATCH})

SOLVERS = ("auto", "exact", "sgd")
"""Solvers of a head on features: exact, in epochs by SGD, or chosen by the options and the size."""

SWITCHES = ("epochs", "dropout", "label_smoothing")
"""Options that train a head in epochs, where the solver is `auto`."""

CONDITIONS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "yes": lambda given: True,
    "error": lambda given: True,  # `fit` refuses the option
    "with --views 2 or more": lambda given: (given.get("views") or 1) > 1,
    "with --unfreeze-from": lambda given: bool(given.get("unfreeze_from")),
    "with --schedule steps": lambda given: given.get("schedule") == "steps",
    "with --batchnorm adapted": lambda given: given.get("batchnorm") == "adapted",
}
"""Conditions of an option's effect. Each takes the options that differ from their defaults."""


def _row(head: str = "", network: str = "", **exceptions: str) -> dict[Situation, str]:
    """Return a row of the table: the condition of the effect in each situation, empty for no effect."""
    row = {situation: head if situation in HEAD else network for situation in Situation}
    row |= {Situation[name.upper()]: condition for name, condition in exceptions.items()}
    return {situation: condition for situation, condition in row.items() if condition}


APPLIES: dict[str, dict[Situation, str]] = {
    "epochs": _row("yes", "yes", exact="error"),
    "batch_size": _row("yes", "yes", exact="with --batchnorm adapted"),
    "optimizer": _row("yes", "yes", exact=""),
    "learning_rate": _row("yes", "yes", exact=""),
    "steps_per_execution": _row("yes", "yes", exact=""),
    "label_smoothing": _row("yes", "yes", exact="error"),
    "dropout": _row("yes", "error", exact="error"),
    "class_weights": _row("yes", "yes"),
    "solver": _row("yes", fine_tuning="yes"),
    "views": _row("yes", fine_tuning="with --unfreeze-from"),
    "augment": _row("with --views 2 or more", "yes"),
    "flip": _row("with --views 2 or more", "yes"),
    "batchnorm": _row("with --batchnorm adapted", fine_tuning="yes"),
    "layer_decay": _row(network="yes"),
    "gradual_unfreezing": _row(network="yes"),
    "lora": _row(fine_tuning="yes"),
    "weight_decay": _row(network="yes"),
    "clip_norm": _row(network="yes"),
    "ema": _row(network="yes"),
    "mix": _row(network="yes"),
    "schedule": _row(network="yes"),
    "decay_factor": _row(network="with --schedule steps"),
    "decay_every": _row(network="with --schedule steps"),
}
"""For each option, the situations in which it has an effect, and under which condition. Other options always apply."""


_REASONS = {
    "head": "{subject} only the head, on features that are computed once",
    "exact": "the head is solved exactly",
    "network": "all layers are trained on images",
    "scratch": "all layers are trained from random weights",
    "flip": "images are not augmented",
    "steps": "the schedule has no steps",
    "auto": "a case is given",
    "folds": "cross-validation with --case auto compares heads on the frozen network; it does not fine-tune",
}


def ignored_options(given: Mapping[str, Any], situations: Collection[Situation]) -> dict[str, str]:
    """Return which of the options that differ from their defaults have no effect, each with the key of its reason."""
    return {
        name: _reason(name, given, frozenset(situations))
        for name in given
        if name in APPLIES and not _has_effect(name, given, situations)
    }


def refused_options(given: Mapping[str, Any], situations: Collection[Situation]) -> list[str]:
    """Return the options that `fit` refuses in all of these kinds of training."""
    rows = [(name, APPLIES[name]) for name in given if name in APPLIES]
    return [name for name, row in rows if all(row.get(one) == "error" for one in situations)]


def _has_effect(name: str, given: Mapping[str, Any], situations: Collection[Situation]) -> bool:
    if name == "flip" and given.get("augment") == "none":
        return False
    conditions = [APPLIES[name].get(situation, "") for situation in situations]
    return any(condition and CONDITIONS[condition](given) for condition in conditions)


def _reason(name: str, given: Mapping[str, Any], situations: frozenset[Situation]) -> str:
    if name == "flip" and given.get("augment") == "none":
        return "flip"
    if situations <= HEAD:
        return "exact" if APPLIES[name].get(Situation.EPOCHS) == "yes" else "head"
    if name.startswith("decay_"):
        return "steps"
    return "scratch" if situations == {Situation.FROM_SCRATCH} else "network"


def describe_ignored(ignored: Mapping[str, str], *, case: str = "", flags: bool = False) -> list[str]:
    """Return one line for each reason; options are written as flags of the command or as names in Python."""
    subject = f"case {case} trains" if case else "this model trains"
    lines = []
    for reason in dict.fromkeys(ignored.values()):
        names = [name for name, why in ignored.items() if why == reason]
        shown = ", ".join("--" + name.replace("_", "-") if flags else name for name in names)
        because = _REASONS[reason].format(subject=subject)
        lines.append(" ".join([f"Ignored {shown}: {because}.", *_advice(reason, names, flags)]))
    return lines


def _advice(reason: str, names: Collection[str], flags: bool) -> list[str]:
    """Return what to do to make the options apply."""
    views = ", or {} for augmented views" if {"augment", "flip"} & set(names) else ""
    if reason == "head" and flags:
        return ["Use --case large-similar" + views.format("--views 4") + "."]
    if reason == "head":
        return ["Use large_similar" + views.format("views=4") + "."]
    if reason == "exact":
        return [
            "Use --solver sgd to train it in epochs." if flags else "Use solver='sgd' to train it in epochs."
        ]
    if reason == "steps":
        return ["Use --schedule steps." if flags else "Use schedule='steps'."]
    return []


def situations_text() -> dict[str, str]:
    """Return for each option a sentence for `--help`: the kinds of training in which it has an effect."""
    return {
        name: _situations_text(name, row)
        for name, row in APPLIES.items()
        if row != dict.fromkeys(Situation, "yes")
    }


def _situations_text(name: str, row: Mapping[Situation, str]) -> str:
    groups: dict[str, list[Situation]] = {}
    for situation, condition in row.items():
        if condition != "error":
            groups.setdefault("" if condition == "yes" else f" {condition}", []).append(situation)
    parts = []
    for condition, kinds in groups.items():
        shown = ["a head", *kinds[2:]] if set(kinds) >= HEAD else list(map(str, kinds))
        last = " and ".join(shown[-2:])
        parts.append(", ".join([*shown[:-2], last]) + condition)
    switches = " With --solver auto, it trains a head in epochs." if name in SWITCHES else ""
    return f"Applies to {'; '.join(parts)}.{switches}"


def situations_of(
    case: str,
    *,
    unfreeze_from: str | None = None,
    init: str = "pretrained",
    solver: str = "auto",
    **options: Any,
) -> frozenset[Situation]:
    """Return the kinds of training that a case and its options may lead to; other options are those of `fit`."""
    if POLICIES[Case.parse(case)].frozen and unfreeze_from is None:
        return head_situations(solver, **options)
    different = Case.parse(case) is Case.LARGE_DIFFERENT
    return {"random": frozenset({Situation.FROM_SCRATCH}), "auto": NETWORK}.get(
        init if different else "", frozenset({Situation.FINE_TUNING})
    )


def head_situations(solver: str, **options: Any) -> frozenset[Situation]:
    """Return how a head may be trained; with `auto` and few options, the size of the features decides."""
    if solver == "sgd" or (solver == "auto" and any(options.get(name) for name in SWITCHES)):
        return frozenset({Situation.EPOCHS})
    return frozenset({Situation.EXACT}) if solver == "exact" else HEAD
