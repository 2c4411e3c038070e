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

from transfer.cases.builders import head_optimizer
from transfer.cases.compiling import compile_like, is_default_loss, soft_loss
from transfer.cases.decisions import find_decision
from transfer.cases.policies import OPTIMIZERS, POLICIES, Case
from transfer.common.errors import InputError
from transfer.common.keras_private import compile_arguments
from transfer.distributed.process_group import current_group
from transfer.distributed.strategies import scope_of
from transfer.frozen import heads
from transfer.frozen.extraction import Features
from transfer.frozen.sampling import Sampler
from transfer.images import pipeline
from transfer.networks import surgery
from transfer.training.checkpoints import pack, unpack
from transfer.training.mirroring import decide_flips
from transfer.training.phases import Rows, TrainingLog, TrainingSettings, stop_in_time
from transfer.training.recipes import Recipe
from transfer.training.time_limit import StopInTime, log_early_end
from transfer.training.user_callbacks import HeadLink, restored_rate

logger = logging.getLogger(__name__)

MAX_EXACT_BYTES = 2 * 2**30
"""Largest size of the features, as float32, for an exact head. The solver needs about three times as much memory."""

PATIENCE = 10
"""Epochs without a better validation loss after which training of a head stops and restores its best weights."""

MIN_DELTA = 1e-3
"""Smallest decrease of the validation loss, in nats, that counts as better. At 0, easy problems would never stop."""

_ROWS = 4096  # number of images whose features are in memory at a time


def excludes_exact(model: keras.Model, *, head_only: bool) -> str:
    """Return the part of a model that excludes the exact solver, in words, or an empty text."""
    decision = find_decision(model)
    if not surgery.is_plain_head(model.layers[-1]):
        return "head"
    if not is_default_loss(model.loss):
        return "loss"
    # In fine-tuning, the optimizer is for the other layers.
    return "optimizer" if head_only and decision and decision.optimizer not in OPTIMIZERS else ""


def check_loss(model: keras.Model, solver: str, recipe: Recipe, *, head_only: bool) -> None:
    """Raise if the exact solver does not support a model, or its loss does not take the soft labels of a recipe."""
    part = excludes_exact(model, head_only=head_only) if solver == "exact" else ""
    if part:
        raise InputError(
            f"Expected the default {part} with solver='exact', which supports no other. Leave solver out, or build the "
            f"model without {part}=..."
        )
    if recipe.label_smoothing or recipe.mix != "none":
        soft_loss(model.loss, model.output_shape[-1])


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
    exact = settings.solver == "exact" or (
        settings.solver == "auto" and _can_solve(settings, features["train"])
    )
    labels = {"train": np.tile(settings.data.train.labels, views), "val": settings.data.val.labels}
    with restored_rate(model.optimizer):
        weights, head_log = (_solve if exact else _train_in_epochs)(settings, features, labels)
    # Workers may round differently: all take the chief's result.
    shared = current_group().broadcast_arrays(lambda: pack("head", weights))
    model.layers[-1].set_weights(unpack(shared, "head"))
    rows = current_group().broadcast(lambda: head_log.rows)
    if exact:
        with restored_rate(model.optimizer):
            settings.callbacks.report("head", rows[0])
    return log + replace(head_log, rows=rows, seconds_training=time.perf_counter() - start)


def _can_solve(settings: TrainingSettings, features: Features) -> bool:
    """Return whether the exact solver suits the model and the size of the features; log why it excludes a model."""
    part = excludes_exact(settings.model, head_only=settings.head_only)
    if part:
        logger.info("Training the head in epochs: the exact solver supports only the default %s.", part)
    return not part and 4 * math.prod(features.shape) <= MAX_EXACT_BYTES


def _solve(
    settings: TrainingSettings, features: dict[str, Features], labels: dict[str, np.ndarray]
) -> tuple[list[np.ndarray], TrainingLog]:
    """Solve the head exactly, and choose its method and its regularization."""
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
            values = head.measure(x[name], labels[name])
            values |= _own_metrics(settings, head.probabilities(x[name]), labels[name])
            row |= {f"{prefix}{key}": value for key, value in values.items()}
    tried_on = head.chosen_by if head.tried else ""
    log = TrainingLog(
        [row],
        regularization=head.regularization,
        head_method=head.method,
        tried=head.tried,
        tried_on=tried_on,
    )
    return [head.kernel, head.bias], log


