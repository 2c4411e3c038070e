"""Quick advice: similar data are told from different ones by the network's own classifier, whatever its form."""

from __future__ import annotations

import time
from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import make_tiny
from networks import assert_bit_equal, flags, raw_pictures, snapshot

from transfer import advice
from transfer.advice import MOST_IMAGES, SIMILAR_FROM, quick_advice
from transfer.backbones import load_backbone
from transfer.cases import SMALL_DATA, Case
from transfer.datasets import load_data
from transfer.looks import FEWEST_OF_A_CLASS, as_probabilities, some_of_each
from transfer.splitting import Split

layers = keras.layers


def color_network(*ends, size: int | None = 32, activation: str | None = "softmax") -> keras.Model:
    """A network whose three old classes are the color that a picture has most of."""
    top = layers.Dense(3, activation=activation, name="old")
    model = keras.Sequential(
        [keras.Input((size, size, 3)), layers.GlobalAveragePooling2D(name="pool"), top, *ends], name="colors"
    )
    top.set_weights([np.eye(3) * 0.2, np.full(3, -20.0)])
    return model


def advise(data, base, **options) -> advice.Advice:
    return quick_advice(data, base, **{"preprocessing": "none", **options})


@pytest.fixture(scope="module")
def colors(color_folder):
    return load_data(color_folder)


def test_data_that_the_old_classes_tell_apart_are_similar(colors):
    advised = advise(colors, color_network())
    assert advised.case is Case.SMALL_SIMILAR
    assert advised.similarity > 0.9
    assert "similar to what the network knows" in advised.reason
    assert f"({len(colors.train)})" in advised.reason


def test_data_that_the_old_classes_do_not_tell_apart_are_different(shuffled_folder):
    advised = advise(load_data(shuffled_folder), color_network())
    assert advised.case is Case.SMALL_DIFFERENT
    assert advised.similarity < 0.2
    assert "different from what the network knows" in advised.reason


def test_a_base_without_classifier_counts_as_different_and_says_so(colors):
    headless = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(3, 3), layers.ReLU()])
    advised = advise(colors, headless)
    assert advised == advice.Advice(Case.SMALL_DIFFERENT, None, advised.reason)
    assert "the network has no classifier to measure it by" in advised.reason


@pytest.mark.parametrize("activation, softmax", [(None, False), (None, True), ("sigmoid", False)])
def test_logits_and_sigmoids_are_read_as_probabilities(colors, activation, softmax):
    expected = advise(colors, color_network()).similarity
    ends = [layers.Softmax()] if softmax else []
    found = advise(colors, color_network(*ends, activation=activation))
    assert found.case is Case.SMALL_SIMILAR
    assert found.similarity == pytest.approx(expected, abs=1e-6 if activation is None else 0.1)


def test_probabilities_are_made_of_whatever_a_classifier_gives():
    logits = np.array([[1.0, 2.0, -3.0], [0.0, 0.0, 0.0]])
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(as_probabilities(logits), softmax)
    np.testing.assert_allclose(as_probabilities(softmax), softmax)
    np.testing.assert_allclose(as_probabilities(softmax[:, None, None]), softmax)
    np.testing.assert_allclose(as_probabilities(np.array([[0.9, 0.9, 0.0]])), [[0.5, 0.5, 0.0]])
    huge = as_probabilities(np.array([[-1e4, 1e4]]))
    np.testing.assert_allclose(huge, [[0.0, 1.0]])
    assert np.isfinite(as_probabilities(np.zeros((2, 3)))).all()


