"""A time limit ends a training with a learning rate of 0 and a validation, and otherwise changes nothing."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import large_similar, small_similar
from transfer.common.errors import InputError
from transfer.training import time_limit
from transfer.training.fit import fit
from transfer.training.recipes import Recipe
from transfer.training.schedules import StepDecay, WarmupCosine, learning_rate_at
from transfer.training.time_limit import StopInTime, TimeLimit


class Clock(keras.callbacks.Callback):
    """A clock that advances by some seconds per training step, and notes the learning rates."""

    def __init__(self):
        super().__init__()
        self.now, self.seconds, self.rates = 0.0, 1.0, []

    def monotonic(self):
        return self.now

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.now += self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_limit, "time", clock)
    return clock


def built(case=large_similar, **options):
    return case(make_tiny(), 3, preprocessing="tf", **options)


def equal(first, second):
    return all(map(np.array_equal, first.get_weights(), second.get_weights()))


def simulate(clock, limit, *, epochs=4, validation=0.0, start=0, kind=WarmupCosine, **options):
    """Take steps of a second, after a first one of 30, until the limit stops them; return the learning rates."""
    limit = TimeLimit(limit)
    stop = StopInTime(limit, epochs=epochs, per_epoch=10, validation_steps=0.0, start=start)
    schedule = kind(peak=1.0, steps=10 * epochs, start=start, limit=stop, **options)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for callback in (clock, schedule, stop):
        callback.set_model(model)
    model.stop_training = False
    for step in range(start, 10 * epochs):
        clock.seconds = 30.0 if step == start else 1.0
        for callback in (schedule, stop):
            callback.on_train_batch_begin(step % 10)
        for callback in (clock, schedule, stop):
            callback.on_train_batch_end(step % 10)
        if model.stop_training or step % 10 == 9:
            clock.now += validation
            stop.on_epoch_end(step // 10)
        if model.stop_training:
            break
    assert stop.stopped == (step + 1 < 10 * epochs)
    return clock.rates, limit.left


def test_a_limit_that_is_far_away_leaves_the_schedule_as_it_is(clock):
    rates, _ = simulate(clock, 1000, validation=3.0)
    free = [learning_rate_at(step, peak=1.0, steps=40) for step in range(40)]
    np.testing.assert_array_equal(rates, np.float32(free))


@pytest.mark.parametrize("validation", [0.0, 2.0])
def test_the_rate_warms_up_and_falls_to_0_by_the_limit(clock, validation):
    rates, left = simulate(clock, 60, validation=validation)  # 30 of them for the first step
    assert len(rates) == {0.0: 31, 2.0: 25}[validation]
    assert 0 <= left < 1
    assert np.argmax(rates) in range(9, 14) and rates[-1] < 0.05
    assert np.diff(rates[14:]).max() < 0


def test_a_resumed_phase_covers_the_rest_of_the_schedule(clock):
    rates, _ = simulate(clock, 41, start=20)
    assert rates[0] == pytest.approx(learning_rate_at(20, peak=1.0, steps=40))
    assert len(rates) == 12 and rates[-1] < 0.05


def test_step_decay_and_gradual_unfreezing_follow_the_shorter_schedule(clock):
    progress = []
    options = {"kind": StepDecay, "every": 10, "factor": 10.0, "set_progress": progress.append}
    rates, _ = simulate(clock, 60, **options)
    assert rates[-1] == pytest.approx(1e-3) and 0.9 < progress[-1] <= 1


def test_a_long_limit_changes_no_weight(colors, cache):
    models = [built(small_similar, unfreeze_from="block3_conv") for _ in range(2)]
    for model, limit in zip(models, (None, 3600), strict=True):
        fit(model, colors, epochs=2, cache=cache, time_limit=limit, verbose=0)
    assert equal(*models)


def test_training_stops_inside_an_epoch_with_a_validation(colors, cache, caplog, clock, tmp_path):
    models, recipe = [built(), built()], Recipe(layer_decay=0.5, gradual_unfreezing=0.3)
    options = {"epochs": 50, "batch_size": 8, "cache": cache, "recipe": recipe, "verbose": 0}
    options["checkpoints"] = tmp_path / "states"
    with caplog.at_level(logging.INFO):
        log = fit(models[0], colors, time_limit=20.5, callbacks=[clock], **options)
    per_epoch = -(-len(colors.train) // 8)
    assert clock.now == 20 and f"Stopped after {20 / per_epoch:.1f} of 50 epochs" in caplog.text
    last = log.rows[-1]
    assert last["epoch"] == 20 // per_epoch + 1 and last["val_accuracy"] > 0
    assert clock.rates[-1] < 0.05 * max(clock.rates)
    assert float(models[0].optimizer.learning_rate) == pytest.approx(max(clock.rates))
    fit(models[1], colors, **options)  # a training that the limit ended is complete
    assert equal(*models)


def test_a_head_in_epochs_stops_and_fine_tuning_does_not_begin_after_the_limit(colors, cache, caplog, clock):
    clock.seconds = 6.0
    options = {"solver": "sgd", "cache": cache, "callbacks": [clock], "verbose": 0}
    with caplog.at_level(logging.INFO):
        log = fit(built(), colors, time_limit=5.5, **options)
    assert "of 100 epochs: the time limit of 5.5 s." in caplog.text
    assert [row["phase"] for row in log.rows] == ["head"] and len(clock.rates) == 1


def test_training_with_a_rate_of_the_callers_callback_stops(colors, cache, clock):
    fixed = keras.callbacks.LearningRateScheduler(lambda epoch: 1e-3)
    fit(built(), colors, epochs=50, time_limit=9.9, cache=cache, callbacks=[fixed, clock], verbose=0)
    np.testing.assert_allclose(clock.rates, 1e-3, rtol=1e-6)
    assert clock.now == 9


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan"), True, "1m"])
def test_invalid_limits_are_refused(seconds, colors):
    with pytest.raises(InputError, match=r"Expected time_limit as seconds above 0.*Received: "):
        fit(built(), colors, time_limit=seconds)
