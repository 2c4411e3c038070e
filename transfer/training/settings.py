"""Read the saved settings of an interrupted training and compare them with new ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of an interrupted run or training from a JSON file."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot read {path}, the settings of an interrupted training: {error}. Remove {path.parent} to start "
            "again."
        ) from None
    if not isinstance(settings, dict):
        raise InputError(
            f"Expected a JSON object with settings in {path}. Received: {type(settings).__name__}. Remove "
            f"{path.parent} to start again."
        )
    return settings


def require_same_settings(earlier: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError, with the differences, unless an interrupted training had the same settings."""
    differences = describe_differences(earlier, now)
    if differences:
        raise InputError(
            f"{folder} holds an unfinished training with other settings: {differences}. Resume it with the same "
            "settings, choose another folder, or remove this one."
        )


def describe_differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the settings that differ, with their values; empty if there are none."""
    names = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    return "; ".join(f"{name} was {earlier.get(name)!r}, now {now.get(name)!r}" for name in names)
