"""The settings of Keras in `keras.json` and the environment, checked before Keras reads them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError, install_hint, one_line

BACKENDS = {"tensorflow": 'pip install "tensorflow>=2.20"', "jax": install_hint("jax")}
"""The backends of Keras that this package runs on, and how to install them."""

_FLOATS = ("float16", "float32", "float64")
_LIMITS = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH")


def settings_file() -> Path:
    """Return the path of `keras.json`."""
    if home := os.environ.get("KERAS_HOME"):
        return Path(os.path.expanduser(home)) / "keras.json"
    base = os.path.expanduser("~")
    return Path(base if os.access(base, os.W_OK) else "/tmp") / ".keras" / "keras.json"


def backend() -> str:
    """Return the name of Keras' backend, without importing Keras."""
    if "keras" in sys.modules:
        import keras

        return str(keras.config.backend())
    return str(os.environ.get("KERAS_BACKEND") or _settings().get("backend", "tensorflow"))


def check_keras() -> None:
    """Raise an `InputError` if Keras cannot start with its settings, or cannot run this package."""
    if "keras" in sys.modules:  # the program may have changed its settings since
        return
    settings = _settings()
    name = backend()
    if name not in BACKENDS:
        by_variable = bool(os.environ.get("KERAS_BACKEND"))
        source = "the environment variable KERAS_BACKEND" if by_variable else str(settings_file())
        change = "Set the variable to tensorflow" if by_variable else 'Change "backend" there to "tensorflow"'
        raise InputError(
            f"Expected Keras on the backend tensorflow or jax. Received: {name!r}, from {source}. {change}."
        )
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f"Keras is set to the backend {name!r}, which is not installed. Install it ({BACKENDS[name]}), or set the "
            f"environment variable KERAS_BACKEND to {'jax' if name == 'tensorflow' else 'tensorflow'}."
        )
    _check_value(settings, "image_data_format", "channels_last", lambda v: v == "channels_last")
    _check_value(settings, "floatx", "float32", lambda v: v in _FLOATS)
    _check_value(settings, "epsilon", 1e-07, lambda v: isinstance(v, float) and 0 < v < 0.01)
    for limit in _LIMITS:
        value = os.environ.get(limit)
        if value is not None and not value.strip().isdecimal():
            raise InputError(f"Expected a number in the environment variable {limit}. Received: {value!r}.")
    _check_matplotlib()


def _check_matplotlib() -> None:
    """Raise for a backend that matplotlib does not have: TensorFlow imports matplotlib, and would fail with it."""
    if name := os.environ.get("MPLBACKEND"):
        try:
            importlib.import_module("matplotlib")
        except ValueError:
            raise InputError(
                f"Expected a backend of matplotlib in the environment variable MPLBACKEND, such as agg. Received: "
                f"{name!r}. Change or unset the variable."
            ) from None


def _settings() -> dict[str, Any]:
    """Return the settings in `keras.json`, empty if there is no file."""
    path = settings_file()
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        settings = json.loads(text) if text.strip() else {}  # another process may just be writing the file
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot read the settings of Keras in {path}: {one_line(error)}. Correct or delete the file."
        ) from None
    if not isinstance(settings, dict):
        raise InputError(
            f"Expected a JSON object in {path}. Received: {settings!r}. Correct or delete the file."
        )
    return settings


def _check_value(settings: dict[str, Any], key: str, default: Any, valid: Any) -> None:
    value = settings.get(key, default)
    if not valid(value):
        raise InputError(
            f"Expected {key!r}: {json.dumps(default)} in {settings_file()}. Received: {json.dumps(value)}. "
            "Change it there, or delete the file."
        )
