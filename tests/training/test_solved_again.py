"""The head of a fine-tuned model is solved again, on its own features and without looking at validation images."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import large_similar, small_similar
from transfer.cases.decisions import decision_of
from transfer.common.decision_rules import choose_rule
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.results.saved_runs import save_run
from transfer.training.fit import fit
from transfer.training.solved_again import solve_again


@pytest.fixture(scope="module")
def data(shuffled_folder):
    """Images whose labels cannot be learned, so that a head that saw an image differs from one that did not."""
    from transfer.images.datasets import load_data

    return load_data(shuffled_folder, val=20, image_size=32)


@pytest.fixture(scope="module")
def trained(data):
    model = large_similar(make_tiny(), data.num_classes, preprocessing="tf", metrics=["auc"])
    return model, fit(model, data, epochs=1, verbose=0)


def shuffled(data):
    """Return the data with other labels of the validation images."""
    return replace(data, val=replace(data.val, labels=np.roll(data.val.labels, 7)))


def test_all_layers_but_the_head_are_equal_and_the_given_model_is_unchanged(data, trained):
    model, _ = trained
    before = model.get_weights()
    again = solve_again(model, data)
    assert all(map(np.array_equal, before, model.get_weights()))
    *below, kernel, _ = again.model.get_weights()
    assert all(map(np.array_equal, below, before[:-2]))
    assert not np.array_equal(kernel, before[-2]) and kernel.shape == before[-2].shape
    assert [w.trainable for w in again.model.weights] == [w.trainable for w in model.weights]
    assert decision_of(again.model) == decision_of(model)


def test_validation_is_predicted_by_a_head_that_never_saw_it(data, trained):
    model, _ = trained
    assert data.drawn_val
    first, other = solve_again(model, data), solve_again(model, shuffled(data))
    # The labels choose only the temperature: a factor of the scores without the class frequencies.
    frequencies = np.log(np.bincount(data.train.labels))
    scores = [np.log(one.val_probabilities) - frequencies for one in (first, other)]
    one, same = (part - part.mean(axis=1, keepdims=True) for part in scores)
    np.testing.assert_allclose(one / np.linalg.norm(one), same / np.linalg.norm(same), atol=1e-4)
    # The final head saw the labels of validation images that `load_data` drew, and not of others.
    assert not np.array_equal(first.model.get_weights()[-1], other.model.get_weights()[-1])
    given = solve_again(model, replace(data, drawn_val=False))
    predicted = evaluate(given.model, data, split="val").probabilities
    np.testing.assert_allclose(predicted, given.val_probabilities, atol=1e-5)
    accuracy = (given.val_probabilities.argmax(axis=1) == data.val.labels).mean()
    assert given.log.rows[0]["val_accuracy"] == pytest.approx(accuracy)


def test_the_copy_takes_larger_images_and_is_a_model_like_any_other(data, trained, tmp_path):
    model, log = trained
    again = solve_again(model, data, image_size=48)
    assert again.model.input_shape[1:] == (48, 48, 3) and again.data.image_size == (48, 48)
    assert all(map(np.array_equal, again.model.get_weights()[:-2], model.get_weights()[:-2]))
    evaluation = evaluate(again.model, again.data)
    run = save_run(again.model, again.data, [log, again.log], tmp_path / "run")
    loaded = evaluate(run.model, again.data).probabilities
    np.testing.assert_allclose(loaded, evaluation.probabilities, atol=1e-5)
    assert run.metrics["image_size"] == [48, 48] and run.metrics["test_accuracy"] == evaluation.accuracy
    more = fit(again.model, again.data, epochs=1, verbose=0)
    assert [row["phase"] for row in more.rows] == ["fine-tune"] and "val_auc" in more.rows[0]


def test_a_model_without_validation_images_and_a_head_of_ones_own(data):
    alone = replace(data, val=data.val.take([]))
    model = small_similar(make_tiny(), data.num_classes, preprocessing="tf")
    again = solve_again(model, alone, class_weights=True)
    assert again.val_probabilities.shape == (0, 3) and "val_loss" not in again.log.rows[0]
    head = keras.Sequential([keras.layers.Dense(4, "relu"), keras.layers.Dense(3, "softmax")])
    own = small_similar(make_tiny(), data.num_classes, preprocessing="tf", head=head)
    with pytest.raises(InputError, match="Expected a model with the default head"):
        solve_again(own, data)


def test_the_rule_of_ordered_classes_comes_from_predictions_before_the_head_saw_the_images(data, trained):
    ordered = replace(data, task="ordinal")
    model = trained[0]
    again = solve_again(model, ordered)
    rule = choose_rule(data.val.labels, again.val_probabilities)
    assert evaluate(again.model, ordered).rule == rule
    assert evaluate(solve_again(model, data).model, data).rule is None
