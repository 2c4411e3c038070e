"""A short fine-tuning on some pictures, judged by others: what training everything would bring, and what it costs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from transfer import builders, heads
from transfer.cases import POLICIES, Case
from transfer.datasets import Split
from transfer.errors import InputError
from transfer.pipeline import make_dataset
from transfer.schedules import BATCH_SIZE, WarmupCosine

STEPS = 8
"""Of the trial: enough to time them. More say no more: what forty gained did not foretell what training in full did."""

LIMIT = 12.0
"""Seconds for them; where they would take longer, as at 224 px, there are fewer, but no fewer than `FEWEST_STEPS`."""

FEWEST_STEPS = 5
"""Of a trial that was cut short."""

FOLDS = 4
"""One of so many parts of the pictures is held out."""

MOST_HELD_OUT = 250
"""Pictures that are held out, at most: running the network over more would cost more than it tells."""

_UNTIMED = 2  # steps: the first is traced and compiled, the second allocates
_TIMED = 2  # steps by which it is decided how many there will be


@dataclass(frozen=True)
class Trial:
    """What a few steps of fine-tuning brought; what it rests advice on are the seconds (see `STEPS`).

    Attributes:
        steps: that were trained.
        passes: over the pictures that were trained on.
        held_out: pictures that it was judged by.
        accuracy_frozen: of them, by the head on the frozen network that the trial started from.
        accuracy_tuned: by the network after these steps.
        loss_frozen: mean cross-entropy of them before, in nats.
        loss_tuned: after.
        error: standard error of the difference of the accuracies, picture by picture.
        seconds_per_step: of training, without what is needed once.
        seconds_start: for what is needed once, tracing and compiling.
    """

    steps: int
    passes: float
    held_out: int
    accuracy_frozen: float
    accuracy_tuned: float
    loss_frozen: float
    loss_tuned: float
    error: float
    seconds_per_step: float
    seconds_start: float


def try_fine_tuning(
    pictures: Split,
    features: np.ndarray,
    base: keras.Model,
    *,
    image_size: tuple[int, int],
    steps: int = STEPS,
    limit: float = LIMIT,
    flip: bool = True,
    preprocessing: str | None = None,
    seed: int = 0,
) -> Trial | None:
    """Fine-tune a copy of a network for a few steps, from the head that is best while it is frozen.

    Args:
        pictures: some to train on and some to judge by; groups stay together.
        features: what the network's last layer gives for each, shape (N, channels).
        base: the pre-trained network; it stays as it is.
        image_size: height and width in pixels.
        steps: of training, of 32 pictures each.
        limit: seconds for them. How many steps that allows is decided by the first, so on a busy machine it may differ
            from run to run.
        flip: whether augmentation mirrors pictures.
        preprocessing: see `builders.build`.
        seed: of the choice, the order and the augmentation.

    Returns:
        What it brought; None where there are too few pictures to hold some of two classes out.

    Raises:
        InputError: `steps` is below 4: the first two are not timed.

    Example:
        >>> from transfer.datasets import load_data
        >>> from transfer.looks import look_at
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> some = load_data("emoji").train.take(range(96))
        >>> features = list(look_at(some, base).taps.values())[-1]
        >>> try_fine_tuning(some, features, base, image_size=(32, 32), steps=4).steps
        4
    """
    if steps < _UNTIMED + _TIMED:
        raise InputError(f"Expected {_UNTIMED + _TIMED} steps or more. Received: {steps}.")
    classes, labels = np.unique(pictures.labels, return_inverse=True)
    out = held_out(labels, pictures.groups, seed)
    if len(out) < 2 or len(np.unique(labels[out])) < 2:
        return None
    rest = np.setdiff1d(np.arange(len(labels)), out)
    head = heads.solve(
        features[rest],
        labels[rest],
        len(classes),
        groups=[pictures.groups[i] for i in rest] if pictures.groups else (),
        seed=seed,
    )
    before = log_softmax(features[out].astype("float64") @ head.kernel + head.bias, axis=1)
    options: dict[str, Any] = {"image_size": image_size, "preprocessing": preprocessing, "seed": seed}
    model = builders.build(Case.LARGE_SIMILAR, base, len(classes), **options)
    model.layers[-1].set_weights([head.kernel, head.bias])
    clock = _Clock(steps, limit)
    _train(model, _numbered(pictures, labels, rest), clock, image_size, flip, seed)
    steps = len(clock.ends)
    judged = make_dataset(pictures.take(out.tolist()), image_size=image_size, batch_size=BATCH_SIZE)
    after = np.log(np.maximum(np.asarray(model.predict(judged, verbose=0), "float64"), 1e-12))
    right = [scores.argmax(axis=1) == labels[out] for scores in (before, after)]
    loss = [float(-scores[np.arange(len(out)), labels[out]].mean()) for scores in (before, after)]
    gain = right[1].astype("float64") - right[0]
    return Trial(
        steps=steps,
        passes=steps * min(BATCH_SIZE, len(rest)) / len(rest),
        held_out=len(out),
        accuracy_frozen=float(right[0].mean()),
        accuracy_tuned=float(right[1].mean()),
        loss_frozen=loss[0],
        loss_tuned=loss[1],
        error=float(gain.std(ddof=1) / np.sqrt(len(out))),
        seconds_per_step=clock.per_step,
        seconds_start=clock.start,
    )


def held_out(labels: np.ndarray, groups: Sequence[Any], seed: int) -> np.ndarray:
    """Pick positions to judge by: a part of each class, groups whole, never all of a class.

    Args:
        labels: whole numbers from 0, shape (N,).
        groups: of each picture; empty where there are none.
        seed: of the choice.

    Returns:
        Positions, at most `MOST_HELD_OUT`; none where no class has two pictures.

    Example:
        >>> np.bincount(np.arange(40)[held_out(np.arange(40) % 2, (), 0)] % 2).tolist()
        [5, 5]
    """
    if len(labels) < FOLDS or np.bincount(labels).max() < FOLDS:
        return np.zeros(0, "int64")
    kind = StratifiedGroupKFold if len(groups) else StratifiedKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer pictures than folds
        folds = kind(FOLDS, shuffle=True, random_state=seed)
        _, out = next(folds.split(labels, labels, np.asarray(groups) if len(groups) else None))
    kept = np.setdiff1d(np.arange(len(labels)), out)
    out = out[np.isin(labels[out], labels[kept])]
    return np.sort(np.random.default_rng(seed).permutation(out)[:MOST_HELD_OUT])


def _numbered(pictures: Split, labels: np.ndarray, positions: np.ndarray) -> Split:
    """Some of the pictures, their classes numbered without gaps."""
    return replace(pictures, labels=labels).take(positions.tolist())


class _Clock(WarmupCosine):
    """Follow a schedule that ends in time, and note when each step did."""

    def __init__(self, steps: int, limit: float) -> None:
        super().__init__(peak=POLICIES[Case.LARGE_SIMILAR].learning_rate, steps=steps)
        self.limit = limit
        self.ends: list[float] = []
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) == _UNTIMED + _TIMED:
            in_time = int(self.limit / max(self.per_step, 1e-6))
            self.steps = min(self.steps, max(FEWEST_STEPS, in_time))
        if len(self.ends) >= self.steps:
            self.model.stop_training = True

    @property
    def per_step(self) -> float:
        return float(np.median(np.diff(self.ends)[_UNTIMED - 1 :]))

    @property
    def start(self) -> float:
        return max(0.0, self.ends[0] - self.began - self.per_step)


def _train(
    model: keras.Model, pictures: Split, clock: _Clock, image_size: tuple[int, int], flip: bool, seed: int
) -> None:
    dataset = make_dataset(
        pictures,
        image_size=image_size,
        batch_size=min(BATCH_SIZE, len(pictures)),
        training=True,
        augment="light",
        flip=flip,
        seed=seed,
    )
    model.fit(
        dataset.repeat(), steps_per_epoch=clock.steps, epochs=1, callbacks=[clock], verbose=0, shuffle=False
    )
