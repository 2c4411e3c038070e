"""Training everything, or all behind a frozen part: by a recipe, and so that an interruption loses nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from transfer.cases.builders import start_over
from transfer.cases.decisions import find_decision
from transfer.common.errors import InputError
from transfer.common.keras_private import apply_averages, has_schedule
from transfer.distributed.process_group import BatchPart
from transfer.distributed.strategies import (
    batch_part_of,
    distributed,
    make_exact,
    replicas_of,
    scope_of,
    while_training,
)
from transfer.frozen import extraction
from transfer.images.pipeline import Position, make_dataset
from transfer.training import upper_layers
from transfer.training.checkpoints import Keeping, State
from transfer.training.layer_decay import following
from transfer.training.phases import TrainingLog, TrainingSettings
from transfer.training.schedules import KeepBetter, StepDecay, WarmupCosine, epochs_for
from transfer.training.validation import Validation

log = logging.getLogger(__name__)

MOST_ADAPTED = 64
"""Batches from which statistics of BatchNormalization are taken anew, at most: 2,000 images tell them."""

_RATES = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


def train_all(
    run: TrainingSettings,
    done: TrainingLog,
    epochs: int | None,
    phase: str,
    *,
    state: State | None = None,
    more: Callable[[], dict[str, np.ndarray]] = dict,
) -> None:
    """Train what trains."""
    model = run.model
    _refuse_pinned(run)
    init = "random" if phase == "from-scratch" else "pretrained"
    epochs = epochs or epochs_for(len(run.data.train), run.batch_size, init=init)
    _say_flips(run)
    per_epoch = -(-len(run.data.train) // run.batch_size)
    peak = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))  # before a state's own comes back
    first, step = (state.epoch, state.step) if state is not None else (0, 0)
    tail = upper_layers.tail_of(run, done)
    trainee, train_set, val_set = tail or _whole(run)
    batch_part = batch_part_of(model) if tail is None else None
    with _ready(run) as each_step:
        better = _keep_better(run, done)
        if state is not None:
            restore(run, state)
            better.go_on(state.log["better"], numbered(state.arrays, "best"))

        def now() -> State:
            arrays = {**_arrays(run), **named("best", better.weights or []), **more()}
            return State(phase, log={**summary(done), "better": better.state()}, arrays=arrays)

        position = Position(first)
        keeping = Keeping(run.kept, position, step=step, per_epoch=per_epoch, state=now)
        steps = {"steps": epochs * per_epoch, "start": first * per_epoch + step}
        schedule = _schedule(run, per_epoch, peak=peak, each_step=each_step, **steps)
        callbacks = [
            *schedule,
            *_validation(run, batch_part),
            better,
            _Rows(done, phase),
            keeping,
            *run.callbacks,
        ]
        weights = {} if batch_part is None else {"class_weight": None}  # `distributed` has seen to them
        options = {"validation_data": val_set, **run.fit_options(callbacks), **weights}
        start, trainee.stop_training = time.perf_counter(), False
        try:
            with while_training(model):
                if step:  # what is left of an epoch
                    rest = train_set(Position(first, step * run.batch_size))
                    trainee.fit(rest, initial_epoch=first, epochs=first + 1, **options)
                    first += 1
                if not trainee.stop_training:
                    trainee.fit(train_set(position), initial_epoch=first, epochs=epochs, **options)
        except Exception as error:
            keeping.ended_by(error)
            raise
        finally:
            keeping.close()
            if schedule:  # its own end is not reached where training is interrupted
                model.optimizer.learning_rate = peak
            done.seconds_training += time.perf_counter() - start
        if run.recipe.ema and better.lost_at is None:
            apply_averages(model.optimizer, model.trainable_variables)
        better.set_model(trainee)
        better.settle()


def _say_flips(run: TrainingSettings) -> None:
    if run.augment != "none" and not run.flip:
        log.info("Augmentation mirrors no images: the classes are digits or letters, or it was asked not to.")


def _refuse_pinned(run: TrainingSettings) -> None:
    """What is pinned was so when the model was compiled, and would silently stay so."""
    plan = getattr(run.model, "plan", None)
    if run.recipe.batchnorm == "live" and plan is not None and plan.pin_batchnorm:
        raise InputError(
            "Expected a model whose BatchNormalization trains, for batchnorm='live'. Received one that pins it. Build "
            "it with pin_batchnorm=False."
        )


def _whole(run: TrainingSettings) -> tuple[keras.Model, Callable[[Position], Any], Any]:
    """The model itself, from images on."""
    data, trainee, batch_part = run.data, run.model, batch_part_of(run.model)
    options: dict[str, Any] = {"image_size": run.image_size, "mix": run.recipe.mix, "batch_part": batch_part}
    options["num_classes"] = data.num_classes
    changes: dict[str, Any] = {"augment": run.augment, "flip": run.flip, "seed": run.seed}

    def train_set(position: Position) -> Any:
        batches: dict[str, Any] = {"batch_size": run.batch_size, "training": True, "position": position}
        dataset = make_dataset(data.train, **batches, **changes, **options)
        return distributed(run.model, dataset, run.class_weights)

    val_set = None
    if batch_part is not None and (len(data.train) < batch_part.of or 0 < len(data.val) < batch_part.of):
        raise InputError(
            f"Expected an image for each of the {batch_part.of} devices, to train on and for validation. Received: "
            f"{len(data.train)} and {len(data.val)}. Use fewer devices."
        )
    if batch_part is not None and batch_part.whole and run.batch_size % replicas_of(run.model):
        raise InputError(
            f"Expected a batch_size that {replicas_of(run.model)} devices can share evenly, which JAX asks for. "
            f"Received: {run.batch_size}."
        )
    if len(data.val) and not (batch_part is not None and batch_part.whole):  # else see `Validation`
        val_set = distributed(
            run.model, make_dataset(data.val, batch_size=extraction.BATCH_SIZE, cache=True, **options)
        )
    if run.recipe.mix != "none" or run.label_smoothing:
        with scope_of(run.model):
            trainee = keras.Model(run.model.inputs, run.model.outputs, name=run.model.name)
            run.compile_alike(trainee)
    make_exact(trainee, soft_labels=run.recipe.mix != "none")
    return trainee, train_set, val_set


def _validation(run: TrainingSettings, batch_part: BatchPart | None) -> list[keras.callbacks.Callback]:
    """Where Keras cannot count images that fill up a batch out of its metrics, what does instead of
    it."""
    if batch_part is None or not batch_part.whole or not len(run.data.val):
        return []
    return [Validation(run.model, run.data.val, run.image_size, label_smoothing=run.label_smoothing)]


def _keep_better(run: TrainingSettings, done: TrainingLog) -> KeepBetter:
    if not len(run.data.val):
        log.warning("There are no validation images: training keeps the last weights.")
    start = done.rows[-1].get("val_accuracy") if done.rows and done.init != "random" else None
    return KeepBetter(count=len(run.data.val), start=start)


def _schedule(run: TrainingSettings, per_epoch: int, **options: Any) -> list[keras.callbacks.Callback]:
    """What sets the learning rate, unless the user does."""
    recipe, optimizer = run.recipe, run.model.optimizer
    if has_schedule(optimizer) or any(isinstance(callback, _RATES) for callback in run.callbacks):
        return []
    if recipe.schedule == "steps":
        return [StepDecay(every=recipe.decay_every * per_epoch, factor=recipe.decay_factor, **options)]
    return [WarmupCosine(**options)]


class _Rows(keras.callbacks.Callback):
    """Write each epoch into the log when it ends, so that a state has all of them."""

    def __init__(self, done: TrainingLog, phase: str) -> None:
        super().__init__()
        self.done, self.phase = done, phase

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.done.rows.append({"phase": self.phase, "epoch": epoch + 1, **values})


def summary(done: TrainingLog) -> dict[str, Any]:
    """Give what happened so far, for JSON."""
    return asdict(done)


def recall(done: TrainingLog, state: State) -> None:
    """Write into a log what a state says happened."""
    for name in asdict(done):
        if name in state.log:
            setattr(done, name, state.log[name])


def whole_state(run: TrainingSettings, done: TrainingLog) -> State:
    """Give the state at the end of all training."""
    with _ready(run):
        return State("done", log=summary(done), arrays=_arrays(run))


@contextlib.contextmanager
def _ready(run: TrainingSettings) -> Iterator[Callable[[float], None] | None]:
    """The optimizer with all that the recipe asks of it, and all its variables."""
    model = run.model
    with following(run.recipe, model) as each_step, scope_of(model):
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)  # the order in which a saved model lists them
        yield each_step


def finish(run: TrainingSettings, done: TrainingLog, state: State) -> None:
    """Give a model what it had at the end of all training."""
    if done.init == "random" and (decision := find_decision(run.model)) and decision.init == "auto":
        start_over(run.model, seed=run.seed)
    with _ready(run):
        restore(run, state)


def restore(run: TrainingSettings, state: State) -> None:
    """Give a model and its optimizer, which is built, the values of a state."""
    for name, variables in _variables(run):
        for variable, value in zip(variables, numbered(state.arrays, name) or (), strict=True):
            variable.assign(value)


def _variables(run: TrainingSettings) -> list[tuple[str, list[Any]]]:
    """All that training changes: weights, statistics, the states of random generators, moments, the
    step."""
    return [("model", list(run.model.variables)), ("optimizer", list(run.model.optimizer.variables))]


def _arrays(run: TrainingSettings) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, variables in _variables(run):
        found |= named(name, [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables])
    return found


def named(name: str, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Give a list of arrays names, for a state."""
    return {f"{name}/{number}": array for number, array in enumerate(arrays)}


def numbered(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray] | None:
    """Give the list back."""
    count = sum(key.startswith(f"{name}/") for key in arrays)
    return [arrays[f"{name}/{number}"] for number in range(count)] or None


def adapt_batchnorm(model: keras.Model, batches: Any) -> int:
    """Take the statistics of BatchNormalization anew from images: the mean over batches, each layer
    seeing what the layers before it make of the same batch."""
    layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    with _learning(layers):
        for number, (images, _) in zip(range(MOST_ADAPTED), batches, strict=False):
            for layer in layers:
                layer.momentum = number / (number + 1)
            model(images, training=True)
    return len(layers)


@contextlib.contextmanager
def _learning(layers: list[Any]) -> Iterator[None]:
    before = [(layer.trainable, layer.momentum) for layer in layers]
    for layer in layers:
        layer.trainable = True
    try:
        yield
    finally:
        for layer, (trainable, momentum) in zip(layers, before, strict=True):
            layer.trainable, layer.momentum = trainable, momentum
