"""The settings of an interrupted training: read them and compare them with new ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError


def read_settings(path: Path) -> dict[str, Any]:
    """Read what an interrupted run or training was asked."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot read {path}, which says what an interrupted training was asked: {error}. Remove {path.parent} to "
            "start anew."
        ) from None
    if not isinstance(found, dict):
        raise InputError(
            f"Expected options in {path}. Received: {type(found).__name__}. Remove {path.parent}."
        )
    return found


def refuse_others(earlier: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    """Refuse to go on with something else."""
    names = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    if names:
        shown = "; ".join(f"{name} was {earlier.get(name)!r}, now {now.get(name)!r}" for name in names)
        raise InputError(
            f"{place} holds an unfinished training of another kind: {shown}. Go on with the options that it was "
            "started with, or choose another folder, or remove it."
        )
