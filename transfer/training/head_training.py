"""Train the head of a frozen network on features that are computed once."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax

from transfer.cases.policies import POLICIES, Case
from transfer.distributed.process_group import current_group
from transfer.distributed.strategies import scope_of
from transfer.frozen import heads
from transfer.frozen.extraction import Features
from transfer.frozen.sampling import Sampler
from transfer.images import pipeline
from transfer.networks import surgery
from transfer.training.mirroring import decide_flips
from transfer.training.phases import Rows, TrainingLog, TrainingSettings, smoothed_cross_entropy
from transfer.training.user_callbacks import HeadLink, restored_rate

logger = logging.getLogger(__name__)

MAX_EXACT_BYTES = 2 * 2**30
"""Largest size of the features, as float32, for an exact head. The solver needs about three times as much memory."""

PATIENCE = 10
"""Epochs without a better validation loss after which training of a head stops and restores its best weights."""

MIN_DELTA = 1e-3
"""Smallest decrease of the validation loss, in nats, that counts as better. At 0, easy problems would never stop."""

_ROWS = 4096  # number of images whose features are in memory at a time

_Weights = tuple[np.ndarray, np.ndarray]  # kernel and bias


def train_head(settings: TrainingSettings) -> TrainingLog:
    """Compute features once, train a head on them, put it into the model, and return the log."""
    model, head_only = settings.model, settings.head_only
    with scope_of(model):
        if head_only and not model.optimizer.built:  # otherwise Keras warns when the saved model is loaded
            model.optimizer.build(model.trainable_variables)
        extractor = surgery.feature_extractor_of(model)
    engine, start = settings.make_engine(extractor), time.perf_counter()
    flips = decide_flips(settings, extractor, engine)
    settings = replace(settings, flip=flips.flip)
    deciding = time.perf_counter() - start
    views = (settings.views or 1) if head_only else 1
    features, log = settings.extract(extractor, engine=engine, views=views, name="features")
    log = replace(flips + log, seconds_features=log.seconds_features + deciding)
    start = time.perf_counter()
    small = 4 * math.prod(features["train"].shape) <= MAX_EXACT_BYTES
    exact = settings.solver == "exact" or (settings.solver == "auto" and small)
    labels = {"train": np.tile(settings.data.train.labels, views), "val": settings.data.val.labels}
    with restored_rate(model.optimizer):
        (kernel, bias), head_log = (_solve if exact else _train_in_epochs)(settings, features, labels)
    # Workers may round differently: all take the chief's result.
    weights = current_group().broadcast_arrays(lambda: {"kernel": kernel, "bias": bias})
    model.layers[-1].set_weights([weights["kernel"], weights["bias"]])
    rows = current_group().broadcast(lambda: head_log.rows)
    if exact:
        with restored_rate(model.optimizer):
            settings.callbacks.report("head", rows[0])
    return log + replace(head_log, rows=rows, seconds_training=time.perf_counter() - start)


def _solve(
    settings: TrainingSettings, features: dict[str, Features], labels: dict[str, np.ndarray]
) -> tuple[_Weights, TrainingLog]:
    """Solve the convex problem of the head exactly and choose its regularization."""
    x = {name: part.load() for name, part in features.items()}
    train = settings.data.train
    views = len(labels["train"]) // len(train)
    # Views of one image stay in one fold of the cross-validation.
    groups = train.groups or (range(len(train)) if views > 1 else ())
    head = heads.solve(
        x["train"],
        labels["train"],
        settings.data.num_classes,
        val=(x["val"], labels["val"]) if "val" in x else None,
        class_weights=settings.class_weights,
        groups=[*groups] * views,
        seed=settings.seed,
    )
    row: dict[str, Any] = {"phase": "head", "epoch": 1}
    for name, prefix in (("train", ""), ("val", "val_")):
        if name in x:
            scores, truth = log_softmax(x[name] @ head.kernel + head.bias, axis=1), labels[name]
            row[f"{prefix}loss"] = float(-scores[np.arange(len(truth)), truth].mean())
            row[f"{prefix}accuracy"] = float((scores.argmax(axis=1) == truth).mean())
    tried_on = head.chosen_by if head.tried else ""
    log = TrainingLog([row], regularization=head.regularization, tried=head.tried, tried_on=tried_on)
    return (head.kernel, head.bias), log


def _train_in_epochs(
    settings: TrainingSettings, features: dict[str, Features], labels: dict[str, np.ndarray]
) -> tuple[_Weights, TrainingLog]:
    """Train the head with Keras, without holding the features in memory."""
    policy = POLICIES[Case.SMALL_SIMILAR]
    mean, scale = _mean_and_scale(features["train"])
    head = _zero_head(settings)
    if not settings.head_only:  # the model's learning rate is for fine-tuning
        head.optimizer.learning_rate = policy.learning_rate

    def standardized(part: Features, positions: np.ndarray) -> np.ndarray:
        return ((part.take(positions) - mean) / scale).astype("float32")

    batches = {}
    for name, part in features.items():
        read: Callable[[np.ndarray], np.ndarray] = functools.partial(standardized, part)
        options: dict[str, Any] = {"width": part.shape[1], "batch_size": settings.batch_size}
        if name == "train":  # reads blocks of rows: single random rows would take longer than the training
            sampler = Sampler(read, part.rows, seed=settings.seed)
            read = sampler.take
            options |= {"shuffle_seed": settings.seed, "arrange": sampler.order}
        batches[name] = pipeline.batch_rows(read, labels[name], **options)
    callbacks: list[keras.callbacks.Callback] = []
    if "val" in batches:
        options = {"min_delta": MIN_DELTA, "patience": PATIENCE, "restore_best_weights": True}
        callbacks = [keras.callbacks.EarlyStopping("val_loss", **options)]
    else:
        logger.warning(
            "There are no validation images: the head trains for all epochs and keeps its last weights."
        )

    def unscaled(weights: list[np.ndarray]) -> list[np.ndarray]:
        return [weights[0] / scale, weights[1] - mean @ weights[0] / scale]

    def rescaled(weights: list[np.ndarray]) -> list[np.ndarray]:
        return [weights[0] * scale, weights[1] + mean @ weights[0]]

    rows, link = Rows("head"), HeadLink(settings.model, head, unscaled, rescaled)
    callbacks += [*settings.callbacks.phase("head", head=link), rows]
    epochs = (settings.epochs if settings.head_only else None) or policy.epochs or 1
    head.fit(
        batches["train"],
        validation_data=batches.get("val"),
        epochs=epochs,
        **settings.fit_options(callbacks),
    )
    kernel, bias = unscaled(head.layers[-1].get_weights())
    return (kernel, bias), TrainingLog(rows.rows, kept_row=_kept_row(callbacks[0], settings, rows, epochs))


def _kept_row(
    stopper: keras.callbacks.Callback, settings: TrainingSettings, rows: Rows, epochs: int
) -> int | None:
    """Log why the training of a head ended early, and return the row whose weights it has; None for the last."""
    own = isinstance(stopper, keras.callbacks.EarlyStopping)
    if len(rows.rows) < epochs:
        by_own = own and stopper.stopped_epoch > 0
        why = "the validation loss no longer falls" if by_own else "a callback stopped the training"
        logger.info("Stopped after epoch %d of %d: %s.", len(rows.rows), epochs, why)
    restored = settings.callbacks.restored_epoch()
    return stopper.best_epoch if restored is None and own and stopper.best_weights is not None else restored


def _mean_and_scale(features: Features) -> tuple[np.ndarray, float]:
    """Return the mean of each feature and one standard deviation for all of them."""
    # One scale for all keeps the proportions: a scale for each would amplify features that are rarely active.
    count = len(features)
    parts = [np.arange(i, min(i + _ROWS, count)) for i in range(0, count, _ROWS)]
    total = sum(features.take(part).astype("float64").sum(axis=0) for part in parts)
    mean = (total / count).astype("float32")
    squares = sum(np.square(features.take(part).astype("float64") - mean).sum() for part in parts)
    return mean, float(np.sqrt(squares / (count * len(mean)))) or 1.0


def _zero_head(settings: TrainingSettings) -> keras.Model:
    """Return a copy of the model's head with zero weights, compiled like the model."""
    # The problem is convex, so the start matters only with more features than images: there, random weights
    # would remain as noise.
    own = settings.model.layers[-1]
    zero = surgery.new_like(own, kernel_initializer="zeros", bias_initializer="zeros", trainable=True)
    options = {"seed": settings.seed, "dtype": "float32"}
    dropout = [keras.layers.Dropout(settings.dropout, **options)] if settings.dropout else []
    head = keras.Sequential([keras.Input(own.kernel.shape[:1]), *dropout, zero])
    head.compile_from_config(settings.model.get_compile_config())
    if settings.recipe.label_smoothing:
        loss = smoothed_cross_entropy(settings.recipe.label_smoothing, own.units)
        head.compile(head.optimizer, loss, metrics=["accuracy"])
    return head
