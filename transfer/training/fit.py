"""`fit`: the head on cached features where the trunk is frozen, end to end otherwise."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.cases.builders import start_over, unfreeze
from transfer.cases.decisions import find_decision
from transfer.common.allocator import kept_memory
from transfer.common.errors import InputError, unknown
from transfer.distributed.process_group import current_group, versions
from transfer.frozen import extraction
from transfer.frozen.extraction import digests_of, input_size
from transfer.frozen.feature_cache import FeatureCache
from transfer.images import pipeline
from transfer.images.datasets import ImageData, flips_are_safe
from transfer.images.pipeline import make_dataset
from transfer.networks import graphs
from transfer.training.checkpoints import EVERY, Checkpoints, State
from transfer.training.fine_tuning import (
    adapt_batchnorm,
    finish,
    named,
    numbered,
    recall,
    train_all,
    whole_state,
)
from transfer.training.head_training import train_head
from transfer.training.phases import TrainingLog, TrainingSettings
from transfer.training.recipes import Recipe
from transfer.training.schedules import BATCH_SIZE

log = logging.getLogger(__name__)

SOLVERS = ("auto", "exact", "sgd")
"""How a head on cached features is trained."""


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
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
    views: int | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: float = EVERY,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = "auto",
) -> TrainingLog:
    """Train a built model.

    Where only the head trains, the frozen trunk runs once over the images and the head trains on what
    it gave, from zero: as good as training through the trunk, for one forward pass. Otherwise the head is
    trained so first, where the weights are pre-trained, since a random head would tear them (LP-FT: Kumar
    et al. 2022, arXiv:2202.10054), and then everything that trains; where layers in front are frozen, they run
    once too, and the epochs see the tail alone. The learning rate warms up and falls to 0; where validation says that
    the last weights are worse than earlier ones, those stay (see `schedules.KeepBetter`).

    Args:
        model: of the builders, compiled; its weights change.
        data: of `load_data`; its `test` images are not looked at.
        epochs: so many, but that a head stops earlier where validation gets no better; None goes by the number of
            images (see `schedules.epochs_for`), for a head by `cases.POLICIES`.
        batch_size: images per step, over all devices together.
        augment: a level of `augmentation.AUGMENTATIONS`, for training end to end; a frozen network sees each
            image as it is, and changed so where there are several `views`.
        flip: whether augmentation mirrors images; None does, but where the classes are digits or letters.
        class_weights: let images of small classes count more, so that all classes count the same.
        solver: of the head on cached features: `"exact"` finds the optimum of the convex problem, its
            regularization chosen; `"sgd"` trains in epochs, as Keras does, without holding the features in memory;
            `"auto"` takes the first while they fit, unless `epochs`, `callbacks`, `dropout` or `label_smoothing`
            are given.
        dropout: share of the features that are left out while a head on a frozen network trains in epochs.
        label_smoothing: share of each label that is spread over all classes, while a head trains in epochs or while
            everything trains.
        views: how often a frozen part sees each training image: first as it is, then changed by `augment`.
            None: once, also where layers behind it train. Several views were worth nothing there at up to 2,000
            images (`tests/benchmarks/fine_tuning.py views`).
        engine: what runs the frozen trunk, one of `engines.ENGINES`.
        cache: where features are kept; None is the user's own cache.
        seed: of the order and the augmentation. Dropout draws from seeds that its layers got when the base was
            made: `keras.utils.set_random_seed` before that makes it repeatable too.
        recipe: how everything trains, where more than a head does; None is the default of each ingredient.
        checkpoints: a folder to keep the training's state in. Where it holds an unfinished one with the same options,
            that is gone on with, and ends with the same weights as if it had not been interrupted; Ctrl-C and SIGTERM
            end a training after a step. None keeps nothing.
        checkpoint_every: seconds between two states.
        callbacks: more Keras callbacks, for the phase that trains end to end, or the head where only it
            does. With them, a frozen part in front of layers that train runs in each epoch.
        verbose: as in Keras.

    Returns:
        What happened, epoch by epoch.

    Raises:
        InputError: the model's classes or compilation do not fit, a number is out of range, options contradict each
            other, or `checkpoints` holds another training.
        Interrupted: a signal ended the training; its state is kept.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> from transfer.cases.builders import small_similar
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> model = small_similar(base, 12)
        >>> fit(model, load_data("emoji"), epochs=1, verbose=0).history["phase"]
        ['head']
    """
    _check_arguments(model, data, epochs, batch_size)
    head_alone = extraction.frozen_feature_extractor(model) is not None
    check_head_options(solver, dropout, label_smoothing, head_alone=head_alone)
    if views is not None:
        extraction.check_views(views, augment)
    if solver == "auto" and head_alone and (epochs or callbacks or dropout or label_smoothing):
        solver = "sgd"
    run = TrainingSettings(
        model=model,
        data=data,
        image_size=input_size(model, data),
        batch_size=batch_size,
        augment=augment,
        flip=flips_are_safe(data.class_names) if flip is None else flip,
        views=views,
        class_weights=pipeline.class_weights(data.train.labels, data.num_classes) if class_weights else None,
        solver=solver,
        dropout=dropout,
        label_smoothing=label_smoothing,
        engine=engine,
        cache=cache,
        seed=seed,
        recipe=recipe or Recipe(),
        kept=None,
        callbacks=list(callbacks),
        verbose=verbose if current_group().is_chief else 0,
    )
    if current_group().count > 1:
        current_group().agree(
            {**versions(), **_settings(run, epochs), "checkpoints": checkpoints is not None}
        )
    if checkpoints is not None:
        settings = _settings(run, epochs)
        run = replace(run, kept=Checkpoints(Path(checkpoints), settings, every=checkpoint_every))
    with kept_memory():
        return _fit(run, epochs, head_alone=head_alone)


def _fit(run: TrainingSettings, epochs: int | None, *, head_alone: bool) -> TrainingLog:
    """Train, from where an interrupted training was, if there is one."""
    if head_alone:  # nothing else heeds the recipe
        run = replace(run, recipe=Recipe(batchnorm=run.recipe.batchnorm))
    plan = find_decision(run.model)
    done = TrainingLog(init="random" if plan and plan.init == "random" else "pretrained")
    state = run.kept.latest() if run.kept is not None else None
    if state is not None:
        recall(done, state)
        log.info("Going on: %s.", state.where)
    elif run.recipe.batchnorm == "adapted" and done.init != "random":
        options: dict[str, Any] = {"image_size": run.image_size, "batch_size": run.batch_size}
        adapt_batchnorm(run.model, make_dataset(run.data.train, **options))
    if state is not None and state.phase == "done":
        finish(run, done, state)
        return done
    if head_alone:
        train_head(run, done, epochs, alone=True)
    else:
        _train_phases(run, done, epochs, state)
    if run.kept is not None:
        run.kept.save(whole_state(run, done))
    return done


def _settings(run: TrainingSettings, epochs: int | None) -> dict[str, Any]:
    """What makes a training what it is."""
    names = ("batch_size", "augment", "flip", "views", "solver", "dropout", "label_smoothing", "seed")
    asked = {**{name: getattr(run, name) for name in names}, "resize": run.data.train.resize}
    weighted = run.class_weights is not None
    settings = {"epochs": epochs, "class_weights": weighted, **asked, **asdict(run.recipe)}
    return settings | _compiled(run.model) | identity_of(run.model, run.data)


def _compiled(model: keras.Model) -> dict[str, Any]:
    """What a model was compiled with."""
    optimizer = model.optimizer
    if not hasattr(optimizer, "_begun_with"):
        config = _plain({"": type(optimizer).__name__, **optimizer.get_config()})
        optimizer._begun_with = {f"optimizer {key}".strip(): value for key, value in config.items()}
    return {**optimizer._begun_with, **_plain({"loss": model.loss})}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as JSON has it, rounded, for rates are float32, and without names, which count how
    many there were."""

    def tell(value: Any) -> Any:
        if hasattr(value, "get_config"):
            return {"class": type(value).__name__, **value.get_config()}
        if hasattr(value, "tolist"):
            return value.tolist()
        return getattr(value, "__name__", type(value).__name__)

    def tidy(values: dict[str, Any]) -> dict[str, Any]:
        values.pop("name", None)
        return {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in values.items()}

    return dict(json.loads(json.dumps(config, default=tell), object_hook=tidy))


