"""`fit`: the head on cached features where the trunk is frozen, end to end otherwise."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax

from transfer import features, heads, pipeline, surgery
from transfer.builders import start_over, unfreeze
from transfer.cache import FeatureCache
from transfer.cases import POLICIES, Case
from transfer.datasets import ImageData, flips_are_safe
from transfer.errors import InputError, unknown
from transfer.features import input_size
from transfer.pipeline import make_dataset
from transfer.strategy import allow_uneven_batches, scope_of

log = logging.getLogger(__name__)

BATCH_SIZE = 32
"""Pictures per training step: what most published fine-tuning recipes use, and what a laptop bears."""

PATIENCE = {"head": 10, "fine-tune": 3}
"""Epochs without a better validation loss before training stops and takes the best weights back. A head's
epochs are short and its loss is smooth; an epoch of the whole network is long and teaches much."""

SOLVERS = ("auto", "exact", "sgd")
"""How a head on cached features is trained."""

MOST_EXACT = 2 * 2**30
"""Bytes of features, as float32, that are solved exactly; the solver holds about three times as much."""

_ROWS = 4096  # of features in memory at a time

MIN_DELTA = 1e-3
"""A validation loss lower by less than this, in nats, is not better: the head of an easy problem would creep on."""


@dataclass
class TrainingLog:
    """What happened in `fit`.

    Attributes:
        rows: one per epoch: `phase` (`"head"`, `"fine-tune"`, `"from-scratch"`), `epoch`, `loss`,
            `accuracy`, and `val_loss`, `val_accuracy` where there is a validation set.
        seconds_features: spent in forward passes over the frozen part.
        seconds_training: spent in training proper.
        init: where the weights that were kept started from: `"pretrained"` or `"random"`.
        computed: pictures that the frozen part ran over; the features of the others were kept from before.
        engine: what ran it.
        regularisation: that was chosen for an exact head (see `heads.Head`).
        tried: what it was chosen from: C, loss and accuracy of pictures left out.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds_features: float = 0.0
    seconds_training: float = 0.0
    init: str = "pretrained"
    computed: int = 0
    engine: str = ""
    regularisation: float | None = None
    tried: tuple[tuple[float, float, float], ...] = ()

    @property
    def history(self) -> dict[str, list[Any]]:
        """The rows as Keras' `History.history` gives them: a list per column."""
        columns = dict.fromkeys(key for row in self.rows for key in row)
        return {key: [row.get(key) for row in self.rows] for key in columns}

    def add(self, phase: str, history: keras.callbacks.History, seconds: float) -> None:
        """Append the epochs of one call of Keras' `fit`."""
        self.seconds_training += seconds
        for i, epoch in enumerate(history.epoch):
            values = {key: float(values[i]) for key, values in history.history.items()}
            self.rows.append({"phase": phase, "epoch": epoch + 1, **values})


def fit(
    model: keras.Model,
    data: ImageData,
    *,
    epochs: int | None = None,
    batch_size: int = BATCH_SIZE,
    augment: str = "light",
    flip: bool | None = None,
    class_weights: bool = False,
    solver: str = "auto",
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = "auto",
) -> TrainingLog:
    """Train a built model.

    Where only the head trains, the frozen trunk runs once over the pictures and the head trains on what
    it gave, from zero: as good as training through the trunk, for one forward pass. Otherwise the head is
    trained so first, where the weights are pre-trained, since a random head would tear them (LP-FT: Kumar
    et al. 2022, arXiv:2202.10054), and then everything. The weights with the best validation loss stay.

    Args:
        model: of the builders, compiled; its weights change.
        data: of `load_data`; its `test` pictures are not looked at.
        epochs: at most so many; None is the case's own number (see `cases.POLICIES`).
        batch_size: pictures per step, over all devices together.
        augment: a level of `augmentation.AUGMENTATIONS`, for training end to end; a frozen trunk sees each
            picture once, as it is.
        flip: whether augmentation mirrors pictures; None does, but where the classes are digits or letters.
        class_weights: let pictures of small classes count more, so that all classes count the same.
        solver: of the head on cached features: `"exact"` finds the optimum of the convex problem, its
            regularisation chosen; `"sgd"` trains in epochs, as Keras does, without holding the features in memory;
            `"auto"` takes the first while they fit, unless `epochs` or `callbacks` are given.
        engine: what runs the frozen trunk, one of `engines.ENGINES`.
        cache: where features are kept; None is the user's own cache.
        seed: of the order and the augmentation. Dropout draws from seeds that its layers got when the base was
            made: `keras.utils.set_random_seed` before that makes it repeatable too.
        callbacks: more Keras callbacks, for the phase that trains end to end, or the head where only it
            does.
        verbose: as in Keras.

    Returns:
        What happened, epoch by epoch.

    Raises:
        InputError: the model's classes or compilation do not fit, or `epochs` or `batch_size` is below 1.

    Example:
        >>> from transfer.datasets import load_data
        >>> from transfer.builders import small_similar
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> model = small_similar(base, 12)
        >>> fit(model, load_data("emoji"), epochs=1, verbose=0).history["phase"]
        ['head']
    """
    _check_arguments(model, data, epochs, batch_size)
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    plan = getattr(model, "plan", None)
    weights = pipeline.class_weights(data.train.labels, data.num_classes) if class_weights else None
    flip = flips_are_safe(data.class_names) if flip is None else flip
    head_alone = features.frozen_trunk(model) is not None
    if solver == "auto" and (epochs or callbacks) and head_alone:
        solver = "sgd"
    run = _Run(
        model, data, batch_size, augment, flip, weights, solver, engine, cache, seed, list(callbacks), verbose
    )
    done = TrainingLog(init="random" if plan and plan.init == "random" else "pretrained")
    if head_alone:
        _train_head(run, done, epochs, alone=True)
        return done
    epochs = epochs or POLICIES[plan.case if plan else Case.LARGE_SIMILAR].epochs
    if plan and plan.init != "random":
        _train_head(run, done, None, alone=False)
    _train_all(run, done, epochs, "from-scratch" if done.init == "random" else "fine-tune")
    if plan and plan.init == "auto" and not _succeeded(done, data):
        _fall_back(run, done, epochs)
    return done


