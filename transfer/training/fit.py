"""`fit`: train the head on features of the frozen layers, then fine-tune all trainable layers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from transfer.cases.builders import start_over, unfreeze
from transfer.cases.compiling import normalize_compilation
from transfer.cases.decisions import find_decision, record_decision
from transfer.common.arguments import explain_arguments
from transfer.common.errors import unknown
from transfer.common.tasks import TASK
from transfer.distributed.process_group import current_group, versions
from transfer.distributed.strategies import scope_of
from transfer.frozen.engines import check_engine
from transfer.frozen.extraction import KnownFeatures, frozen_feature_extractor, input_size
from transfer.frozen.feature_cache import FeatureCache
from transfer.images import pipeline
from transfer.images.augmentation import AUGMENTATIONS, check_views
from transfer.images.datasets import ImageData
from transfer.images.flips import flip_problem
from transfer.networks import surgery
from transfer.training.checkpoints import SECONDS_BETWEEN, Checkpoint, Checkpoints, pack, unpack
from transfer.training.fine_tuning import adapt_batchnorm, final_checkpoint, fine_tune, restore_final
from transfer.training.fit_arguments import (
    KERAS_NAMES,
    check_arguments,
    check_classes,
    check_head_options,
    check_types,
    choose_initial_head,
    choose_solver,
    options_of_labels,
    training_data,
)
from transfer.training.head_training import check_loss, train_head
from transfer.training.identity import given_options, identity_of
from transfer.training.ignored import log_ignored
from transfer.training.measures import guess_of, noise_of
from transfer.training.mirroring import augments_images, decide_flips, log_problem
from transfer.training.phases import TrainingLog, TrainingSettings, log_from
from transfer.training.recipes import Recipe
from transfer.training.schedules import BATCH_SIZE
from transfer.training.time_limit import TimeLimit
from transfer.training.trained import record_data
from transfer.training.user_callbacks import UserCallbacks

logger = logging.getLogger(__name__)


@explain_arguments(KERAS_NAMES, {"x": "data", "y": "labels"})
def fit(
    model: keras.Model,
    data: Any,
    labels: Any = None,
    *,
    validation_data: Any = None,
    validation_split: float | None = None,
    class_names: Sequence[str] | None = None,
    initial_head: str | None = None,
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
    known_features: KnownFeatures | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: float = SECONDS_BETWEEN,
    time_limit: float | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = "auto",
) -> TrainingLog:
    """Train a model from a builder.

    The trainable flags and the initial weights of the model decide what is trained:

    - **Only the head is trainable.** The features of all images are computed once, and the head is trained on them from
      zero weights. This is as accurate as training through the frozen network, with one forward pass per image.
    - **More layers are trainable, with pre-trained weights.** First the head is trained as above: a random head would
      distort the pre-trained weights (Kumar et al. 2022, arXiv:2202.10054). Then all trainable layers are fine-tuned.
      If the first layers are frozen, their outputs are computed once, and each epoch runs only the later layers.
    - **Random weights.** All layers are trained from scratch.
    - **Trained before, by `fit` or in a run that `load_run` loaded.** Fine-tuning continues from the present weights,
      including the head, if the classes are the same. To continue with a frozen network: `unfreeze(model)`, then `fit`.
    - **Built with `init="auto"`.** The pre-trained weights are fine-tuned. If the validation accuracy is then no better
      than guessing, the network is also trained from random weights, and the lower validation loss decides.

    During fine-tuning, the learning rate follows the schedule of the recipe. The last weights are kept unless
    the validation metric of an earlier epoch was higher by more than one standard error. A regression is trained on
    standardized values, so that the result does not depend on their units; the trained model predicts in their units.

    Args:
        model: compiled model from a builder. It is trained in place.
        data: images from `load_data`, whose test images are not read. Or images in memory with their labels: arrays
            `(images, labels)`, a `tf.data.Dataset`, or a split such as `data.train`. They are checked as in
            `load_data`, and validation images are drawn from them, but no test images.
        labels: labels of images that are passed as an array: whole numbers, class names or one-hot; for several labels
            per image 0 or 1 in a column per label, and for a regression numbers.
        validation_data: validation images for images in memory, in the same forms. None draws them from `data`.
        validation_split: fraction of the images in memory to validate on, from 0 to below 1, drawn at random and
            stratified by class. None is 0.1.
        class_names: names of the classes for images in memory, in the order of the labels. None uses those of the
            split, the data set or the trained model, otherwise the numbers of the labels.
        initial_head: head from which fine-tuning starts: `"solve"` trains it first, `"keep"` keeps the present one.
            None keeps the head of a model that was trained before on the same classes.
        epochs: number of epochs, 1 or more. None chooses 8 to 60 for pre-trained and 20 to 60 for random weights, by
            the number of training images. A head stops early when its validation loss no longer falls.
        batch_size: images per step over all devices, 1 or more.
        augment: augmentation of the training images: `"none"`, `"light"`, `"standard"` or `"strong"`. Layers whose
            outputs are computed once see augmented images only with `views` of 2 or more.
        flip: whether augmentation flips images horizontally. None flips them unless that would change a class. The
            class names are checked first, such as left and right, digits or letters. Then a measurement on training
            images finds classes that are mirror images of each other; it needs one class per image.
            `TrainingLog.flip_problem` states the reason.
        class_weights: weight the loss so that all classes count the same, regardless of their number of images. With
            several labels, images with and without a label count the same. Not for regression.
        solver: solver of a head on features. `"exact"` computes the optimum of the convex problem and chooses its
            regularization. `"sgd"` trains in epochs and never holds all features in memory. `"auto"` uses
            `"exact"` for features of up to 2 GiB and the default head, loss and optimizer, unless `epochs`, `dropout`
            or `label_smoothing` require training in epochs; the log says so.
        dropout: dropout rate before the head, from 0 to below 1, when only the head is trained in epochs.
        label_smoothing: fraction of each label that is spread over all classes, from 0 to below 1, for training in
            epochs. 0 uses the value of the recipe.
        views: number of views of each training image for which the outputs of frozen layers are computed: the image
            itself and augmented views of it. None means 1: in fine-tuning, more did not raise the accuracy with up to
            2,000 images (`tests/benchmarks/fine_tuning.py views`).
        engine: inference engine of the frozen layers: `"auto"`, `"keras"`, `"openvino"` or `"openvino-int8"`. The last
            one needs the extra `int8`. It quantizes the network with training images if only a head is trained.
        cache: feature cache, which later runs read. None is the user's default cache.
        known_features: features of training images that were computed before, such as by `advise`. They are checked
            on a few images and then used instead of a forward pass. They do not change the result.
        seed: random seed of the order of the images, their augmentation, and dropout before the head. Layers that draw
            random numbers take their seeds when they are created: call `keras.utils.set_random_seed` before that.
        recipe: options of fine-tuning, such as the schedule, layer-wise learning-rate decay and weight decay. None
            uses the defaults of `Recipe`.
        checkpoints: folder for checkpoints. If it holds an interrupted training with the same settings, network and
            images, that training resumes and ends with the same weights as without the interruption. Ctrl-C, SIGTERM
            and SIGHUP then stop after the current step and save a checkpoint. None saves nothing.
        checkpoint_every: seconds between two checkpoints.
        time_limit: seconds that the whole call may take, above 0. Training then ends with its last validation before
            the limit, also inside an epoch. The schedule is shortened so that the learning rate falls to 0 by then. A
            limit that is much longer than the training does not change the result. The first steps and features of
            frozen layers are not interrupted, so the call may take longer than a very short limit. A resumed training
            counts the time of this call only. None sets no limit. Not available with several workers.
        callbacks: Keras callbacks. They receive the events of each phase, and their model is always the whole model.
            A head that is solved exactly counts as one epoch. Epochs count over all phases, so that `CSVLogger` and
            `TensorBoard` hold the whole training. `EarlyStopping` starts anew in each phase. Callbacks that set the
            learning rate replace the schedule of the recipe. `self.params["phase"]` is the phase. While a regression is
            fine-tuned, the head of their model predicts standardized values.
        verbose: progress output of Keras: `"auto"`, 0, 1 or 2.

    Returns:
        The log: metrics per epoch, durations, and the regularization of the head.

    Raises:
        InputError: the arguments are not a model and images with labels, an argument is unknown, the model is not
            compiled or has another number of classes than the data, an option is out of range, options contradict each
            other, or `checkpoints` holds another training.
        Interrupted: a signal stopped the training. Call `fit` with the same arguments to resume.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> from transfer.cases.builders import small_similar
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> model = small_similar(base, 12)
        >>> fit(model, load_data("emoji"), epochs=1, verbose=0).history["phase"]
        ['head']
    """
    limit = None if time_limit is None else TimeLimit(time_limit)
    check_arguments(model, epochs, batch_size)
    normalize_compilation(model)
    check_types(
        flip=flip, class_weights=class_weights, recipe=recipe, cache=cache, callbacks=callbacks, seed=seed
    )
    if augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    check_engine(engine)
    head_only = frozen_feature_extractor(model) is not None
    recipe = recipe or Recipe()
    recipe = replace(recipe, label_smoothing=label_smoothing or recipe.label_smoothing)
    switches = (epochs, dropout, recipe.label_smoothing)  # to a head in epochs
    check_head_options(solver, *switches, head_only=head_only)
    check_loss(model, solver, recipe, head_only=head_only)
    if views is not None:
        check_views(views, augment)
    validation = {"validation_data": validation_data, "validation_split": validation_split}
    data = training_data(model, data, labels, **validation, class_names=class_names, seed=seed)
    check_classes(model, data)
    problem = flip_problem(data.class_names) if flip is None else ""
    settings = TrainingSettings(
        model=model,
        data=data,
        head_only=head_only,
        initial_head=initial_head,
        image_size=input_size(model, data),
        epochs=epochs,
        batch_size=batch_size,
        augment=augment,
        flip=False if problem else flip,
        views=views,
        **options_of_labels(model, data, class_weights),
        solver=choose_solver(solver, *switches, head_only=head_only),
        dropout=dropout,
        engine=engine,
        cache=cache,
        known_features=known_features,
        seed=seed,
        recipe=recipe,
        checkpoints=None,
        callbacks=UserCallbacks(callbacks, model),
        verbose=verbose if current_group().is_chief and sys.stdout is not None else 0,
        flip_problem=problem,
        time_limit=limit,
    )
    log_ignored(settings)
    options = given_options(settings, flip)
    settings = _with_checkpoints(settings, checkpoints, checkpoint_every)
    return _recorded(model, data, replace(_train(_decided(settings)), options=options))


def _recorded(model: keras.Model, data: ImageData, log: TrainingLog) -> TrainingLog:
    """Record what `fit` did with a model, for `evaluate`, `predict` and a next `fit`; return the log."""
    record_data(model, data, log.thresholds)
    if (decision := find_decision(model)) is not None:
        fine_tuned = decision.fine_tuned
        if any(row["phase"] == "fine-tune" for row in log.rows):
            fine_tuned = not log.rolled_back or bool(fine_tuned)
        flip = decision.flip if log.flip is None else log.flip  # `evaluate` does the same
        record_decision(model, replace(decision, flip=flip, fine_tuned=fine_tuned))
    return log


def _decided(settings: TrainingSettings) -> TrainingSettings:
    """Return settings with the choices of the model: its initial head, and the options of the recipe that apply."""
    recipe = settings.recipe
    if settings.head_only:
        recipe = Recipe(batchnorm=recipe.batchnorm, label_smoothing=recipe.label_smoothing)
    return replace(settings, recipe=recipe, initial_head=choose_initial_head(settings))


def _with_checkpoints(
    settings: TrainingSettings, folder: str | Path | None, seconds_between: float
) -> TrainingSettings:
    """Open the checkpoints; raise an error if other workers or an earlier training have other settings."""
    group = current_group()
    identity = identity_of(settings) if folder is not None or group.count > 1 else {}
    if group.count > 1:
        group.require_equal({**versions(), **identity, "checkpoints": folder is not None})
    if folder is None:
        return settings
    return replace(settings, checkpoints=Checkpoints(Path(folder), identity, seconds_between=seconds_between))


@pipeline.plain_errors()
def _train(settings: TrainingSettings) -> TrainingLog:
    """Run all phases, from the latest checkpoint if there is one, and return the log."""
    decision = find_decision(settings.model)
    if settings.flip_problem and augments_images(settings):
        log_problem(settings.flip_problem)
    checkpoint = settings.checkpoints.latest() if settings.checkpoints is not None else None
    if checkpoint is not None:
        log = log_from(checkpoint.log)
        logger.info("Resuming: %s.", checkpoint.description)
        if checkpoint.phase == "done":
            restore_final(settings, log, checkpoint)
            return log
    else:
        init = "random" if decision and decision.init == "random" else "pretrained"
        log = TrainingLog(init=init, flip=settings.flip, flip_problem=settings.flip_problem)
        if settings.recipe.batchnorm == "adapted" and log.init != "random":
            batches = pipeline.make_dataset(
                settings.data.train, image_size=settings.image_size, batch_size=settings.batch_size
            )
            adapt_batchnorm(settings.model, batches)
    try:
        log = log + train_head(settings) if settings.head_only else _train_phases(settings, log, checkpoint)
    finally:
        settings.callbacks.close()
    if settings.checkpoints is not None:
        settings.checkpoints.save(final_checkpoint(settings, log))
    return log


def _train_phases(settings: TrainingSettings, log: TrainingLog, checkpoint: Checkpoint | None) -> TrainingLog:
    """Train the head, then all trainable layers, then possibly again from random weights; return the log."""
    decision = find_decision(settings.model)
    phase = "from-scratch" if log.init == "random" else "fine-tune"
    keep = settings.initial_head == "keep"
    if checkpoint is None and not keep and (decision is None or decision.init != "random"):
        log += train_head(settings)
    elif checkpoint is None and keep:
        logger.info("Fine-tuning continues from the present weights of the model, including its head.")
        log += _known_flips(settings)
    if log.flip is None and augments_images(settings):  # there was no head to measure it with
        log = replace(log, flip=True)
    settings = replace(settings, flip=log.flip)
    if checkpoint is None and _time_is_up(settings):
        return log
    if checkpoint is None or checkpoint.phase == phase:
        log = log.with_phase(fine_tune(settings, log, phase, checkpoint=checkpoint))
        checkpoint = None
    # A checkpoint that is still unused belongs to the fallback, which had already begun.
    if (
        decision
        and decision.init == "auto"
        and not keep
        and (checkpoint or not (_succeeded(log, settings.data) or _time_is_up(settings)))
    ):
        log = _fall_back(settings, log, checkpoint)
    return log


def _time_is_up(settings: TrainingSettings) -> bool:
    """Return whether the time limit has passed before a phase; log it."""
    up = settings.time_limit is not None and settings.time_limit.left <= 0
    if up and settings.time_limit is not None:
        logger.info(
            "The network is not trained further: the time limit of %.4g s.", settings.time_limit.seconds
        )
    return up


def _known_flips(settings: TrainingSettings) -> TrainingLog:
    """Return whether to flip images by the decision of an earlier training, or by a measurement."""
    decision = find_decision(settings.model)
    if settings.flip is None and decision is not None and decision.flip is not None:
        return TrainingLog(flip=decision.flip)
    with scope_of(settings.model):
        extractor = surgery.feature_extractor_of(settings.model)
    return decide_flips(settings, extractor)


def _succeeded(log: TrainingLog, data: ImageData) -> bool:
    """Return whether the validation metric is two standard errors above that of a guess, such as the largest class."""
    if not len(data.val):
        return True
    key, labels = f"val_{TASK[data.task].metric}", data.val.labels
    best = max((row.get(key, 1.0) for row in log.rows if row["phase"] != "head"), default=0.0)
    guess = guess_of(data.task, labels)
    return bool(best > guess + 2 * noise_of(data.task, labels)(guess))


def _fall_back(settings: TrainingSettings, log: TrainingLog, checkpoint: Checkpoint | None) -> TrainingLog:
    """Train from random weights; keep these or the earlier weights by validation loss, and return the log."""
    model = settings.model
    before = model.get_weights() if checkpoint is None else unpack(checkpoint.arrays, "before") or []
    if checkpoint is None:
        logger.warning(
            "With the pre-trained weights, validation is no better than guessing. Training again from random weights."
        )
    kept_row = (
        sum(row["phase"] != "from-scratch" for row in log.rows) - 1 if log.kept_row is None else log.kept_row
    )
    start_over(model, seed=settings.seed)
    log = log.with_phase(
        fine_tune(
            settings, log, "from-scratch", checkpoint=checkpoint, extra_arrays=lambda: pack("before", before)
        )
    )
    pretrained = min(row["val_loss"] for row in log.rows if row["phase"] != "from-scratch")
    random = min(row["val_loss"] for row in log.rows if row["phase"] == "from-scratch")
    winner = "random" if random < pretrained else "pre-trained"
    logger.warning(
        "Keeping the %s weights: validation loss %.3f from random weights, %.3f from pre-trained weights.",
        winner,
        random,
        pretrained,
    )
    if winner == "random":
        return replace(log, init="random")
    unfreeze(model)
    model.set_weights(before)
    return replace(log, kept_row=kept_row)
