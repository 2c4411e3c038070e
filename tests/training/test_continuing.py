"""`fit` on a trained model continues from its present weights."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import large_different, large_similar, small_similar, unfreeze
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.images.datasets import load_data
from transfer.training.fit import fit
from transfer.training.learning_rate_finder import find_learning_rate
from transfer.training.phases import TrainingLog
from transfer.training.trained import TrainedModel, find_trained, record


@pytest.fixture(scope="module")
def colors(color_folder):
    return load_data(color_folder)


def built(builder=large_similar, **options):
    return builder(make_tiny(), 3, preprocessing="tf", **options)


def phases(log):
    return [*dict.fromkeys(log.history["phase"])]


class FirstHead(keras.callbacks.Callback):
    """Keep the head with which fine-tuning starts."""

    def on_train_begin(self, logs=None):
        if self.params["phase"] == "fine-tune":
            self.head = self.model.layers[-1].get_weights()


def test_a_frozen_network_is_unfrozen_and_continues_with_its_head(colors, caplog):
    caplog.set_level(logging.INFO)
    model, first = built(small_similar), FirstHead()
    assert phases(fit(model, colors, verbose=0)) == ["head"]
    head = model.layers[-1].get_weights()
    unfreeze(model, learning_rate=1e-4)
    log = fit(model, colors, epochs=1, callbacks=[first], verbose=0)
    assert phases(log) == ["fine-tune"] and "continues from the present weights" in caplog.text
    np.testing.assert_array_equal(first.head[0], head[0])
    again = fit(model, colors, epochs=1, initial_head="solve", verbose=0)
    assert phases(again) == ["head", "fine-tune"]


def test_a_continued_training_that_gets_worse_is_undone(colors, caplog):
    model = built()
    fit(model, colors, epochs=2, verbose=0)
    good, before = evaluate(model, colors, split="val").accuracy, model.get_weights()
    model.optimizer.learning_rate = 3.0
    log = fit(model, colors, epochs=1, verbose=0)
    assert log.rolled_back and log.kept_row == -1 and "Restored the weights from before" in caplog.text
    assert good == evaluate(model, colors, split="val").accuracy > 0.5
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert decision_of(model).fine_tuned, "the weights before are fine-tuned as well"


def test_a_network_from_random_weights_continues(colors):
    model = built(large_different, init="random")
    assert phases(fit(model, colors, epochs=1, verbose=0)) == ["from-scratch"]
    before = model.layers[-1].get_weights()
    assert phases(fit(model, colors, epochs=1, verbose=0)) == ["from-scratch"]
    assert not np.array_equal(before[0], model.layers[-1].kernel)
    with pytest.raises(InputError, match="Expected initial_head='solve' only with pre-trained weights"):
        fit(model, colors, initial_head="solve")


def test_a_loaded_model_says_how_to_continue_and_does(colors, tmp_path):
    model = built()
    fit(model, colors, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    record(
        TrainedModel(loaded, colors.class_names, (32, 32), "stretch", None, frozenset)
    )  # as `load_run` does
    with pytest.raises(InputError, match=r"transfer.unfreeze\(model\), then fit\(model, data\)"):
        fit(loaded, colors)
    unfreeze(loaded)
    assert phases(fit(loaded, colors, epochs=1, verbose=0)) == ["fine-tune"]


def test_other_classes_get_a_new_head(colors):
    model = built()
    record(TrainedModel(model, ("a", "b", "c"), (32, 32), "stretch", None, frozenset))
    assert phases(fit(model, colors, epochs=1, verbose=0)) == ["head", "fine-tune"]


@pytest.mark.parametrize(
    ("builder", "value", "message"),
    [
        (large_similar, "kept", "Did you mean 'keep'"),
        (small_similar, "keep", r"transfer.unfreeze\(model\) first"),
    ],
)
def test_wrong_initial_heads_are_refused(builder, value, message, colors):
    with pytest.raises(InputError, match=message):
        fit(built(builder), colors, initial_head=value)


def test_a_range_test_does_not_count_as_training(colors):
    model = built()
    find_learning_rate(model, colors, steps=10)
    assert find_trained(model) is None and decision_of(model).fine_tuned is None


@pytest.mark.parametrize(("kept", "whole"), [(None, None), (1, 4), (-1, 1)])
def test_the_sum_of_two_logs_marks_the_epoch_of_the_final_weights(kept, whole):
    first = TrainingLog([{"phase": "head", "epoch": n} for n in (1, 2, 3)], kept_row=1)
    second = TrainingLog([{"phase": "fine-tune", "epoch": n} for n in (1, 2)], kept_row=kept)
    assert (first + second).kept_row == whole
    assert (first + second).history["epoch"] == [1, 2, 3, 1, 2]
