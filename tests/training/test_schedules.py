"""Numbers of epochs, learning-rate schedules, and the choice between the last and earlier weights."""

import keras
import numpy as np
import pytest

from transfer.cases.builders import build
from transfer.training.fit import fit
from transfer.training.recipes import Recipe
from transfer.training.schedules import (
    MAX_EPOCHS,
    MIN_EPOCHS,
    MIN_WARM_UP,
    STEPS,
    KeepBetter,
    StepDecay,
    WarmupCosine,
    decayed_rate_at,
    epochs_for,
    learning_rate_at,
)


@pytest.mark.parametrize("init", STEPS)
def test_fewer_images_train_for_more_epochs(init):
    epochs = [epochs_for(count, 32, init=init) for count in (1, 300, 1000, 3000, 10**6)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] == MAX_EPOCHS and epochs[-1] == MIN_EPOCHS[init]
    assert epochs[2] * -(-1000 // 32) >= STEPS[init]


@pytest.mark.parametrize("steps", [1, 2, 7, 400])
def test_the_rate_rises_to_its_peak_and_falls_but_stays_above_0(steps):
    rates = [learning_rate_at(step, peak=0.5, steps=steps) for step in range(steps)]
    top = int(np.argmax(rates))
    assert max(rates) == pytest.approx(0.5) and min(rates) > 0
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize(("steps", "warm"), [(4, 2), (8, 4), (20, 10), (100, 10), (400, 40)])
def test_few_steps_have_a_longer_warm_up(steps, warm):
    rates = [learning_rate_at(step, peak=1.0, steps=steps) for step in range(steps)]
    assert rates.index(1.0) == warm - 1 and (warm >= MIN_WARM_UP or warm == steps // 2)


def test_fine_tuning_follows_the_schedule_and_restores_the_rate(colors, tiny):
    model = build("large-similar", tiny, 3, preprocessing="tf", learning_rate=1e-3)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(model.optimizer.learning_rate))
    )
    fit(model, colors, epochs=2, callbacks=[watch], verbose=0)
    steps = 2 * -(-len(colors.train) // 32)
    assert seen == pytest.approx(
        [learning_rate_at(step, peak=1e-3, steps=steps) for step in range(steps)], rel=1e-5
    )
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)


def test_step_decay_divides_the_rate_and_restores_it(colors, tiny):
    rates = [decayed_rate_at(step, first=0.001, every=30, factor=16) for step in range(90)]
    assert rates == pytest.approx([0.001] * 30 + [0.001 / 16] * 30 + [0.001 / 256] * 30)
    assert decayed_rate_at(10**6, first=0.001, every=1, factor=16) == 0
    model = build("large-similar", tiny, 3, preprocessing="tf", learning_rate=1e-3)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(model.optimizer.learning_rate))
    )
    recipe = Recipe(schedule="steps", decay_factor=4, decay_every=2)
    fit(model, colors, epochs=3, recipe=recipe, callbacks=[watch], verbose=0)
    per_epoch = -(-len(colors.train) // 32)
    assert seen == pytest.approx([1e-3] * 2 * per_epoch + [2.5e-4] * per_epoch, rel=1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)


def test_a_schedule_of_the_user_is_respected(colors, tiny):
    model = build("large-similar", tiny, 3, preprocessing="tf")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(model.optimizer.learning_rate))
    )
    own = keras.callbacks.LearningRateScheduler(lambda _: 1e-5)
    fit(model, colors, epochs=2, callbacks=[own, watch], verbose=0)
    assert seen == pytest.approx([1e-5] * len(seen))


class Model:
    """A stand-in for a model, with weights and a stop flag."""

    def __init__(self):
        self.weights = [np.zeros(1)]
        self.stop_training = False

    def get_weights(self):
        return [w.copy() for w in self.weights]

    def set_weights(self, weights):
        self.weights = weights


@pytest.mark.parametrize(
    ("start", "accuracies", "kept"),
    [
        (None, [0.5, 0.9, 0.6], 2),  # clearly worse at the end
        (None, [0.5, 0.82, 0.8], 3),  # worse within the error of 100 images
        (0.9, [0.6, 0.6, 0.6], 0),  # worse than before training
        (0.8, [0.7, 0.78, 0.79], 3),
        (None, [0.6, 0.9, 0.9], 3),
    ],
)
def test_the_last_weights_stay_unless_others_were_clearly_better(start, accuracies, kept):
    callback, model = KeepBetter(num_val=100, start=start), Model()
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, accuracy in enumerate(accuracies):
        model.weights[0][:] = epoch + 1
        callback.on_epoch_end(epoch, {"val_accuracy": accuracy, "loss": 1.0})
    assert callback.choose_weights() == (None if kept == len(accuracies) else kept)
    assert model.weights[0][0] == kept


def test_a_loss_that_is_not_finite_stops_the_training_and_restores_earlier_weights(caplog):
    for count, first, kept in ((100, 2, 2), (0, 2, 2), (100, 0, 0)):
        callback, model = KeepBetter(num_val=count), Model()
        callback.set_model(model)
        callback.on_train_begin()
        for epoch in range(first + 1):
            model.weights[0][:] = epoch + 1
            callback.on_epoch_begin(epoch)
            callback.on_train_batch_end(0, {"loss": 1.0 if epoch < first else np.nan})
            callback.on_epoch_end(epoch, {"val_accuracy": 0.5, "loss": 1.0})
        callback.choose_weights()
        assert model.stop_training and model.weights[0][0] == kept
        assert f"not finite in epoch {first + 1}, step 1" in caplog.text and "clip_norm" in caplog.text


def test_a_schedule_starts_at_a_step():
    assert WarmupCosine(peak=1.0, steps=10).step == 0
    assert StepDecay(peak=1.0, steps=9, start=6, every=3, factor=2.0).rate == 0.25