def _train_phases(run: TrainingSettings, done: TrainingLog, epochs: int | None, state: State | None) -> None:
    """The head, then everything; then, where that failed and it may, everything from random weights."""
    plan = find_decision(run.model)
    phase = "from-scratch" if done.init == "random" else "fine-tune"
    if state is None and plan and plan.init != "random":
        train_head(run, done, None, alone=False)
    if state is None or state.phase == phase:
        train_all(run, done, epochs, phase, state=state)
        state = None
    if plan and plan.init == "auto" and not _succeeded(done, run.data):
        _fall_back(run, done, epochs, state)


def check_head_options(solver: str, dropout: float, label_smoothing: float, *, head_alone: bool) -> None:
    """Refuse what cannot be: see `fit`."""
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    for name, share in (("dropout", dropout), ("label_smoothing", label_smoothing)):
        if not 0 <= share < 1:
            raise InputError(f"Expected {name} from 0 to below 1. Received: {share!r}.")
        if share and head_alone and solver == "exact":
            raise InputError(
                f"{name} is for a head that trains in epochs; here solver='exact'. Leave it out, or use solver='sgd'."
            )
    if dropout and not head_alone:
        raise InputError(
            "dropout is for a head on a frozen network that trains in epochs; here more than the head trains. Leave it "
            "out, or use solver='sgd' with small-similar or small-different."
        )