@dataclass
class _Run:
    """The arguments of `fit`, handed on together."""

    model: keras.Model
    data: ImageData
    batch_size: int
    augment: str
    flip: bool
    class_weights: dict[int, float] | None
    solver: str
    engine: str
    cache: FeatureCache | None
    seed: int
    callbacks: list[keras.callbacks.Callback]
    verbose: str | int


def _check_arguments(model: keras.Model, data: ImageData, epochs: int | None, batch_size: int) -> None:
    classes = model.output_shape[-1]
    if classes != data.num_classes:
        raise InputError(
            f"The model has {classes} classes, the data have {data.num_classes}. Build it for the data."
        )
    if not model.compiled:
        raise InputError(
            "Expected a compiled model. The builders compile theirs; compile yours before `fit`."
        )
    if (epochs is not None and epochs < 1) or batch_size < 1:
        raise InputError(f"Expected epochs and batch_size of 1 or more. Received: {epochs}, {batch_size}.")


def _train_head(run: _Run, done: TrainingLog, epochs: int | None, *, alone: bool) -> None:
    """Run the trunk once over the pictures, train a head on what it gave, and put it into the model."""
    model, size = run.model, input_size(run.model, run.data)
    start = time.perf_counter()
    with scope_of(model):
        trunk = surgery.trunk_of(model)
    cached = {
        name: features.extract(
            trunk, part, image_size=size, engine=run.engine, cache=run.cache, name=f"{name} features"
        )
        for name, part in (("train", run.data.train), ("val", run.data.val))
        if len(part)
    }
    done.seconds_features += time.perf_counter() - start
    done.computed += sum(part.computed for part in cached.values())
    done.engine = cached["train"].engine or done.engine
    start = time.perf_counter()
    exact = run.solver == "exact" or (run.solver == "auto" and _fits_in_memory(cached["train"]))
    kernel, bias = _solved(run, done, cached) if exact else _descended(run, done, cached, epochs, alone=alone)
    model.layers[-1].set_weights([kernel, bias])
    if alone and not model.optimizer.built:
        with scope_of(model):
            model.optimizer.build(
                model.trainable_variables
            )  # else Keras warns when the saved model is loaded
    done.seconds_training += time.perf_counter() - start


def _fits_in_memory(cached: features.Features) -> bool:
    return 4 * math.prod(cached.shape) <= MOST_EXACT


