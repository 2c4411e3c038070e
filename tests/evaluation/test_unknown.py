"""Distances to training images, and the threshold above which an image is unknown."""

import numpy as np
import pytest

from transfer.evaluation import unknown


def test_distances_are_the_mean_of_the_two_nearest():
    angles = np.deg2rad([0.0, 60.0, 90.0])
    references = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    images = np.array([[7.0, 0.0], [0.0, 2.0], [0.0, 0.0]])  # lengths do not matter
    expected = [(0 + 0.5) / 2, (1 - np.cos(np.pi / 6) + 0) / 2, 1.0]
    np.testing.assert_allclose(unknown.neighbor_distances(images, references), expected, atol=1e-6)
    one = unknown.neighbor_distances(images[:1], references[:1])
    np.testing.assert_allclose(one, [0.0], atol=1e-6)


def test_with_leave_one_out_no_image_is_its_own_neighbor():
    references = np.random.default_rng(0).normal(size=(20, 8))
    left_out = unknown.neighbor_distances(references, references, leave_one_out=True)
    expected = [
        unknown.neighbor_distances(references[[i]], np.delete(references, i, axis=0)) for i in range(20)
    ]
    np.testing.assert_allclose(left_out, np.concatenate(expected), atol=1e-6)


def test_directions_keep_the_distances():
    rng = np.random.default_rng(0)
    references, images = rng.gamma(0.5, size=(50, 300)), rng.gamma(0.5, size=(30, 300))
    directions = unknown.as_directions(references)
    assert directions.dtype == np.int8
    exact, stored = (unknown.neighbor_distances(images, one) for one in (references, directions))
    assert np.abs(exact - stored).max() < 0.1 * exact.std()
    assert not unknown.as_directions(np.zeros((1, 4))).any()


@pytest.mark.parametrize("count", [19, 100, 999])
def test_new_images_are_above_the_threshold_at_the_stated_rate(count):
    rng = np.random.default_rng(0)
    alarms = [
        (rng.exponential(size=100) > unknown.distance_threshold(rng.exponential(size=count))).mean()
        for _ in range(1000)
    ]
    assert 0.9 * unknown.FALSE_ALARMS - 1 / (count + 1) < np.mean(alarms) < 1.1 * unknown.FALSE_ALARMS


def test_few_images_give_the_largest_distance():
    assert unknown.distance_threshold(np.array([0.1, 0.3, 0.2])) == 0.3


def test_each_class_is_among_the_first_images():
    labels = np.array([0] * 90 + [1] * 6 + [2] * 4)
    chosen = unknown.spread_over_classes(labels, 12)
    assert np.bincount(labels[chosen]).tolist() == [4, 4, 4]
    assert sorted(unknown.spread_over_classes(labels, 1000).tolist()) == list(range(100))


def test_unknown_images_are_counted():
    distances, others = np.array([0.1, 0.2, 0.3, 0.6]), np.array([0.25, 0.5, 0.7])
    values = unknown.measure_unknown(0.4, distances, others)
    assert (values["num_images"], values["num_abstained"]) == (4, 1)
    assert (values["num_unknown"], values["num_detected"]) == (3, 2)
    assert values["auroc"] == pytest.approx((2 + 3 + 4) / 12)
    text = unknown.describe_unknown(values)
    assert "1 of 4 test images (25.0%)" in text and "66.7%" in text and "AUROC: 0.750" in text
    assert "AUROC" not in unknown.describe_unknown(unknown.measure_unknown(0.4, distances))
