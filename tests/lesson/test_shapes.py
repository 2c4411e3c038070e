"""Synthetic shapes are repeatable and balanced, and only the shape depends on the class."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from transfer.common.errors import InputError
from transfer.lesson.shapes import SHAPES, make_colored_shapes, make_shapes


@pytest.fixture(scope="module")
def drawn():
    return make_shapes(2000, seed=3)


def test_images_and_labels_have_their_types_and_shapes(drawn):
    images, labels = drawn
    assert images.shape == (2000, 48, 48, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [50] * len(SHAPES) == [50] * 40
    assert images.min() == 0
    assert images.max() == 255
    assert len({image.tobytes() for image in images}) == 2000


def test_the_same_seed_draws_the_same_images(drawn):
    again, labels = make_shapes(2000, seed=3)
    np.testing.assert_array_equal(again, drawn[0])
    np.testing.assert_array_equal(labels, drawn[1])
    other, labels = make_shapes(2000, seed=4)
    assert (other != drawn[0]).mean() > 0.9
    assert (labels != drawn[1]).mean() > 0.9


def test_labels_follow_the_order_of_the_given_classes():
    images, labels = make_shapes(7, classes=["star", "letter A", "disc"], image_size=20, seed=1)
    assert images.shape == (7, 20, 20, 3)
    assert sorted(np.bincount(labels).tolist()) == [2, 2, 3]


def test_colors_do_not_predict_the_class():
    images, labels, colors = make_colored_shapes(4000, seed=5)
    palettes = colors.reshape(len(labels), -1) / 255
    means = images.mean(axis=(1, 2)) / 255
    for features in (palettes, means, np.concatenate([means, means**2], axis=1)):
        model = LogisticRegression(max_iter=300).fit(features[:3000], labels[:3000])
        # Chance is 1 in 40; the mean of 1,000 guesses is off by 0.5 points.
        assert model.score(features[3000:], labels[3000:]) < 0.05


def test_figures_contrast_with_the_background():
    _, _, colors = make_colored_shapes(1000, seed=6)
    apart = np.linalg.norm(colors[:, 0] - colors[:, 1], axis=1)
    assert np.mean(apart > 100) > 0.99


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_images": 0}, "num_images as a whole number of at least 1"),
        ({"num_images": 2.0}, "Received: 2.0"),
        ({"num_images": True}, "Received: True"),
        ({"image_size": 7}, "image_size as a whole number of at least 8"),
        ({"seed": -1}, "seed as a whole number of at least 0"),
        ({"classes": ["disk"]}, "Unknown shape 'disk'.*Did you mean 'disc'"),
        ({"classes": []}, "one shape or more, each once. Received: none"),
        ({"classes": ["disc", "disc"]}, "each once. Received: disc, disc"),
    ],
)
def test_refuses_arguments(arguments, says):
    with pytest.raises(InputError, match=says):
        make_shapes(**{"num_images": 4, **arguments})