def _solved(
    run: _Run, done: TrainingLog, cached: dict[str, features.Features]
) -> tuple[np.ndarray, np.ndarray]:
    """The head as the solution of a convex problem, its regularisation chosen."""
    x = {name: part.load() for name, part in cached.items()}
    labels = {name: getattr(run.data, name).labels for name in x}
    head = heads.solve(
        x["train"],
        labels["train"],
        run.data.num_classes,
        val=(x["val"], labels["val"]) if "val" in x else None,
        class_weights=run.class_weights,
        groups=run.data.train.groups,
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
    done.regularisation, done.tried = head.regularisation, head.tried
    return head.kernel, head.bias


def _descended(
    run: _Run, done: TrainingLog, cached: dict[str, features.Features], epochs: int | None, *, alone: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The head by Keras' own training, for features past memory."""
    policy = POLICIES[Case.SMALL_SIMILAR]
    mean, scale = _center_and_scale(cached["train"])
    head = _zero_head(run.model)
    if not alone:  # the model's own rate is for fine-tuning
        head.optimizer.learning_rate = policy.learning_rate
    sets = {
        name: pipeline.batch_rows(
            functools.partial(_standardized, part, mean, scale),
            getattr(run.data, name).labels,
            width=part.shape[1],
            batch_size=run.batch_size,
            shuffle_seed=run.seed if name == "train" else None,
        )
        for name, part in cached.items()
    }
    history = head.fit(
        sets["train"],
        validation_data=sets.get("val"),
        epochs=epochs or policy.epochs,
        callbacks=[*_early_stopping(run.data, "head"), *(run.callbacks if alone else [])],
        class_weight=run.class_weights,
        verbose=run.verbose,
        shuffle=False,  # the data sets shuffle themselves
    )
    done.add("head", history, 0.0)
    kernel, bias = head.get_weights()
    return kernel / scale, bias - mean @ kernel / scale


def _center_and_scale(cached: features.Features) -> tuple[np.ndarray, float]:
    """The mean of each feature, and one scale for all: features keep their proportions, since scaling each
    by itself blows up the ones that are seldom active."""
    parts = [np.arange(i, min(i + _ROWS, len(cached))) for i in range(0, len(cached), _ROWS)]
    total = sum(cached.take(part).astype("float64").sum(axis=0) for part in parts)
    mean = (total / len(cached)).astype("float32")
    squares = sum(np.square(cached.take(part).astype("float64") - mean).sum() for part in parts)
    return mean, float(np.sqrt(squares / (len(cached) * len(mean)))) or 1.0


def _standardized(
    cached: features.Features, mean: np.ndarray, scale: float, positions: np.ndarray
) -> np.ndarray:
    return ((cached.take(positions) - mean) / scale).astype("float32")


def _zero_head(model: keras.Model) -> keras.Model:
    """A copy of the model's head, compiled like the model, that starts from zero.

    Its problem is convex, so that the start decides nothing but what remains where there are more features
    than pictures: random weights stay there as noise.
    """
    own = model.layers[-1]
    config = {
        **own.get_config(),
        "kernel_initializer": "zeros",
        "bias_initializer": "zeros",
        "trainable": True,
    }
    head = keras.Sequential([keras.Input((own.kernel.shape[0],)), type(own).from_config(config)])
    head.compile_from_config(model.get_compile_config())
    return head


def _train_all(run: _Run, done: TrainingLog, epochs: int, phase: str) -> None:
    start = time.perf_counter()
    size = input_size(run.model, run.data)
    if run.augment != "none" and not run.flip:
        log.info(
            "Augmentation mirrors no pictures: the classes are digits or letters, or it was asked not to."
        )
    allow_uneven_batches(run.model)
    history = run.model.fit(
        make_dataset(
            run.data.train,
            image_size=size,
            batch_size=run.batch_size,
            training=True,
            augment=run.augment,
            flip=run.flip,
            seed=run.seed,
        ),
        validation_data=make_dataset(
            run.data.val, image_size=size, batch_size=features.BATCH_SIZE, cache=True
        )
        if len(run.data.val)
        else None,
        epochs=epochs,
        callbacks=[*_early_stopping(run.data, "fine-tune"), *run.callbacks],
        class_weight=run.class_weights,
        verbose=run.verbose,
        shuffle=False,  # the data sets shuffle themselves
    )
    done.add(phase, history, time.perf_counter() - start)


def _early_stopping(data: ImageData, phase: str) -> list[keras.callbacks.Callback]:
    if not len(data.val):
        log.warning(
            "There are no validation pictures: training runs all its epochs and keeps the last weights."
        )
        return []
    return [
        keras.callbacks.EarlyStopping(
            "val_loss", min_delta=MIN_DELTA, patience=PATIENCE[phase], restore_best_weights=True
        )
    ]


def _succeeded(done: TrainingLog, data: ImageData) -> bool:
    """Say whether validation shows that something was learnt: two standard errors above always guessing
    the most frequent class."""
    best = max((row.get("val_accuracy", 1.0) for row in done.rows if row["phase"] != "head"), default=0.0)
    if not len(data.val):
        return True
    guess = np.bincount(data.val.labels).max() / len(data.val)
    return bool(best > guess + 2 * np.sqrt(guess * (1 - guess) / len(data.val)))


def _fall_back(run: _Run, done: TrainingLog, epochs: int) -> None:
    """Start the same network from random weights; keep whichever has the better validation loss."""
    log.warning("From the pre-trained weights, validation is no better than guessing: trying random weights.")
    model = run.model
    before = model.get_weights()
    start_over(model, seed=run.seed)
    earlier = min(row["val_loss"] for row in done.rows)
    _train_all(run, done, epochs, "from-scratch")
    later = min(row["val_loss"] for row in done.rows if row["phase"] == "from-scratch")
    if later < earlier:
        done.init = "random"
        log.warning("Random weights did better (validation loss %.3f against %.3f): kept.", later, earlier)
    else:
        unfreeze(model)
        model.set_weights(before)
        log.warning("Random weights did no better (validation loss %.3f against %.3f).", later, earlier)
