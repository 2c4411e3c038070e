"""Curves by layer and by size: the best cut, the signal, and the gain from more images."""

import numpy as np
import pytest

from transfer.adviser.curves import layer_curve, size_curve
from transfer.common.errors import InputError


def layers_of(strengths, *, count=300, classes=3, width=8, seed=0):
    """Return layers whose features separate the classes more or less clearly, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = rng.normal(size=(classes, width))
    taps = {
        f"block{i}": (rng.normal(size=(count, width)) + strength * centers[labels]).astype("float32")
        for i, strength in enumerate(strengths)
    }
    return taps, labels


def test_the_cut_is_the_best_layer():
    taps, labels = layers_of([0.1, 2.0, 0.3])
    curve = layer_curve(taps, labels, 3)
    assert curve.cut == "block1"
    assert curve.accuracy[1] > curve.accuracy[2] + 0.2


def test_of_equal_layers_the_deepest_is_the_cut():
    taps, labels = layers_of([0.2, 1.0, 1.0])
    taps["block2"] = taps["block1"].copy()
    assert layer_curve(taps, labels, 3).cut == "block2"


def test_all_layers_are_better_than_each_one():
    taps, labels = layers_of([0.5, 0.5, 0.5], count=600)
    curve = layer_curve(taps, labels, 3)
    assert curve.all_layers.accuracy > curve.accuracy.max() + 0.02
    assert curve.best is curve.all_layers


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_shuffled_labels_have_no_signal_and_real_labels_do(classes):
    for seed in range(5):
        taps, labels = layers_of([0.3, 0.8, 1.5], classes=classes, count=30 * classes, seed=seed)
        assert layer_curve(taps, labels, classes).signal
        shuffled = np.random.default_rng(seed).permutation(labels)
        assert not layer_curve(taps, shuffled, classes).signal


def test_similar_images_of_a_group_are_no_signal():
    """Images of a group are similar and its label is random: only leaving out groups shows that."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    labels = rng.permutation(np.arange(30) % 2)[groups]
    taps = {"late": rng.normal(size=(30, 40))[groups] + 0.1 * rng.normal(size=(300, 40))}
    assert layer_curve(taps, labels, 2).signal
    assert not layer_curve(taps, labels, 2, groups=groups.tolist()).signal


def test_accuracy_grows_with_the_number_of_images():
    taps, labels = layers_of([0.25], count=400, width=60)
    points = size_curve(taps["block0"], labels, 3)
    assert [point.num_images for point in points] == [100, 200, 400]
    accuracy = [point.accuracy for point in points]
    assert accuracy[2] > accuracy[0] + 0.03
    assert all(0 < point.standard_error < 0.06 for point in points)
    again = size_curve(taps["block0"], labels, 3)
    assert again == points


def test_sizes_with_single_images_of_a_class_are_skipped():
    taps, labels = layers_of([1.0], count=9)
    assert [point.num_images for point in size_curve(taps["block0"], labels, 3)] == [9]


def test_no_layers_are_rejected():
    with pytest.raises(InputError, match="one layer or more"):
        layer_curve({}, np.array([0, 1]), 2)
