"""Train all trainable layers of a model by a recipe, with checkpoints."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from transfer.cases.builders import start_over
from transfer.cases.compiling import learning_rate_of
from transfer.cases.decisions import find_decision
from transfer.common.errors import InputError
from transfer.common.keras_private import apply_averages, has_schedule
from transfer.common.tasks import TASK
from transfer.distributed import strategies
from transfer.frozen import extraction
from transfer.images.pipeline import Position, make_dataset
from transfer.training.checkpoints import Checkpoint, CheckpointCallback, pack, unpack
from transfer.training.layer_decay import SetProgress, optimizer_following
from transfer.training.measures import measure, noise_of
from transfer.training.phases import Rows, Trainee, TrainingLog, TrainingSettings, stop_in_time
from transfer.training.schedules import KeepBetter, StepDecay, WarmupCosine, epochs_for
from transfer.training.time_limit import log_early_end
from transfer.training.upper_layers import folded, upper_layers_of
from transfer.training.validation import Measurement, PartPrediction, Validation, measure_classes
from transfer.training.value_units import standardized_head

logger = logging.getLogger(__name__)

MAX_ADAPTED_BATCHES = 64
"""Maximum number of batches for new BatchNormalization statistics. About 2,000 images are enough."""


def fine_tune(
    settings: TrainingSettings,
    before: TrainingLog,
    phase: str,
    *,
    checkpoint: Checkpoint | None = None,
    extra_arrays: Callable[[], dict[str, np.ndarray]] = dict,
) -> TrainingLog:
    """Train all trainable weights, from a checkpoint of this phase if given, and return the phase's log."""
    model, num_train = settings.model, len(settings.data.train)
    _check(settings)
    init = "random" if phase == "from-scratch" else "pretrained"
    epochs = settings.epochs or epochs_for(num_train, settings.batch_size, init=init)
    per_epoch = -(-num_train // settings.batch_size)
    peak = learning_rate_of(model.optimizer)  # before a checkpoint changes it
    first, step = (checkpoint.epoch, checkpoint.step) if checkpoint is not None else (0, 0)
    start = first * per_epoch + step
    trainee = upper_layers_of(settings) or _whole_model(settings)
    validation = _validation(settings, trainee)  # outside the scope of the devices: its copy runs on one
    # A head with random weights has no units. Checkpoints hold the weights for standardized values.
    fresh = phase == "from-scratch" and settings.initial_head != "keep"
    units = standardized_head(model, settings.value_scale, fresh=fresh)
    with units, _built_optimizer(settings) as set_progress:
        better, rows = _keep_better(settings, before), Rows(phase)
        if checkpoint is None and settings.initial_head == "keep" and len(settings.data.val):
            better.best = _validated(settings, trainee, validation)
        if checkpoint is not None:
            restore(settings, checkpoint)
            better.resume(checkpoint.log["better"], unpack(checkpoint.arrays, "best"))
        snapshot = functools.partial(_snapshot, settings, before + trainee.log, rows, better, extra_arrays)
        saving = CheckpointCallback(settings.checkpoints, snapshot, Position(first), step, per_epoch)
        stop = stop_in_time(settings, epochs=epochs, per_epoch=per_epoch, start=start)
        steps = {"steps": epochs * per_epoch, "start": start, "limit": stop}
        schedule = _schedule(settings, per_epoch, peak=peak, set_progress=set_progress, **steps)
        # The order matters: each callback sees what those before it added to the logs.
        first_epoch = len(before.rows) - first  # of this phase, in the numbers of the user's callbacks
        users = settings.callbacks.phase(phase, first_epoch=first_epoch)
        own = [schedule, *validation, better, rows, saving]
        callbacks = [*own, *users, *([stop] if stop else [])]
        began = time.perf_counter()
        try:
            _run_epochs(settings, trainee, callbacks, saving, epochs)
        finally:
            if schedule.sets_rate:  # an interruption skips the schedule's own `on_train_end`
                model.optimizer.learning_rate = peak
        seconds = time.perf_counter() - began
        if settings.recipe.ema and better.lost_at is None:
            apply_averages(model.optimizer, model.trainable_variables)
        better.set_model(trainee.model)
        kept_row = kept_row_of(before, first, better.choose_weights())
        if kept_row is None and users:
            kept_row = settings.callbacks.restored_epoch()
    if better.lost_at is None:
        log_early_end(stop, first + len(rows.rows), epochs, "a callback stopped the training")
    return trainee.log + TrainingLog(rows.rows, seconds_training=seconds, kept_row=kept_row)


def kept_row_of(before: TrainingLog, first_epoch: int, restored: int | None) -> int | None:
    """Return the row of the whole log whose weights were restored; `before` has the phase's rows before a resume."""
    if restored is None:
        return None
    start = len(before.rows) - first_epoch
    if restored or before.kept_row is None or before.kept_row >= start:
        return start + restored - 1
    return before.kept_row


def _check(settings: TrainingSettings) -> None:
    decision = find_decision(settings.model)
    if settings.recipe.batchnorm == "live" and decision is not None and decision.pin_batchnorm:
        raise InputError(
            "Expected a model whose BatchNormalization trains, for batchnorm='live'. Received one whose "
            "BatchNormalization was pinned when it was built. Build it with pin_batchnorm=False."
        )


def _run_epochs(
    settings: TrainingSettings,
    trainee: Trainee,
    callbacks: list[keras.callbacks.Callback],
    saving: CheckpointCallback,
    epochs: int,
) -> None:
    """Run Keras' `fit` from the position of `saving`; the rest of an interrupted epoch is a separate call."""
    # For several labels and for numbers, the callback `Validation` measures the predictions.
    val_batches = None if settings.shaped else trainee.val_batches
    options = {"validation_data": val_batches, **settings.fit_options(callbacks)}
    if trainee.batch_part is not None:
        options["class_weight"] = None  # `distribute_dataset` has applied the class weights
    model, first, step = trainee.model, saving.position.epoch, saving.first_step
    model.stop_training = False
    try:
        with strategies.training_scope(settings.model):
            if step:
                rest = trainee.batches(Position(first, step * settings.batch_size))
                model.fit(rest, initial_epoch=first, epochs=first + 1, **options)
                first += 1
            if not model.stop_training:
                model.fit(trainee.batches(saving.position), initial_epoch=first, epochs=epochs, **options)
    except Exception as error:
        saving.raise_if_interrupted(error)
        raise
    finally:
        saving.close()


def _whole_model(settings: TrainingSettings) -> Trainee:
    """Return the model itself with batches of images."""
    model, data, recipe = settings.model, settings.data, settings.recipe
    num_train, num_val, replicas = len(data.train), len(data.val), strategies.replicas_of(model)
    train, val = settings.for_training(data.train), settings.for_training(data.val)
    part = strategies.batch_part_of(model)
    padded = part is not None and part.padded
    if part is not None and (num_train < part.total or 0 < num_val < part.total):
        raise InputError(
            f"Expected at least one training image and one validation image for each of the {part.total} devices. "
            f"Received: {num_train} training images and {num_val} validation images. Use fewer devices."
        )
    if padded and settings.batch_size % replicas:
        raise InputError(
            f"Expected a batch_size that is a multiple of the {replicas} devices, as JAX requires. Received: "
            f"{settings.batch_size}."
        )
    options: dict[str, Any] = {"image_size": settings.image_size, "mix": recipe.mix, "batch_part": part}
    options["num_classes"] = data.num_classes
    training: dict[str, Any] = {"training": True, "batch_size": settings.batch_size, "seed": settings.seed}
    training |= {"augment": settings.augment, "flip": settings.flip is not False}

    def batches(position: Position) -> Iterable[Any]:
        dataset = make_dataset(train, position=position, **training, **options)
        return strategies.distribute_dataset(model, dataset, settings.class_weights)

    val_batches = None
    read_by_callback = padded or (settings.shaped and part is not None)  # by `Validation`
    if num_val and not read_by_callback:
        dataset = make_dataset(val, batch_size=extraction.BATCH_SIZE, cache=True, **options)
        val_batches = strategies.distribute_dataset(model, dataset)
    trained = folded(model)
    weighted = settings.label_weights is not None or settings.value_scale is not None
    if trained is not model or recipe.mix != "none" or recipe.label_smoothing or weighted:
        with strategies.scope_of(model):
            trained = keras.Model(trained.inputs, trained.outputs, name=model.name)
            settings.compile_like_model(trained)
    strategies.make_steps_exact(trained, soft_labels=recipe.mix != "none" or settings.shaped)
    return Trainee(trained, batches, val_batches, batch_part=part)


def _validation(settings: TrainingSettings, trainee: Trainee) -> list[keras.callbacks.Callback]:
    """Return a validation callback where Keras would count the padding of batches, or measure by batch."""
    val, part = settings.data.val, trainee.batch_part
    if not len(val) or not (settings.shaped or (part is not None and part.padded)):
        return []
    if settings.shaped:
        how: Measurement = functools.partial(measure, settings, labels=settings.labels_for_training(val))
    else:
        smoothing = settings.recipe.label_smoothing
        how = functools.partial(measure_classes, labels=val.labels, smoothing=smoothing)
    if part is None:
        return [Validation(how, lambda model: np.asarray(model.predict(trainee.val_batches, verbose=0)))]
    return [Validation(how, PartPrediction(settings.model, val, settings.image_size))]


def _validated(
    settings: TrainingSettings, trainee: Trainee, validation: list[keras.callbacks.Callback]
) -> float:
    """Return the validation metric of the task for the present weights."""
    logs: dict[str, Any] = {}
    for callback in validation:
        callback.set_model(trainee.model)
        callback.on_epoch_end(0, logs)
    if not logs:
        with strategies.training_scope(settings.model):
            logs = trainee.model.evaluate(trainee.val_batches, verbose=0, return_dict=True)
    metric = TASK[settings.data.task].metric
    return float(logs.get(f"val_{metric}", logs.get(metric, -math.inf)))


def _keep_better(settings: TrainingSettings, before: TrainingLog) -> KeepBetter:
    val, task = settings.data.val, settings.data.task
    if not len(val):
        logger.warning("There are no validation images: the model keeps the weights of the last step.")
    metric = TASK[task].metric
    after_head = before.rows[-1].get(f"val_{metric}") if before.rows and before.init != "random" else None
    return KeepBetter(num_val=len(val), start=after_head, metric=metric, noise=noise_of(task, val.labels))


def _schedule(settings: TrainingSettings, per_epoch: int, **options: Any) -> WarmupCosine:
    """Return the learning-rate schedule; it leaves the rate alone if the user's optimizer or callbacks set it."""
    recipe = settings.recipe
    options["sets_rate"] = not (settings.callbacks.set_rate or has_schedule(settings.model.optimizer))
    if recipe.schedule == "steps":
        return StepDecay(every=recipe.decay_every * per_epoch, factor=recipe.decay_factor, **options)
    return WarmupCosine(**options)


def _snapshot(
    settings: TrainingSettings,
    before: TrainingLog,
    rows: Rows,
    better: KeepBetter,
    extra_arrays: Callable[[], dict[str, np.ndarray]],
) -> Checkpoint:
    """Return a checkpoint of the present state; the caller adds the epoch and the step."""
    log = {**asdict(before + TrainingLog(rows.rows)), "better": better.progress()}
    arrays = _arrays(settings) | pack("best", better.weights or []) | extra_arrays()
    return Checkpoint(rows.phase, log=log, arrays=arrays)


@contextlib.contextmanager
def _built_optimizer(settings: TrainingSettings) -> Iterator[SetProgress | None]:
    """Let the optimizer follow the recipe, and create its variables."""
    model = settings.model
    with optimizer_following(settings.recipe, model) as set_progress, strategies.scope_of(model):
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)  # in the order in which a saved model lists them
        yield set_progress


