"""Each option of a recipe has its effect on real weights, with several optimizers, and leaves no trace."""

from __future__ import annotations

import logging
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny, snapshot

from transfer.cases.builders import large_different, large_similar, small_similar
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.images.pipeline import make_dataset
from transfer.results.run_metrics import collect_metrics
from transfer.training.fine_tuning import adapt_batchnorm, kept_row_of
from transfer.training.fit import fit
from transfer.training.layer_decay import blocks_of, optimizer_following
from transfer.training.phases import TrainingLog
from transfer.training.recipes import Recipe


def built(data, **options):
    return large_similar(make_tiny(), data.num_classes, preprocessing="tf", **options)


def moved(before, model):
    """Return the largest change of each trainable weight."""
    return [np.abs(np.asarray(w) - b).max() for w, b in zip(model.trainable_variables, before, strict=True)]


def one_step(model, recipe, optimizer=None, progress=None):
    """Take one step with all gradients equal to 1 and return the largest change of each weight."""
    if optimizer is not None:
        model.compile(optimizer, "sparse_categorical_crossentropy")
    before = [np.array(w) for w in model.trainable_variables]
    with optimizer_following(recipe, model) as set_progress:
        if progress is not None:
            set_progress(progress)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.apply(
            [keras.ops.ones(w.shape) for w in model.trainable_variables], model.trainable_variables
        )
    return np.array(moved(before, model))


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Lion"])
def test_each_block_has_its_own_learning_rate_with_any_optimizer(name, colors):
    plain = one_step(built(colors), Recipe(), getattr(keras.optimizers, name)(0.01))
    model = built(colors)
    scaled = one_step(model, Recipe(layer_decay=0.125), getattr(keras.optimizers, name)(0.01))
    numbers, count = blocks_of(model)
    assert count == 4 and set(numbers) == {0, 1, 2, 3}
    wanted = np.array([0.5 ** (count - 1 - number) for number in numbers])
    np.testing.assert_allclose(scaled / plain, wanted, rtol=1e-3)


def test_blocks_that_are_still_frozen_do_not_change(colors):
    model = built(colors)
    far = one_step(
        model, Recipe(gradual_unfreezing=0.6, weight_decay=0.1), keras.optimizers.Adam(0.01), progress=0.3
    )
    numbers, _ = blocks_of(model)
    assert [step > 0 for step in far] == [number >= 2 for number in numbers]


def test_blocks_unfreeze_also_with_a_learning_rate_of_the_user(colors):
    model = built(colors)
    before = [np.array(w) for w in model.trainable_variables]
    falling = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate)
    options = {"epochs": 3, "recipe": Recipe(gradual_unfreezing=0.2), "callbacks": [falling], "verbose": 0}
    fit(model, colors, **options)
    assert all(step > 0 for step in moved(before, model))


def test_weight_decay_shrinks_kernels_and_leaves_biases(colors):
    model = built(colors)
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    before = [np.array(w) for w in model.trainable_variables]
    with optimizer_following(Recipe(weight_decay=0.1), model):
        model.optimizer.build(model.trainable_variables)
        zeros = [keras.ops.zeros(w.shape) for w in model.trainable_variables]
        model.optimizer.apply(zeros, model.trainable_variables)
    for now, then in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_allclose(now, then * (0.95 if then.ndim > 1 else 1.0), rtol=1e-5)


