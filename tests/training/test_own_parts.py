"""`fit` and what follows it, with a head, an optimizer, a loss and metrics of the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, make_tiny, snapshot

from transfer.cases.builders import build
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import calibrate, evaluate
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import load_data
from transfer.networks.model_files import save_model, saved_model
from transfer.training import head_training
from transfer.training.checkpoints import Checkpoints, Interrupted
from transfer.training.fit import fit
from transfer.training.recipes import Recipe

layers = keras.layers


@pytest.fixture(scope="module")
def colors(color_folder):
    return load_data(color_folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return FeatureCache(tmp_path_factory.mktemp("features"))


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    """End the training of heads soon, to save time."""
    monkeypatch.setattr(head_training, "PATIENCE", 3)


def make_head(width: int = 8) -> keras.Sequential:
    return keras.Sequential(
        [
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=1),
            layers.Dense(width, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )


def built(case="small-similar", **options):
    options.setdefault("head", make_head())
    return build(case, make_tiny(), 3, preprocessing="tf", **options)


def squared(labels, probabilities):
    """Return the squared error; labels are one-hot."""
    return keras.ops.sum(keras.ops.square(labels - probabilities), axis=-1)


def test_an_own_head_learns_from_cached_features_and_the_frozen_weights_stay(colors, cache, caplog):
    model = built(loss=squared, metrics=["auc"], optimizer=keras.optimizers.Nadam(0.02))
    frozen, head = snapshot(model.layers[-2]), snapshot(model.layers[-1])
    layers_before = [snapshot(layer) for layer in model.layers[:-1]]
    with caplog.at_level("INFO", "transfer"):
        log = fit(model, colors, cache=cache, verbose=0)
    assert "Training the head in epochs: the exact solver supports only the default head" in caplog.text
    for layer, before in zip(model.layers[:-1], layers_before, strict=True):
        assert_bit_equal(before, snapshot(layer))
    assert frozen is not None and any(
        (a != b).any() for a, b in zip(head, snapshot(model.layers[-1]), strict=True)
    )
    assert len(log.rows) > 1 and {"auc", "val_auc", "accuracy", "val_accuracy"} <= set(log.rows[-1])
    assert log.computed == len(colors.train) + len(colors.val), (
        "a forward pass per image, whatever the epochs"
    )
    assert evaluate(model, colors, cache=cache).accuracy >= 0.9
    again = fit(built(loss="mse"), colors, cache=cache, verbose=0)
    assert again.computed == 0, "another head reads the features of the first one"


def test_evaluation_applies_the_own_head_to_features(colors, cache):
    model = built()
    fit(model, colors, epochs=3, cache=cache, verbose=0)
    images = np.stack([colors.test.image(i, (32, 32)) for i in range(len(colors.test))])
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(evaluate(model, colors, cache=cache).probabilities, expected, atol=1e-5)


def test_a_trained_head_is_the_start_of_the_training(colors, cache):
    head = make_head()
    first = built(head=head)
    fit(first, colors, cache=cache, verbose=0)
    head = first.layers[-1]
    log = fit(built(head=head, learning_rate=1e-6), colors, epochs=1, cache=cache, verbose=0)
    assert log.rows[0]["val_accuracy"] >= 0.9


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "head"),
        ({"head": None, "loss": "mse"}, "loss"),
        ({"head": None, "optimizer": "sgd"}, "optimizer"),
    ],
)
def test_the_exact_solver_takes_only_the_defaults(options, part, colors, cache):
    model = built(**options)
    with pytest.raises(InputError, match=f"Expected the default {part} with solver='exact'"):
        fit(model, colors, solver="exact", cache=cache, verbose=0)


def test_a_plain_dense_softmax_is_solved_exactly_with_the_metrics_of_the_caller(colors, cache):
    logs = [
        fit(built(head=head, metrics=["auc"]), colors, cache=cache, verbose=0)
        for head in (None, layers.Dense(3, activation="softmax"))
    ]
    assert logs[0].rows == logs[1].rows and logs[0].regularization
    assert 0.9 < logs[0].rows[0]["val_auc"] <= 1


def test_fine_tuning_trains_the_own_head_first(colors, cache):
    model = built("large-similar", loss=squared, metrics=["auc"], optimizer=keras.optimizers.SGD(0.05))
    log = fit(model, colors, epochs=2, cache=cache, verbose=0)
    phases = [row["phase"] for row in log.rows]
    assert phases.count("head") > 1 and phases[-2:] == ["fine-tune"] * 2
    assert all("val_auc" in row for row in log.rows)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    assert evaluate(model, colors, cache=cache).accuracy >= 0.9


def test_an_optimizer_of_the_caller_does_not_exclude_the_solver_in_fine_tuning(colors, cache):
    model = built("large-similar", head=None, optimizer=keras.optimizers.SGD(0.01))
    log = fit(model, colors, epochs=1, cache=cache, verbose=0)
    assert log.regularization is not None


def test_upper_layers_train_with_the_own_head_on_stored_outputs(colors, cache):
    model = built(unfreeze_from="block3_conv", metrics=["auc"])
    before = snapshot(model.get_layer("block2_conv"))
    log = fit(model, colors, epochs=2, cache=cache, verbose=0)
    assert log.rows[-1]["phase"] == "fine-tune" and "val_auc" in log.rows[-1]
    assert_bit_equal(before, snapshot(model.get_layer("block2_conv")))


@pytest.mark.parametrize(
    "recipe", [Recipe(mix="mixup"), Recipe(label_smoothing=0.1)], ids=["mix", "smoothing"]
)
def test_soft_labels_work_with_losses_and_metrics_of_either_form(recipe, colors, cache):
    metrics = ["auc", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    model = built("large-similar", loss="kl_divergence", metrics=metrics)
    log = fit(model, colors, epochs=1, recipe=recipe, cache=cache, verbose=0)
    assert 0 <= log.rows[-1]["val_top2"] <= 1 and log.rows[-1]["val_loss"] > 0


def test_soft_labels_with_a_loss_of_integers_are_an_error(colors):
    def integers(labels, probabilities):
        return keras.losses.sparse_categorical_crossentropy(labels, probabilities)

    with pytest.raises(InputError, match="integers, which takes integer labels"):
        fit(built("large-similar", loss=integers), colors, recipe=Recipe(mix="mixup"), verbose=0)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "mse", keras.losses.KLDivergence])
def test_a_model_that_the_caller_compiled_for_one_hot_labels_trains(loss, colors, cache):
    model = built("large-similar", head=None)
    model.compile("adam", loss, metrics=["auc"])
    optimizer = model.optimizer
    log = fit(model, colors, epochs=1, cache=cache, verbose=0)
    assert model.optimizer is optimizer
    assert {"val_accuracy", "val_auc"} <= set(log.rows[-1])


def test_calibration_scales_the_last_layer_of_the_own_head(color_folder, cache):
    model, data = built(), load_data(color_folder, val=0.4)
    fit(model, data, epochs=5, cache=cache, verbose=0)
    before = evaluate(model, data, split="val", cache=cache).probabilities
    temperature = calibrate(model, data, cache=cache)
    after = evaluate(model, data, split="val", cache=cache).probabilities
    expected = before ** (1 / temperature)
    np.testing.assert_allclose(after, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_the_saved_model_loads_without_the_code_of_loss_and_metrics(colors, cache, tmp_path):
    model = built(loss=squared, metrics=["auc"])
    fit(model, colors, epochs=1, cache=cache, verbose=0)
    save_model(model, tmp_path / "model.keras")
    images = np.stack([colors.test.image(i, (32, 32)) for i in range(4)])
    expected = model.predict(images, verbose=0)
    np.testing.assert_array_equal(saved_model(tmp_path / "model.keras").predict(images, verbose=0), expected)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import keras, numpy; numpy.save('out.npy', keras.models.load_model('model.keras')"
        ".predict(numpy.load('images.npy'), verbose=0))"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], cwd=tmp_path, env=environment, check=True
    )
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_an_interrupted_training_resumes_with_the_same_parts_only(colors, cache, tmp_path, monkeypatch):
    def train(folder, **options):
        parts = {"loss": squared, "metrics": ["auc"], "optimizer": keras.optimizers.SGD(0.05, momentum=0.9)}
        model = built("large-similar", **{**parts, **options})
        fit(model, colors, epochs=2, batch_size=16, checkpoints=folder, cache=cache, verbose=0)
        return model

    whole = train(tmp_path / "whole")
    calls = iter(range(100))
    monkeypatch.setattr(
        Checkpoints,
        "due",
        property(lambda self: (next(calls) == 5 and signal.raise_signal(signal.SIGTERM)) or False),
    )
    with pytest.raises(Interrupted):
        train(tmp_path / "parts")
    for changed in ({"head": make_head(9)}, {"loss": "mse"}, {"metrics": None}, {"optimizer": "sgd"}):
        with pytest.raises(InputError, match="with other settings"):
            train(tmp_path / "parts", **changed)
    assert_bit_equal(snapshot(whole), snapshot(train(tmp_path / "parts")))
