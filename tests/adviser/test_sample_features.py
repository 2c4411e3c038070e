"""One pass over some images: what each tap sees, and how far the images are from the pre-training's."""

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, flags, make_tiny, snapshot

from transfer.adviser.sample_features import (
    FEWEST_OF_A_CLASS,
    as_probabilities,
    batchnorm_shift,
    extract_sample,
    keep_for_training,
    some_of_each,
)
from transfer.frozen.extraction import extract
from transfer.frozen.feature_cache import FeatureCache
from transfer.networks import graphs
from transfer.networks.backbones import block_ends

SIZE = (32, 32)


def extract_sample_features(data, base, cache, **options):
    return extract_sample(data, base, **{"preprocessing": "tf", "cache": cache, **options})


def test_taps_are_the_averages_of_the_block_ends(colors, cache):
    base = make_tiny()
    sample = extract_sample_features(colors, base, cache, max_images=12)
    images = np.stack([sample.images.image(i, SIZE) for i in range(12)]).astype("float32") / 127.5 - 1
    assert list(sample.taps) == [*block_ends(base), "pool"]
    for name, seen in sample.taps.items():
        maps = np.asarray(keras.Model(base.inputs[0], graphs.find(base, name).tensor)(images))
        expected = maps.mean(axis=(1, 2)) if maps.ndim == 4 else maps
        np.testing.assert_allclose(seen, expected, atol=1e-3 * np.abs(expected).max())
        assert np.ptp(expected, axis=0).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(sample.old, np.asarray(base(images)), atol=1e-3)


def test_labels_belong_to_the_images_and_all_classes_are_seen(colors, cache):
    sample = extract_sample_features(colors, make_tiny(), cache, max_images=24)
    names = [str(name).split("/")[-2] for name in sample.images.names]
    assert [colors.class_names[k] for k in sample.labels] == names
    assert sample.num_classes == 3 and np.bincount(sample.labels).tolist() == [8, 8, 8]


def test_statistics_shift_where_images_differ_from_those_of_the_training(colors, cache):
    base = make_tiny()
    sample = extract_sample_features(colors, base, cache)
    assert list(sample.shifts) == ["block1_bn", "block2_bn", "block3_bn"]
    images = np.stack([sample.images.image(i, SIZE) for i in range(len(sample.labels))]).astype("float32")
    first = np.asarray(base.get_layer("block1_conv")(images / 127.5 - 1))
    layer = base.get_layer("block1_bn")
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance) + layer.epsilon
    by_channel = np.square(first.mean(axis=(0, 1, 2)) - mean)
    by_channel += np.square(first.std(axis=(0, 1, 2)) - np.sqrt(variance))
    assert sample.shifts["block1_bn"] == pytest.approx(np.median(by_channel / variance), rel=0.01)
    assert sample.shifts["block1_bn"] > 0.05, "noise and colors differ"


def test_images_as_in_training_are_not_shifted():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 4, 4, 3))
    maps = np.random.default_rng(0).normal(size=(200, 4, 4, 3))
    mean, square = maps.mean(axis=(1, 2)), np.square(maps).mean(axis=(1, 2))
    assert batchnorm_shift(layer, mean, square) < 0.01
    assert batchnorm_shift(layer, mean + 1, square + 2 * mean + 1) == pytest.approx(1, abs=0.1)


def test_nothing_of_the_network_changes_and_the_second_look_computes_nothing(colors, cache, monkeypatch):
    base = make_tiny()
    before, had = snapshot(base), flags(base)
    first = extract_sample_features(colors, base, cache)
    assert_bit_equal(before, snapshot(base))
    assert had == flags(base)
    monkeypatch.setattr("transfer.frozen.extraction._chunks", None)
    again = extract_sample_features(colors, base, cache)
    assert all(np.array_equal(first.taps[name], again.taps[name]) for name in first.taps)


def test_networks_without_batchnorm_or_classifier_are_looked_at(colors, cache):
    inside = [keras.layers.Conv2D(4, 3, strides=2, activation="relu", name=f"block{i}_conv") for i in (1, 2)]
    sample = extract_sample_features(
        colors, keras.Sequential([keras.Input((32, 32, 3)), *inside]), cache, max_images=6
    )
    assert sample.old is None and sample.shifts == {} and sample.taps
    assert sample.taps[list(sample.taps)[-1]].shape == (6, 4)


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


# Which images are looked at


def test_small_classes_are_seen_as_well():
    labels = np.array([0] * 5000 + [1] * 40 + [2] * 9)
    picked = some_of_each(labels, 256, 0)
    assert len(picked) == len(set(picked.tolist())) == 256
    assert np.bincount(labels[picked]).tolist() == [256 - 49, 40, 9]


def test_of_few_images_all_are_seen():
    assert sorted(some_of_each(np.array([0, 1, 1, 0, 2]), 256, 0)) == [0, 1, 2, 3, 4]


def test_of_many_classes_some_are_seen_with_enough_images_each():
    labels = np.random.default_rng(0).integers(0, 500, 20_000)
    picked = labels[some_of_each(labels, 256, 0)]
    _, counts = np.unique(picked, return_counts=True)
    assert counts.min() >= FEWEST_OF_A_CLASS
    assert len(counts) * FEWEST_OF_A_CLASS == len(picked) == 256
    assert set(picked) != set(labels[some_of_each(labels, 256, 1)])


@pytest.mark.parametrize("cut", [None, 0, "all"])
def test_what_was_seen_is_not_computed_again_in_training(cut, colors, cache):
    from transfer.cases.builders import small_similar
    from transfer.frozen.extraction import frozen_feature_extractor
    from transfer.training.fit import fit

    base = make_tiny()
    sample = extract_sample_features(colors, base, cache)
    model = small_similar(base, colors.num_classes, cut=cut, preprocessing="tf")
    assert keep_for_training(sample, model, cache=cache)
    seen = extract(frozen_feature_extractor(model), colors.train, image_size=SIZE, cache=cache)
    assert seen.computed == 0
    by_hand = extract(
        frozen_feature_extractor(model), colors.train, image_size=SIZE, cache=FeatureCache(cache.folder / "x")
    )
    assert by_hand.computed == len(colors.train)
    np.testing.assert_allclose(seen.load(), by_hand.load(), atol=0.02 * np.abs(by_hand.load()).max())
    assert fit(model, colors, cache=cache).computed == len(colors.val)


def test_what_the_head_does_not_see_is_not_handed_on(colors, cache):
    from transfer.cases.builders import small_similar

    sample = extract_sample_features(colors, make_tiny(), cache)
    other = small_similar(
        make_tiny(seed=7), colors.num_classes, preprocessing="tf"
    )  # the same layers, other weights
    assert not keep_for_training(sample, other, cache=cache)
    scaled = small_similar(make_tiny(), colors.num_classes, preprocessing="caffe")
    assert not keep_for_training(sample, scaled, cache=cache)
    within = small_similar(
        make_tiny(), colors.num_classes, cut=make_tiny().layers[1].name, preprocessing="tf"
    )
    assert not keep_for_training(sample, within, cache=cache)
