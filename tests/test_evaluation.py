"""Figures of merit against numbers worked out by hand."""

import keras
import numpy as np
import pytest
from conftest import make_tiny

from transfer.builders import small_similar
from transfer.datasets import load_data
from transfer.errors import InputError
from transfer.evaluation import Evaluation, evaluate


def hand_made():
    probabilities = np.array([[0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [0.5, 0.5, 0.0], [0.1, 0.7, 0.2]])
    return Evaluation(("a", "b", "c"), np.array([0, 1, 1, 2]), probabilities, ("1", "2", "3", "4"))


def test_figures_of_four_pictures():
    found = hand_made()
    assert found.predictions.tolist() == [0, 1, 0, 1]
    assert found.accuracy == 0.5
    assert found.loss == pytest.approx(-np.mean(np.log([0.8, 0.6, 0.5, 0.2])))
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_a_class_without_test_pictures_still_has_its_row():
    found = Evaluation(("a", "b", "c"), np.array([0, 1]), np.eye(3)[[0, 1]], ("1", "2"))
    assert found.confusion.shape == (3, 3) and found.accuracy == 1.0 and np.isfinite(found.loss)


def test_evaluate_agrees_with_keras(color_folder):
    data = load_data(color_folder)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    pictures = np.stack([data.test.picture(i, (32, 32)) for i in range(len(data.test))])
    loss, accuracy = model.evaluate(pictures, data.test.labels, verbose=0)
    found = evaluate(model, data)
    assert found.accuracy == pytest.approx(accuracy) and found.loss == pytest.approx(loss, rel=1e-4)
    assert found.names == tuple(data.test.names)


def test_unknown_or_empty_splits_and_other_models_are_refused(color_folder):
    data = load_data(color_folder, val=0.0)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    for split in ("val", "class_names", "nothing"):
        with pytest.raises(InputError, match="train, val or test"):
            evaluate(model, data, split=split)
    with pytest.raises(InputError, match="classes"):
        evaluate(
            keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]), data
        )
