"""Sentences that the texts of all evaluations share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transfer.common.errors import InputError

if TYPE_CHECKING:
    from transfer.evaluation.kinds import AnyEvaluation


def counted_images(evaluation: AnyEvaluation) -> str:
    """Return the number of images and groups as text, such as "100 held-out images in 5 groups"."""
    groups = f" in {len(set(evaluation.groups)):,} groups" if len(evaluation.groups) else ""
    return f"{len(evaluation.labels):,} {'' if evaluation.seen else 'held-out '}images{groups}"


def seen_warning(evaluation: AnyEvaluation) -> list[str]:
    """Return a warning if images were used for training; empty otherwise."""
    if not evaluation.seen:
        return []
    return [
        f"Warning: {evaluation.seen:,} of these images were used for training or validation. They make the "
        "results too optimistic."
    ]


def require_images(evaluation: AnyEvaluation) -> None:
    """Raise unless an evaluation has images to draw."""
    if not len(evaluation.labels):
        raise InputError(
            "Expected an evaluation of one image or more, to draw it. Received one without images."
        )


def as_json(value: Any) -> Any:
    """Return a value for JSON, which has no number for an undefined metric."""
    if isinstance(value, dict):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(value: float, decimals: int = 1) -> str:
    """Return a fraction in percent; "undefined" for one that is not a number."""
    return "undefined" if math.isnan(value) else f"{value:.{decimals}%}"
