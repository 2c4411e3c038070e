"""What probes say of layers and sizes: the cut, the signal, what more images bring, and labels to doubt."""

import numpy as np
import pytest

from transfer.adviser.curves import layer_curve, side_by_side, size_curve
from transfer.common.errors import InputError


def layers_of(strengths, *, count=300, classes=3, width=8, seed=0):
    """Layers whose features tell the classes more or less clearly."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = rng.normal(size=(classes, width))
    taps = {
        f"block{i}": (rng.normal(size=(count, width)) + strength * centers[labels]).astype("float32")
        for i, strength in enumerate(strengths)
    }
    return taps, labels


def test_the_cut_is_the_best_layer_where_it_is_clearly_ahead():
    taps, labels = layers_of([0.1, 2.0, 0.3])
    curve = layer_curve(taps, labels, 3)
    assert curve.cut == "block1"
    assert curve.accuracy[1] > curve.accuracy[2] + 0.2


def test_of_layers_that_are_as_good_the_deepest_is_taken():
    taps, labels = layers_of([0.2, 1.0, 1.0])
    taps["block2"] = taps["block1"].copy()
    assert layer_curve(taps, labels, 3).cut == "block2"


def test_layers_together_see_more_than_each():
    taps, labels = layers_of([0.5, 0.5, 0.5], count=600)
    curve = layer_curve(taps, labels, 3)
    assert curve.together.accuracy > curve.accuracy.max() + 0.02
    assert curve.best is curve.together


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_shuffled_labels_give_no_signal_and_real_ones_do(classes):
    for seed in range(5):
        taps, labels = layers_of([0.3, 0.8, 1.5], classes=classes, count=30 * classes, seed=seed)
        assert layer_curve(taps, labels, classes).signal
        shuffled = np.random.default_rng(seed).permutation(labels)
        assert not layer_curve(taps, shuffled, classes).signal


def test_copies_of_one_patient_are_no_signal():
    """Images of a group are alike, its label is drawn: only what is left out together is honest."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    labels = rng.permutation(np.arange(30) % 2)[groups]
    taps = {"late": rng.normal(size=(30, 40))[groups] + 0.1 * rng.normal(size=(300, 40))}
    assert layer_curve(taps, labels, 2).signal
    assert not layer_curve(taps, labels, 2, groups=groups.tolist()).signal


def test_vectors_count_the_same_however_long_they_are():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    joined = side_by_side([1e6 * a, b])
    np.testing.assert_allclose(np.linalg.norm(joined[:, :3], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(joined, side_by_side([a, b]), rtol=1e-5)
    assert np.isfinite(side_by_side([np.zeros((2, 3)), b[:2]])).all()


def test_more_images_bring_more_where_there_is_something_to_learn():
    taps, labels = layers_of([0.25], count=400, width=60)
    points = size_curve(taps["block0"], labels, 3)
    assert [point.count for point in points] == [100, 200, 400]
    accuracy = [point.accuracy for point in points]
    assert accuracy[2] > accuracy[0] + 0.03
    assert all(0 < point.standard_error < 0.06 for point in points)
    again = size_curve(taps["block0"], labels, 3)
    assert again == points


def test_sizes_at_which_a_class_would_be_alone_are_left_out():
    taps, labels = layers_of([1.0], count=9)
    assert [point.count for point in size_curve(taps["block0"], labels, 3)] == [9]


def test_no_layers_are_refused():
    with pytest.raises(InputError, match="one layer or more"):
        layer_curve({}, np.array([0, 1]), 2)