def _own_metrics(
    settings: TrainingSettings, probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Return the metrics of the caller, for probabilities of all images."""
    if set(compile_arguments(settings.model)["metrics"] or ()) <= {"accuracy"}:
        return {}
    given = keras.Input(probabilities.shape[1:])
    same = keras.Model(given, keras.layers.Identity()(given))
    compile_like(same, settings.model, keras.optimizers.SGD())
    values = same.evaluate(probabilities.astype("float32"), labels, verbose=0, return_dict=True)
    return {name: value for name, value in values.items() if name not in ("loss", "accuracy")}


def _train_in_epochs(
    settings: TrainingSettings, features: dict[str, Features], labels: dict[str, np.ndarray]
) -> tuple[list[np.ndarray], TrainingLog]:
    """Train the head with Keras, without holding the features in memory."""
    plain = surgery.is_plain_head(settings.model.layers[-1])
    # The scaling becomes part of the weights of a plain head. Another head gets the features as they are.
    mean, scale = _mean_and_scale(features["train"]) if plain else (np.float32(0), 1.0)
    head = _head_to_train(settings, features["train"].shape[1])

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
        least = MIN_DELTA if is_default_loss(settings.model.loss) else 0.0
        options = {"min_delta": least, "patience": PATIENCE, "restore_best_weights": True}
        callbacks = [keras.callbacks.EarlyStopping("val_loss", **options)]
    else:
        logger.warning(
            "There are no validation images: the head trains for all epochs and keeps its last weights."
        )

    def unscaled(weights: list[np.ndarray]) -> list[np.ndarray]:
        return [weights[0] / scale, weights[1] - mean @ weights[0] / scale] if plain else weights

    def rescaled(weights: list[np.ndarray]) -> list[np.ndarray]:
        return [weights[0] * scale, weights[1] + mean @ weights[0]] if plain else weights

    rows, link = Rows("head"), HeadLink(settings.model, head, unscaled, rescaled)
    epochs = (settings.epochs if settings.head_only else None) or POLICIES[Case.SMALL_SIMILAR].epochs or 1
    per_epoch = -(-len(labels["train"]) // settings.batch_size)
    stop = stop_in_time(settings, epochs=epochs, per_epoch=per_epoch)
    callbacks += [*settings.callbacks.phase("head", head=link), rows, *([stop] if stop else [])]
    head.fit(
        batches["train"],
        validation_data=batches.get("val"),
        epochs=epochs,
        **settings.fit_options(callbacks),
    )
    weights = unscaled(head.layers[-1].get_weights())
    return weights, TrainingLog(rows.rows, kept_row=_kept_row(callbacks[0], settings, rows, epochs, stop))


def _kept_row(
    stopper: keras.callbacks.Callback,
    settings: TrainingSettings,
    rows: Rows,
    epochs: int,
    stop: StopInTime | None,
) -> int | None:
    """Log why the training of a head ended early, and return the row whose weights it has; None for the last."""
    own = isinstance(stopper, keras.callbacks.EarlyStopping)
    by_own = own and stopper.stopped_epoch > 0
    why = "the validation loss no longer falls" if by_own else "a callback stopped the training"
    log_early_end(stop, len(rows.rows), epochs, why)
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


def _head_to_train(settings: TrainingSettings, width: int) -> keras.Model:
    """Return a copy of the model's head on features, compiled like the model; a plain head has zero weights."""
    model, own, smoothing = settings.model, settings.model.layers[-1], settings.recipe.label_smoothing
    if surgery.is_plain_head(own):
        # The problem is convex, so the start matters only with more features than images: there, random weights
        # would remain as noise.
        layer = surgery.new_like(own, kernel_initializer="zeros", bias_initializer="zeros", trainable=True)
    else:
        layer = surgery.copy_head(own, width, name=own.name)
    options = {"seed": settings.seed, "dtype": "float32"}
    dropout = [keras.layers.Dropout(settings.dropout, **options)] if settings.dropout else []
    head = keras.Sequential([keras.Input((width,)), *dropout, layer])
    compile_like(head, model, head_optimizer(model, head_only=settings.head_only), smoothing=smoothing)
    return head
