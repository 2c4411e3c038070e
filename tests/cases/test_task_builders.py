"""Builders for several labels per image and for numbers: head, loss, metrics, and what they refuse."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, infer, make_tiny, raw_images, snapshot

from transfer.cases.builders import (
    build,
    large_different,
    large_similar,
    small_different,
    small_similar,
    unfreeze,
)
from transfer.cases.compiling import as_loss, as_metrics, compile_like, normalize_compilation
from transfer.cases.decisions import decision_of, task_of_model
from transfer.common.errors import InputError

BUILDERS = [small_similar, small_different, large_similar, large_different]
OUTPUTS = {"multi": 4, "regression": 1}


def built(task, builder=small_similar, **options):
    return builder(make_tiny(), OUTPUTS[task], preprocessing="tf", task=task, **options)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("task, activation", [("multi", "sigmoid"), ("regression", "linear")])
def test_each_builder_ends_in_the_layer_of_the_task(task, activation, builder):
    base = make_tiny()
    before = snapshot(base)
    model = builder(base, OUTPUTS[task], preprocessing="tf", task=task)
    head = model.layers[-1]
    assert (head.name, head.activation.__name__) == ("head", activation)
    assert model.output_shape == (None, OUTPUTS[task])
    assert decision_of(model).task == task and task_of_model(model) == task
    assert (activation, "new") in decision_of(model).blocks
    assert_bit_equal(before, snapshot(base))


def test_the_head_of_ordered_classes_is_a_softmax():
    model = small_similar(make_tiny(), 4, preprocessing="tf", task="ordinal")
    assert model.layers[-1].activation is keras.activations.softmax
    assert decision_of(model).task == "ordinal"


@pytest.mark.parametrize("task", OUTPUTS)
def test_a_saved_model_loads_with_keras_alone_and_predicts_the_same(task, tmp_path):
    model, images = built(task), raw_images()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].activation is model.layers[-1].activation
    np.testing.assert_allclose(infer(loaded, images), infer(model, images), atol=1e-6)
    assert task_of_model(loaded) == task


@pytest.mark.parametrize("task", OUTPUTS)
def test_loss_and_metric_are_those_of_the_task(task):
    model, images = built(task), raw_images(6)
    labels = np.random.default_rng(0).integers(0, 2, (6, OUTPUTS[task])).astype("float32")
    labels[0] = 1 - labels[1]  # each label has images
    values = model.evaluate(images, labels, verbose=0, return_dict=True)
    predicted = infer(model, images).astype("float64")
    if task == "multi":
        expected = -np.log(np.where(labels > 0, predicted, 1 - predicted)).mean()
        assert set(values) == {"loss", "mean_average_precision"}
    else:
        expected = np.square(predicted - labels).mean()
        r2 = 1 - expected / labels.var()
        assert values["r2"] == pytest.approx(r2, rel=1e-4)
    assert values["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_number_of_outputs_suits_the_task():
    with pytest.raises(InputError, match="num_classes=1 for the task regression"):
        small_similar(make_tiny(), 3, preprocessing="tf", task="regression")
    for task in ("multi", "single"):
        with pytest.raises(InputError, match="at least 2 "):
            small_similar(make_tiny(), 1, preprocessing="tf", task=task)


@pytest.mark.parametrize("task", ["auto", "several", None])
def test_an_unknown_task_lists_the_valid_ones(task):
    with pytest.raises(
        InputError, match=r"'single', 'ordinal', 'multi', 'regression'.*'auto' is for load_data"
    ):
        build("small-similar", make_tiny(), 3, preprocessing="tf", task=task)


def test_own_heads_are_checked_by_the_task():
    layers = keras.layers
    sigmoid = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(4, "sigmoid")])
    assert built("multi", head=sigmoid).layers[-1].name == "head"
    with pytest.raises(InputError, match=r"from 0 to 1.*sigmoid"):
        built("multi", head=layers.Dense(4, bias_initializer=keras.initializers.Constant(9.0)))
    with pytest.raises(InputError, match="one probability per label"):
        built("multi", head=layers.Dense(3, "sigmoid"))
    number = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(1)])
    assert built("regression", head=number).output_shape == (None, 1)
    for wrong in (layers.Dense(1, "relu"), layers.Dense(1, use_bias=False)):
        with pytest.raises(InputError, match="linear layer with a bias"):
            built("regression", head=wrong)


@pytest.mark.parametrize("loss", ["huber", "mae", keras.losses.LogCosh(), lambda y, p: keras.ops.abs(y - p)])
def test_losses_of_differences_are_accepted_for_regression(loss):
    assert built("regression", loss=loss).loss is loss


@pytest.mark.parametrize(
    "task, loss, message",
    [
        ("regression", "mean_absolute_percentage_error", "standardized"),
        ("regression", lambda y, p: -keras.ops.abs(y - p), "lower for right predictions"),
        ("multi", keras.losses.BinaryCrossentropy(from_logits=True), "Leave from_logits out"),
        ("multi", "sparse_categorical_crossentropy", "Expected a loss"),
        ("multi", "hubber", "Did you mean"),
    ],
)
def test_other_losses_are_refused(task, loss, message):
    with pytest.raises(InputError, match=message):
        built(task, loss=loss)


def test_default_losses_have_their_names_and_other_losses_stay():
    assert as_loss(keras.losses.BinaryCrossentropy(), 3, "multi") == "binary_crossentropy"
    assert as_loss("mse", 1, "regression") == "mean_squared_error"
    focal = keras.losses.BinaryFocalCrossentropy()
    assert as_loss(focal, 3, "multi") is focal


def test_own_metrics_follow_that_of_the_task():
    names = [getattr(one, "name", one) for one in as_metrics(["binary_accuracy", "auc"], 3, "multi")]
    assert names[0] == "mean_average_precision" and len(names) == 3
    assert len(as_metrics(as_metrics(["mae"], 1, "regression"), 1, "regression")) == 2
    for task, wrong, message in (
        ("multi", ["accuracy"], "binary_accuracy"),
        ("regression", [keras.metrics.MeanSquaredError(name="loss")], "name of its own"),
        ("multi", [keras.metrics.F1Score()], "one number"),
    ):
        with pytest.raises(InputError, match=message):
            as_metrics(wrong, 3 if task == "multi" else 1, task)


def test_smoothed_and_weighted_losses_are_those_of_their_formulas():
    model, images = built("multi", metrics=["binary_accuracy"]), raw_images()
    labels = np.array(
        [[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], "float32"
    )
    predicted = infer(model, images).astype("float64")
    weights = np.array([[2.0, 3.0, 1.0, 0.5], [1.0, 0.5, 2.0, 1.0]])
    for smoothing, used in ((0.0, weights), (0.2, None), (0.2, weights)):
        other = keras.Model(model.inputs, model.outputs)
        compile_like(other, model, keras.optimizers.SGD(), smoothing=smoothing, weights=used)
        soft = labels * (1 - smoothing) + smoothing / 2
        losses = -(soft * np.log(predicted) + (1 - soft) * np.log(1 - predicted))
        if used is not None:
            losses *= np.where(labels > 0, used[0], used[1])
        values = other.evaluate(images, labels, verbose=0, return_dict=True)
        assert values["loss"] == pytest.approx(losses.mean(), rel=1e-4)
        assert "binary_accuracy" in values


def test_label_smoothing_of_a_regression_is_refused():
    model = built("regression")
    with pytest.raises(InputError, match="no label_smoothing"):
        compile_like(model, model, model.optimizer, smoothing=0.1)


@pytest.mark.parametrize("task", OUTPUTS)
def test_a_model_that_the_user_compiled_again_gets_the_metric_of_the_task(task):
    model = built(task)
    loss = "binary_crossentropy" if task == "multi" else "mse"
    model.compile("sgd", loss)
    normalize_compilation(model)
    labels = np.eye(4, OUTPUTS[task]).repeat(2, axis=0)[:6]
    assert len(model.evaluate(raw_images(6), labels, verbose=0)) == 2
    assert type(model.optimizer).__name__ == "SGD"


@pytest.mark.parametrize("task", OUTPUTS)
def test_unfreezing_keeps_the_task(task):
    model = unfreeze(built(task))
    assert decision_of(model).task == task
    assert as_loss(model.loss, OUTPUTS[task], task) == as_loss(None, OUTPUTS[task], task)
    assert all(layer.trainable for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