def identity_of(model: keras.Model, data: ImageData) -> dict[str, Any]:
    """Say by content which network and images a training is about."""
    if not hasattr(model, "_begun_from"):  # an interrupted training has changed the weights of the same model
        model._begun_from = graphs.fingerprint(model)[:16]
    training = hashlib.sha256(repr([weight.trainable for weight in model.weights]).encode())
    images = hashlib.sha256()
    for part in (data.train, data.val):
        for digest, label in zip(digests_of(part), part.labels.tolist(), strict=True):
            images.update(f"{digest} {label}\n".encode())
    return {
        "network": model._begun_from,
        "training": training.hexdigest()[:16],
        "images": images.hexdigest()[:16],
    }


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


def _succeeded(done: TrainingLog, data: ImageData) -> bool:
    """Say whether validation shows that something was learnt: two standard errors above always guessing the
    most frequent class."""
    best = max((row.get("val_accuracy", 1.0) for row in done.rows if row["phase"] != "head"), default=0.0)
    if not len(data.val):
        return True
    guess = np.bincount(data.val.labels).max() / len(data.val)
    return bool(best > guess + 2 * np.sqrt(guess * (1 - guess) / len(data.val)))


def _fall_back(run: TrainingSettings, done: TrainingLog, epochs: int | None, state: State | None) -> None:
    """Start the same network from random weights; keep whichever has the better validation loss."""
    model = run.model
    before = model.get_weights() if state is None else numbered(state.arrays, "before")
    if state is None:
        log.warning(
            "From the pre-trained weights, validation is no better than guessing: trying random weights."
        )
    start_over(model, seed=run.seed)
    earlier = min(row["val_loss"] for row in done.rows if row["phase"] != "from-scratch")
    train_all(run, done, epochs, "from-scratch", state=state, more=lambda: named("before", before or []))
    later = min(row["val_loss"] for row in done.rows if row["phase"] == "from-scratch")
    if later < earlier:
        done.init = "random"
        log.warning("Random weights did better (validation loss %.3f against %.3f): kept.", later, earlier)
    else:
        unfreeze(model)
        model.set_weights(before)
        log.warning("Random weights did no better (validation loss %.3f against %.3f).", later, earlier)
