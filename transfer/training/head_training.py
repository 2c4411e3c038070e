"""The head of a frozen network, trained on what one forward pass gave."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax

from transfer.cases.policies import POLICIES, Case
from transfer.distributed.process_group import current_group
from transfer.distributed.strategies import scope_of
from transfer.frozen import extraction, heads
from transfer.frozen.sampling import Sampler
from transfer.images import pipeline
from transfer.networks import surgery
from transfer.training.phases import TrainingLog, TrainingSettings, smoothed

MOST_EXACT = 2 * 2**30
"""Bytes of features, as float32, that are solved exactly; the solver holds about three times as much."""

_ROWS = 4096  # of features in memory at a time


def train_head(run: TrainingSettings, done: TrainingLog, epochs: int | None, *, alone: bool) -> None:
    """Run the trunk once over the images, train a head on what it gave, and put it into the model."""
    model = run.model
    start = time.perf_counter()
    with scope_of(model):
        extractor = surgery.feature_extractor_of(model)
    views = (run.views or 1) if alone else 1
    cached = run.extract(extractor, views=views, name="features")
    done.views = views
    done.note_features(cached, time.perf_counter() - start)
    start = time.perf_counter()
    exact = run.solver == "exact" or (run.solver == "auto" and _fits_in_memory(cached["train"]))
    labels = {"train": np.tile(run.data.train.labels, views), "val": run.data.val.labels}
    if exact:
        kernel, bias = _solved(run, done, cached, labels)
    else:
        kernel, bias = _descended(run, done, cached, labels, epochs, alone=alone)
    told = current_group().arrays(lambda: {"kernel": kernel, "bias": bias})  # machines may round differently
    model.layers[-1].set_weights([told["kernel"], told["bias"]])
    done.rows = current_group().decision(lambda: done.rows)
    if alone and not model.optimizer.built:
        with scope_of(model):
            model.optimizer.build(
                model.trainable_variables
            )  # else Keras warns when the saved model is loaded
    done.seconds_training += time.perf_counter() - start


def _fits_in_memory(cached: extraction.Features) -> bool:
    return 4 * math.prod(cached.shape) <= MOST_EXACT


def _solved(
    run: TrainingSettings,
    done: TrainingLog,
    cached: dict[str, extraction.Features],
    labels: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The head as the solution of a convex problem, its regularization chosen."""
    x = {name: part.load() for name, part in cached.items()}
    views = len(labels["train"]) // len(run.data.train)
    groups = run.data.train.groups or (range(len(run.data.train)) if views > 1 else ())
    head = heads.solve(
        x["train"],
        labels["train"],
        run.data.num_classes,
        val=(x["val"], labels["val"]) if "val" in x else None,
        class_weights=run.class_weights,
        groups=[*groups] * views,
        seed=run.seed,
    )
    row: dict[str, Any] = {"phase": "head", "epoch": 1}
    for name, prefix in (("train", ""), ("val", "val_")):
        if name in x:
            scores = log_softmax(x[name] @ head.kernel + head.bias, axis=1)
            truth = labels[name]
            row[f"{prefix}loss"] = float(-scores[np.arange(len(truth)), truth].mean())
            row[f"{prefix}accuracy"] = float((scores.argmax(axis=1) == truth).mean())
    done.rows.append(row)
    done.regularization, done.tried = head.regularization, head.tried
    return head.kernel, head.bias


def _descended(
    run: TrainingSettings,
    done: TrainingLog,
    cached: dict[str, extraction.Features],
    labels: dict[str, np.ndarray],
    epochs: int | None,
    *,
    alone: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The head by Keras' own training, for features past memory."""
    policy = POLICIES[Case.SMALL_SIMILAR]
    mean, scale = _center_and_scale(cached["train"])
    head = _zero_head(run)
    if not alone:  # the model's own rate is for fine-tuning
        head.optimizer.learning_rate = policy.learning_rate
    sets = {}
    for name, part in cached.items():
        read: Callable[[np.ndarray], np.ndarray] = functools.partial(_standardized, part, mean, scale)
        options: dict[str, Any] = {"width": part.shape[1], "batch_size": run.batch_size}
        if name == "train":  # by blocks, since a jump of the disk for each row takes longer than training
            sampler = Sampler(read, part.rows, seed=run.seed)
            read = sampler.take
            options |= {"shuffle_seed": run.seed, "arrange": sampler.order}
        sets[name] = pipeline.batch_rows(read, labels[name], **options)
    history = head.fit(
        sets["train"],
        validation_data=sets.get("val"),
        epochs=epochs or policy.epochs,
        **run.fit_options([*run.early_stopping(), *(run.callbacks if alone else [])]),
    )
    done.add("head", history)
    kernel, bias = head.layers[-1].get_weights()
    return kernel / scale, bias - mean @ kernel / scale


def _center_and_scale(cached: extraction.Features) -> tuple[np.ndarray, float]:
    """The mean of each feature, and one scale for all: features keep their proportions, since scaling each
    by itself blows up the ones that are seldom active."""
    parts = [np.arange(i, min(i + _ROWS, len(cached))) for i in range(0, len(cached), _ROWS)]
    total = sum(cached.take(part).astype("float64").sum(axis=0) for part in parts)
    mean = (total / len(cached)).astype("float32")
    squares = sum(np.square(cached.take(part).astype("float64") - mean).sum() for part in parts)
    return mean, float(np.sqrt(squares / (len(cached) * len(mean)))) or 1.0


def _standardized(
    cached: extraction.Features, mean: np.ndarray, scale: float, positions: np.ndarray
) -> np.ndarray:
    return ((cached.take(positions) - mean) / scale).astype("float32")


def _zero_head(run: TrainingSettings) -> keras.Model:
    """A copy of the model's head, compiled like the model, that starts from zero."""
    own = run.model.layers[-1]
    zero = surgery.new_like(own, kernel_initializer="zeros", bias_initializer="zeros", trainable=True)
    noise = [keras.layers.Dropout(run.dropout, seed=run.seed, dtype="float32")] * bool(run.dropout)
    head = keras.Sequential([keras.Input((own.kernel.shape[0],)), *noise, zero])
    head.compile_from_config(run.model.get_compile_config())
    if run.label_smoothing:
        head.compile(head.optimizer, smoothed(run.label_smoothing, own.units), metrics=["accuracy"])
    return head