def test_the_optimizer_is_restored_and_the_model_loads_without_this_package(colors, tmp_path):
    model = built(colors)
    fit(
        model,
        colors,
        epochs=2,
        recipe=Recipe(layer_decay=0.3, weight_decay=0.01, clip_norm=1.0, ema=0.9),
        verbose=0,
    )
    assert "update_step" not in vars(model.optimizer)
    model.save(tmp_path / "model.keras")
    code = (
        "import sys, keras; sys.modules['transfer'] = None;"
        f"m = keras.models.load_model({str(tmp_path / 'model.keras')!r});"
        "print(type(m.optimizer).__name__, int(m.optimizer.iterations), m.optimizer.global_clipnorm)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Adam", str(2 * -(-len(colors.train) // 32)), "1.0"]


def test_the_trained_model_has_the_averages_of_the_weights(colors):
    one, other = built(colors), built(colors)
    for model, recipe in ((one, Recipe()), (other, Recipe(ema=0.9))):
        fit(model, colors, epochs=2, recipe=recipe, augment="none", verbose=0)
    averages = other.optimizer._model_variables_moving_average
    for weight, average in zip(other.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(weight, average)
    assert any(step > 0 for step in moved([np.array(w) for w in one.trainable_variables], other))


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.3},
        {"recipe": Recipe(mix="mixup")},
        {"recipe": Recipe(mix="cutmix"), "class_weights": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [None, "block3_conv"])
def test_training_on_soft_labels_leaves_the_model_compiled_for_hard_ones(options, first, colors):
    if first:
        model = small_similar(make_tiny(), colors.num_classes, unfreeze_from=first, preprocessing="tf")
    else:
        model = built(colors)
    log = fit(model, colors, epochs=3, verbose=0, **options)
    assert log.rows[-1]["val_accuracy"] > 0.8
    images, labels = next(iter(make_dataset(colors.val, image_size=(32, 32), batch_size=9)))
    assert model.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"] > 0.8
    if "label_smoothing" in options:
        plain = built(colors)
        fit(plain, colors, epochs=3, verbose=0)
        assert model.predict(images, verbose=0).max() < plain.predict(images, verbose=0).max()


def test_adapting_batchnorm_changes_the_statistics_and_nothing_else(colors):
    model = built(colors)
    names = [weight.path for weight in model.weights]
    before, flags = snapshot(model), [layer.trainable for layer in model.layers]
    whole = make_dataset(colors.train, image_size=(32, 32), batch_size=len(colors.train))
    assert adapt_batchnorm(model, whole) == 3
    assert [layer.trainable for layer in model.layers] == flags
    for name, one, other in zip(names, before, snapshot(model), strict=True):
        assert np.array_equal(one, other) != ("moving_" in name), name
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    seen = keras.Model(model.inputs, first.input)(next(iter(whole))[0])
    np.testing.assert_allclose(first.moving_mean, np.mean(seen, axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(first.moving_variance, np.var(seen, axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batchnorm", ["pinned", "adapted"])
def test_pretrained_statistics_do_not_change_during_fine_tuning(batchnorm, colors):
    model = built(colors)
    if batchnorm == "adapted":
        adapt_batchnorm(model, make_dataset(colors.train, image_size=(32, 32), batch_size=32))
    kept = [np.array(w) for w in model.weights if "moving_" in w.path]
    fresh = built(colors)
    fit(fresh, colors, epochs=1, recipe=Recipe(batchnorm=batchnorm), verbose=0)
    for one, other in zip(kept, [w for w in fresh.weights if "moving_" in w.path], strict=True):
        np.testing.assert_array_equal(one, other)


def test_from_random_weights_statistics_are_always_live(colors):
    model = large_different(make_tiny(), colors.num_classes, init="random", preprocessing="tf")
    before = [np.array(w) for w in model.weights if "moving_" in w.path]
    fit(model, colors, epochs=1, recipe=Recipe(batchnorm="adapted"), verbose=0)
    after = [w for w in model.weights if "moving_" in w.path]
    assert all(np.abs(np.asarray(a) - b).max() > 0 for a, b in zip(after, before, strict=True))


def test_a_loss_that_is_not_finite_stops_the_training_and_restores_finite_weights(colors, caplog):
    model = built(colors, learning_rate=1e30)
    with caplog.at_level(logging.ERROR):
        log = fit(model, colors, epochs=5, augment="none", verbose=0)
    assert "not finite in epoch" in caplog.text and "learning rate" in caplog.text
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert len(log.rows) < 6


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_lower_precision_keeps_weights_scaling_and_softmax_in_full_precision(name, colors):
    model = built(colors, precision=name)
    convolution = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    assert convolution.compute_dtype == name.removeprefix("mixed_")
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.layers[-1].compute_dtype == "float32" and model.output.dtype == "float32"
    for layer in model.layers:
        if isinstance(layer, keras.layers.Rescaling):
            assert layer.compute_dtype == "float32"
    log = fit(
        model, colors, epochs=2, recipe=Recipe(layer_decay=0.5, clip_norm=1.0), label_smoothing=0.1, verbose=0
    )
    assert log.rows[-1]["val_accuracy"] > 0.8


def test_steps_per_execution_gives_the_same_weights_and_schedule(colors):
    one, other = built(colors), built(colors, steps_per_execution=2)
    for model in (one, other):
        fit(model, colors, epochs=2, batch_size=16, augment="none", recipe=Recipe(), verbose=0)
    assert int(one.optimizer.iterations) == int(other.optimizer.iterations)
    assert float(one.optimizer.learning_rate) == float(other.optimizer.learning_rate)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)  # two steps share a learning rate


def test_averages_are_refused_with_an_optimizer_that_has_trained(colors):
    model = built(colors)
    fit(model, colors, epochs=1, verbose=0)
    with pytest.raises(InputError, match="not been trained yet"):
        fit(model, colors, epochs=1, recipe=Recipe(ema=0.9), verbose=0)
    fresh = built(colors)
    fit(fresh, colors, epochs=1, recipe=Recipe(ema=0.9), verbose=0)
    assert not {"finalize_variable_values", "update_step"} & set(vars(fresh.optimizer))


RMSPROP = {"optimizer": "rmsprop", "learning_rate": 0.002, "pin_batchnorm": False}
STEPS = Recipe(schedule="steps", decay_factor=4, decay_every=2, batchnorm="live")


@pytest.mark.parametrize("step", [1, 5])
def test_rmsprop_with_step_decay_resumes_to_the_same_weights(step, colors, tmp_path):
    whole, cut = built(colors, **RMSPROP), built(colors, **RMSPROP)
    options = {"epochs": 3, "recipe": STEPS, "verbose": 0, "checkpoint_every": 0.0}
    fit(whole, colors, **options, checkpoints=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(cut, colors, **options, checkpoints=tmp_path / "cut", callbacks=[Stop(step)])
    again = built(colors, **RMSPROP)
    fit(again, colors, **options, checkpoints=tmp_path / "cut")
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(whole.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


class Stop(keras.callbacks.Callback):
    """Raise KeyboardInterrupt after a number of steps."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_checkpoint_of_another_optimizer_is_refused(colors, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(
            built(colors, **RMSPROP), colors, epochs=2, recipe=STEPS, checkpoints=tmp_path,
            checkpoint_every=0.0, callbacks=[Stop(2)], verbose=0,
        )  # fmt: skip
    other = built(colors, pin_batchnorm=False)
    with pytest.raises(InputError, match="optimizer was 'RMSprop', now 'Adam'"):
        fit(other, colors, epochs=2, recipe=STEPS, checkpoints=tmp_path, verbose=0)


def test_live_statistics_need_a_model_that_was_built_for_them(colors):
    model = built(colors, pin_batchnorm=False)
    before = [np.array(w) for w in model.weights if "moving_" in w.path]
    fit(model, colors, epochs=1, recipe=Recipe(batchnorm="live"), verbose=0)
    after = [w for w in model.weights if "moving_" in w.path]
    assert all(np.abs(np.asarray(a) - b).max() > 0 for a, b in zip(after, before, strict=True))
    with pytest.raises(InputError, match="pin_batchnorm=False"):
        fit(built(colors), colors, epochs=1, recipe=Recipe(batchnorm="live"), verbose=0)


def test_fine_tuning_that_is_undone_is_logged_and_recorded(colors, caplog):
    model = built(colors, learning_rate=3.0)  # far too high: it destroys the network
    caplog.set_level(logging.INFO)
    log = fit(model, colors, epochs=2, recipe=Recipe(clip_norm=1.0), verbose=0)
    assert log.rolled_back and log.rows[log.kept_row]["phase"] == "head"
    assert (
        "Fine-tuning did not improve the validation accuracy. Restored the weights from before" in caplog.text
    )
    decision = decision_of(model)
    assert decision.fine_tuned is False and {state for _, state in decision.blocks} <= {
        "frozen",
        "new",
        "cut",
    }
    assert collect_metrics(model, colors, log, None)["rolled_back"]


def test_fine_tuning_that_is_kept_is_recorded(colors):
    model = built(colors)
    log = fit(model, colors, epochs=1, verbose=0)
    assert not log.rolled_back and decision_of(model).fine_tuned
    assert not collect_metrics(model, colors, log, None)["rolled_back"]


@pytest.mark.parametrize(
    ("rows_before", "kept_before", "first_epoch", "restored", "kept"),
    [(3, 1, 0, None, None), (3, 1, 0, 0, 1), (3, None, 0, 0, 2), (0, None, 0, 0, -1), (5, None, 2, 1, 3)],
)
def test_the_kept_row_counts_over_all_phases_also_after_a_resume(
    rows_before, kept_before, first_epoch, restored, kept
):
    before = TrainingLog([{"phase": "head"}] * rows_before, kept_row=kept_before)
    assert kept_row_of(before, first_epoch, restored) == kept
