"""Identity of a training: an interrupted training resumes only with equal settings, network and images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import keras

from transfer.cases.compiling import learning_rate_of
from transfer.common.keras_private import compile_arguments
from transfer.frozen.extraction import digests_of
from transfer.images.data_config import IN_MEMORY, DataConfig
from transfer.images.datasets import ImageData
from transfer.networks import graphs
from transfer.training.phases import TrainingSettings

T = TypeVar("T")

_AT_FIRST_FIT: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The fingerprint of each model and the configuration of each optimizer when `fit` first saw them. A training changes
weights and learning rates, and the same objects must be recognized when it resumes in the same process. An entry lives
as long as its model or optimizer."""


def identity_of(settings: TrainingSettings) -> dict[str, Any]:
    """Return the settings that an interrupted training and its continuation must share, for JSON."""
    names = ("epochs", "batch_size", "augment", "flip", "views", "solver", "dropout", "seed", "initial_head")
    model, train = settings.model, settings.data.train
    flags = repr([weight.trainable for weight in model.weights]).encode()
    return {
        **{name: getattr(settings, name) for name in names},
        "class_weights": settings.balanced,
        "resize": train.resize,
        **({"pixel_range": str(train.pixel_range)} if train.pixel_range else {}),
        **asdict(settings.recipe),
        **_at_first_fit(model.optimizer, lambda: _optimizer_settings(model.optimizer)),
        **({"task": settings.data.task} if settings.shaped else {}),
        "loss": _plain(model.loss),
        "metrics": _plain(compile_arguments(model)["metrics"]),
        "network": _at_first_fit(model, lambda: graphs.fingerprint(model)[:16]),
        "training": hashlib.sha256(flags).hexdigest()[:16],
        "images": _hash_of_images(settings.data),
    }


def given_options(settings: TrainingSettings, flip: bool | None) -> dict[str, Any]:
    """Return the arguments of `fit` under their names in `TrainConfig`, before the training changes the model."""
    names = ("epochs", "batch_size", "augment", "solver", "dropout", "views", "engine", "seed")
    return {
        **{name: getattr(settings, name) for name in names},
        "val": (settings.data.options or DataConfig(IN_MEMORY)).val,
        "class_weights": settings.balanced,
        "flip": "auto" if flip is None else "yes" if flip else "no",
        "learning_rate": learning_rate_of(settings.model.optimizer),
        **asdict(settings.recipe),
    }


def _at_first_fit(key: keras.Model | keras.Optimizer, compute: Callable[[], T]) -> T:
    """Return the value that was computed for a model or an optimizer when `fit` first saw it."""
    if key not in _AT_FIRST_FIT:
        _AT_FIRST_FIT[key] = compute()
    value: T = _AT_FIRST_FIT[key]
    return value


def _optimizer_settings(optimizer: keras.Optimizer) -> dict[str, Any]:
    config = _plain({"": type(optimizer).__name__, **optimizer.get_config()})
    return {f"optimizer {key}".strip(): value for key, value in config.items()}


def _plain(config: Any) -> Any:
    """Return a configuration as plain JSON values, without names of objects."""

    def describe(value: Any) -> Any:
        if hasattr(value, "get_config"):
            return {"class": type(value).__name__, **value.get_config()}
        if hasattr(value, "tolist"):
            return value.tolist()
        return getattr(value, "__name__", type(value).__name__)

    def clean(values: dict[str, Any]) -> dict[str, Any]:
        values.pop("name", None)  # Keras numbers the names of equal objects
        # Learning rates are float32: their digits beyond the sixth are noise.
        return {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in values.items()}

    return json.loads(json.dumps(config, default=describe), object_hook=clean)


def _hash_of_images(data: ImageData) -> str:
    """Return a hash of the contents and labels of the training and validation images."""
    images = hashlib.sha256()
    for split in (data.train, data.val):
        for digest, label in zip(digests_of(split), split.labels.tolist(), strict=True):
            images.update(f"{digest} {label}\n".encode())
    return images.hexdigest()[:16]