def test_the_convolutional_top_of_a_mobilenet_is_a_classifier(colors):
    options = {"weights": "none", "image_size": 32, "alpha": 0.25}
    softmax = load_backbone("MobileNet", **options)
    logits = load_backbone("MobileNet", classifier_activation=None, **options)
    logits.set_weights(softmax.get_weights())
    found = [quick_advice(colors, base).similarity for base in (softmax, logits)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert -1 < found[0] < 0.5
    assert quick_advice(colors, load_backbone("MobileNet", include_top=False, **options)).similarity is None


def test_two_pictures_are_enough_to_be_advised():
    images = raw_pictures(2).astype("uint8")
    data = load_data((images, np.array([0, 1])), val=0, test=0)
    advised = advise(data, color_network())
    assert advised.case is Case.SMALL_DIFFERENT
    assert np.isfinite(advised.similarity)


def test_grey_pictures_are_seen_in_color():
    light = np.linspace(10, 240, 40).astype("uint8")
    images = np.broadcast_to(light[:, None, None], (40, 32, 32)).copy()
    data = load_data((images, (np.arange(40) >= 20).astype(int)), val=0, test=0)
    advised = advise(data, color_network())
    assert advised.similarity == pytest.approx(0.0, abs=0.1)
    top = layers.Dense(2, "softmax")
    dark_or_light = keras.Sequential([keras.Input((32, 32, 3)), layers.GlobalAveragePooling2D(), top])
    top.set_weights([np.tile([[0.0, 0.1]], (3, 1)), np.array([0.0, -0.3 * 125])])
    assert advise(data, dark_or_light).similarity > 0.8


def test_enough_data_are_large(colors):
    pixels = np.zeros((SMALL_DATA, 1, 1, 3), "uint8")
    labels = np.arange(SMALL_DATA) % 3
    pixels[np.arange(SMALL_DATA), 0, 0, labels] = 200
    many = replace(colors, train=Split(pixels, labels, [str(i) for i in range(SMALL_DATA)]))
    assert advise(many, color_network()).case is Case.LARGE_SIMILAR
    mixed = np.random.default_rng(0).permutation(labels)
    different = replace(colors, train=Split(pixels, mixed, many.train.names))
    advised = advise(different, color_network())
    assert advised.case is Case.LARGE_DIFFERENT
    assert f"no fewer than {SMALL_DATA:,} training pictures" in advised.reason


def test_the_look_is_the_same_for_the_same_seed(shuffled_folder):
    data = load_data(shuffled_folder)
    one, same = (advise(data, color_network(), seed=3) for _ in range(2))
    assert one == same


def test_a_network_of_fixed_size_is_looked_through_at_its_own(color_folder):
    asked = load_data(color_folder, image_size=48)
    assert advise(asked, color_network(size=32)).similarity > 0.9
    assert advise(asked, color_network(size=None)).similarity > 0.9


def test_the_look_changes_nothing_of_the_network(colors):
    base = make_tiny()
    before, flags_before = snapshot(base), flags(base)
    assert advise(colors, base, preprocessing="tf").similarity is not None
    assert_bit_equal(snapshot(base), before)
    assert flags(base) == flags_before
    assert not base.compiled


# Which pictures are looked at


def test_small_classes_are_seen_as_well():
    labels = np.array([0] * 5000 + [1] * 40 + [2] * 9)
    picked = some_of_each(labels, MOST_IMAGES, 0)
    assert len(picked) == len(set(picked.tolist())) == MOST_IMAGES
    assert np.bincount(labels[picked]).tolist() == [MOST_IMAGES - 49, 40, 9]


def test_of_few_pictures_all_are_seen():
    assert sorted(some_of_each(np.array([0, 1, 1, 0, 2]), MOST_IMAGES, 0)) == [0, 1, 2, 3, 4]


def test_of_many_classes_some_are_seen_with_enough_pictures_each():
    labels = np.random.default_rng(0).integers(0, 500, 20_000)
    picked = labels[some_of_each(labels, MOST_IMAGES, 0)]
    _, counts = np.unique(picked, return_counts=True)
    assert counts.min() >= FEWEST_OF_A_CLASS
    assert len(counts) * FEWEST_OF_A_CLASS == len(picked) == MOST_IMAGES
    assert set(picked) != set(labels[some_of_each(labels, MOST_IMAGES, 1)])


def test_a_million_labels_are_picked_from_in_no_time():
    labels = np.random.default_rng(0).integers(0, 1000, 1_000_000)
    start = time.perf_counter()
    assert len(some_of_each(labels, MOST_IMAGES, 0)) == MOST_IMAGES
    assert time.perf_counter() - start < 3


@pytest.mark.slow
def test_the_default_network_finds_drawn_things_between_photos_and_noise():
    data = load_data("emoji")
    advised = quick_advice(data, load_backbone(image_size=128))
    assert 0.05 < advised.similarity < 1
    assert (advised.case is Case.SMALL_SIMILAR) == (advised.similarity >= SIMILAR_FROM)
