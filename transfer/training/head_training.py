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

from transfer.cases.compiling import head_optimizer, is_default_loss, soft_loss
from transfer.cases.decisions import find_decision, task_of_model
from transfer.cases.policies import OPTIMIZERS, POLICIES, Case
from transfer.cases.shaped_labels import SHAPED, training_loss
from transfer.common.errors import InputError
from transfer.common.tasks import REGRESSION
from transfer.distributed.process_group import current_group
from transfer.distributed.strategies import scope_of
from transfer.frozen.extraction import Features
from transfer.frozen.sampling import Sampler
from transfer.images import pipeline
from transfer.networks import surgery
from transfer.training.checkpoints import pack, unpack
from transfer.training.exact_heads import solve_head
from transfer.training.measures import measure
from transfer.training.mirroring import decide_flips
from transfer.training.phases import Rows, TrainingLog, TrainingSettings, stop_in_time
from transfer.training.recipes import Recipe
from transfer.training.time_limit import StopInTime, log_early_end
from transfer.training.trained import find_trained
from transfer.training.user_callbacks import HeadLink, restored_rate
from transfer.training.validation import Validation
from transfer.training.value_units import to_standardized, to_units

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
    decision, task = find_decision(model), task_of_model(model)
    if not surgery.is_plain_head(model.layers[-1], task):
        return "head"
    if not is_default_loss(model.loss, task):
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
    if (task := task_of_model(model)) in SHAPED:
        check_mixing(recipe, task)
        training_loss(model.loss, task, smoothing=recipe.label_smoothing)
    elif recipe.label_smoothing or recipe.mix != "none":
        soft_loss(model.loss, model.output_shape[-1])


def check_mixing(recipe: Recipe, task: str) -> None:
    """Raise for CutMix in a regression."""
    if task == REGRESSION and recipe.mix == "cutmix":
        raise InputError(
            "Expected mix='none' or 'mixup' for the task regression. Received: 'cutmix'. The number of an image is not "
            "the mean of the numbers of its parts."
        )


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
    own = settings.labels_for_training(settings.data.train)
    labels = {"train": np.concatenate([own] * views), "val": settings.labels_for_training(settings.data.val)}
    with restored_rate(model.optimizer):
        weights, head_log = (solve_head if exact else _train_in_epochs)(settings, features, labels)
    # Workers may round differently: all take the chief's result.
    shared = current_group().broadcast_arrays(lambda: pack("head", weights))
    model.layers[-1].set_weights(unpack(shared, "head"))
    rows = current_group().broadcast(lambda: head_log.rows)
    thresholds = current_group().broadcast(lambda: list(head_log.thresholds))
    if exact:
        with restored_rate(model.optimizer):
            settings.callbacks.report("head", rows[0])
    return log + replace(
        head_log, rows=rows, thresholds=thresholds, seconds_training=time.perf_counter() - start
    )


def _can_solve(settings: TrainingSettings, features: Features) -> bool:
    """Return whether the exact solver suits the model and the size of the features; log why it excludes a model."""
    part = excludes_exact(settings.model, head_only=settings.head_only)
    if part:
        logger.info("Training the head in epochs: the exact solver supports only the default %s.", part)
    return not part and 4 * math.prod(features.shape) <= MAX_EXACT_BYTES


def _train_in_epochs(
    settings: TrainingSettings, features: dict[str, Features], labels: dict[str, np.ndarray]
) -> tuple[list[np.ndarray], TrainingLog]:
    """Train the head with Keras, without holding the features in memory."""
    plain = surgery.is_plain_head(settings.model.layers[-1], settings.data.task)
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
    stopper = _early_stopping(settings)
    callbacks: list[keras.callbacks.Callback] = [stopper] if stopper is not None else []
    if stopper is not None and settings.shaped:
        callbacks.insert(0, _validation(settings, batches.pop("val"), labels["val"]))

    def unscaled(weights: list[np.ndarray]) -> list[np.ndarray]:
        if plain:
            weights = [weights[0] / scale, weights[1] - mean @ weights[0] / scale]
        return weights if settings.value_scale is None else to_units(weights, settings.value_scale)

    def rescaled(weights: list[np.ndarray]) -> list[np.ndarray]:
        if settings.value_scale is not None:
            weights = to_standardized(weights, settings.value_scale)
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
    return weights, TrainingLog(rows.rows, kept_row=_kept_row(stopper, settings, rows, epochs, stop))


def _validation(settings: TrainingSettings, batches: Any, labels: np.ndarray) -> Validation:
    """Return a callback that measures the predictions of all validation images."""
    measured = functools.partial(measure, settings, labels=labels)
    return Validation(measured, lambda model: np.asarray(model.predict(batches, verbose=0)))


def _early_stopping(settings: TrainingSettings) -> keras.callbacks.EarlyStopping | None:
    """Return a callback that ends the training of a head by its validation loss, or None without such images."""
    if not len(settings.data.val):
        logger.warning(
            "There are no validation images: the head trains for all epochs and keeps its last weights."
        )
        return None
    least = MIN_DELTA if is_default_loss(settings.model.loss, settings.data.task) else 0.0
    return keras.callbacks.EarlyStopping(
        "val_loss", min_delta=least, patience=PATIENCE, restore_best_weights=True
    )


def _kept_row(
    stopper: keras.callbacks.EarlyStopping | None,
    settings: TrainingSettings,
    rows: Rows,
    epochs: int,
    stop: StopInTime | None,
) -> int | None:
    """Log why the training of a head ended early, and return the row whose weights it has; None for the last."""
    by_own = stopper is not None and stopper.stopped_epoch > 0
    why = "the validation loss no longer falls" if by_own else "a callback stopped the training"
    log_early_end(stop, len(rows.rows), epochs, why)
    restored = settings.callbacks.restored_epoch()
    if restored is None and stopper is not None and stopper.best_weights is not None:
        return int(stopper.best_epoch)
    return restored


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
    model, own = settings.model, settings.model.layers[-1]
    if surgery.is_plain_head(own, settings.data.task):
        # The problem is convex, so the start matters only with more features than images: there, random weights
        # would remain as noise.
        layer = surgery.new_like(own, kernel_initializer="zeros", bias_initializer="zeros", trainable=True)
    else:
        layer = surgery.copy_head(own, width, name=own.name)
        if settings.value_scale is not None and find_trained(model) is not None:
            layer.set_weights(to_standardized(layer.get_weights(), settings.value_scale))
    options = {"seed": settings.seed, "dtype": "float32"}
    dropout = [keras.layers.Dropout(settings.dropout, **options)] if settings.dropout else []
    head = keras.Sequential([keras.Input((width,)), *dropout, layer])
    settings.compile_with(head, head_optimizer(model, head_only=settings.head_only))
    return head
