"""`fit`: the head on cached features where the trunk is frozen, end to end otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from transfer import features, pipeline, surgery
from transfer.builders import start_over, unfreeze
from transfer.cases import POLICIES, Case
from transfer.datasets import ImageData, flips_are_safe
from transfer.errors import InputError
from transfer.features import input_size
from transfer.pipeline import batch_arrays, make_dataset
from transfer.strategy import allow_uneven_batches, scope_of

log = logging.getLogger(__name__)

BATCH_SIZE = 32
"""Pictures per training step: what most published fine-tuning recipes use, and what a laptop bears."""

PATIENCE = {"head": 10, "fine-tune": 3}
"""Epochs without a better validation loss before training stops and takes the best weights back. A head's
epochs are short and its loss is smooth; an epoch of the whole network is long and teaches much."""

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
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds_features: float = 0.0
    seconds_training: float = 0.0
    init: str = "pretrained"

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
    plan = getattr(model, "plan", None)
    weights = pipeline.class_weights(data.train.labels, data.num_classes) if class_weights else None
    flip = flips_are_safe(data.class_names) if flip is None else flip
    run = _Run(model, data, batch_size, augment, flip, weights, seed, list(callbacks), verbose)
    done = TrainingLog(init="random" if plan and plan.init == "random" else "pretrained")
    if _only_head_trains(model):
        _train_head(run, done, epochs or POLICIES[Case.SMALL_SIMILAR].epochs, alone=True)
        return done
    epochs = epochs or POLICIES[plan.case if plan else Case.LARGE_SIMILAR].epochs
    if plan and plan.init != "random":
        _train_head(run, done, POLICIES[Case.SMALL_SIMILAR].epochs, alone=False)
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


def _only_head_trains(model: keras.Model) -> bool:
    head = model.layers[-1]
    return (
        isinstance(head, keras.layers.Dense)
        and head.use_bias
        and len(head.input.shape) == 2
        and len(model.trainable_weights) == len(head.trainable_weights) > 0
    )


def _train_head(run: _Run, done: TrainingLog, epochs: int, *, alone: bool) -> None:
    """Run the trunk once over the pictures, train a head on what it gave, and put it into the model."""
    model, size = run.model, input_size(run.model, run.data)
    start = time.perf_counter()
    with scope_of(model):
        trunk = surgery.trunk_of(model)
    cached = {
        name: features.extract(trunk, part, image_size=size, name=f"{name} features")
        for name, part in (("train", run.data.train), ("val", run.data.val))
    }
    done.seconds_features += time.perf_counter() - start
    start = time.perf_counter()
    mean, scale = _center_and_scale(cached["train"])
    head = _zero_head(model)
    if not alone:  # the model's own rate is for fine-tuning
        head.optimizer.learning_rate = POLICIES[Case.SMALL_SIMILAR].learning_rate
    sets = {
        name: batch_arrays(
            (cached[name] - mean) / scale,
            getattr(run.data, name).labels,
            batch_size=run.batch_size,
            shuffle_seed=run.seed if name == "train" else None,
        )
        for name in cached
        if len(cached[name])
    }
    history = head.fit(
        sets["train"],
        validation_data=sets.get("val"),
        epochs=epochs,
        callbacks=[*_early_stopping(run.data, "head"), *(run.callbacks if alone else [])],
        class_weight=run.class_weights,
        verbose=run.verbose,
        shuffle=False,  # the data sets shuffle themselves
    )
    kernel, bias = head.get_weights()
    model.layers[-1].set_weights([kernel / scale, bias - mean @ kernel / scale])
    if alone and not model.optimizer.built:
        with scope_of(model):
            model.optimizer.build(
                model.trainable_variables
            )  # else Keras warns when the saved model is loaded
    done.add("head", history, time.perf_counter() - start)


def _center_and_scale(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of each feature, and one scale for all: features keep their proportions, since scaling each
    by itself blows up the ones that are seldom active."""
    mean = x.mean(axis=0)
    return mean, float(np.sqrt(np.mean(np.square(x - mean)))) or 1.0


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