def final_checkpoint(settings: TrainingSettings, log: TrainingLog) -> Checkpoint:
    """Return the checkpoint of a complete training."""
    with _built_optimizer(settings):
        return Checkpoint("done", log=asdict(log), arrays=_arrays(settings))


def restore_final(settings: TrainingSettings, log: TrainingLog, checkpoint: Checkpoint) -> None:
    """Restore the model of a complete training from its checkpoint."""
    decision = find_decision(settings.model)
    if log.init == "random" and decision is not None and decision.init == "auto":
        start_over(settings.model, seed=settings.seed)  # the fallback trained layers that were pinned
    with _built_optimizer(settings):
        restore(settings, checkpoint)


def restore(settings: TrainingSettings, checkpoint: Checkpoint) -> None:
    """Restore the variables of the model and of its built optimizer from a checkpoint."""
    values = unpack(checkpoint.arrays, "variables") or ()
    for variable, value in zip(_variables(settings), values, strict=True):
        variable.assign(value)


def _variables(settings: TrainingSettings) -> list[keras.Variable]:
    """Return all that training changes: weights, statistics, random states, and the optimizer's variables."""
    return [*settings.model.variables, *settings.model.optimizer.variables]


def _arrays(settings: TrainingSettings) -> dict[str, np.ndarray]:
    variables = _variables(settings)
    return pack("variables", [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables])


def adapt_batchnorm(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> int:
    """Replace the statistics of BatchNormalization by means over batches; return the number of layers."""
    layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = [(layer.trainable, layer.momentum) for layer in layers]
    try:
        for layer in layers:
            layer.trainable = True
        for number, (images, _) in zip(range(MAX_ADAPTED_BATCHES), batches, strict=False):
            for layer in layers:
                layer.momentum = number / (number + 1)  # makes the moving average a plain mean
            model(images, training=True)
    finally:
        for layer, (trainable, momentum) in zip(layers, before, strict=True):
            layer.trainable, layer.momentum = trainable, momentum
    return len(layers)
