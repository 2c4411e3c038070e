"""Sample features: taps, source probabilities, BatchNormalization shifts, and the choice of images."""

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, flags, make_tiny, snapshot

from transfer.adviser.sample_features import (
    MIN_IMAGES_PER_CLASS,
    as_probabilities,
    batchnorm_shift,
    extract_sample,
    known_features,
    stratified_sample,
)
from transfer.frozen.extraction import extract
from transfer.frozen.feature_cache import FeatureCache
from transfer.networks import graphs
from transfer.networks.backbones import block_ends

SIZE = (32, 32)


def extract_tiny(data, base, cache, **options):
    return extract_sample(data, base, **{"preprocessing": "tf", "cache": cache, **options})


def test_taps_are_means_of_the_block_ends(colors, cache):
    base = make_tiny()
    sample = extract_tiny(colors, base, cache, max_images=12)
    images = np.stack([sample.images.image(i, SIZE) for i in range(12)]).astype("float32") / 127.5 - 1
    assert list(sample.taps) == [*block_ends(base), "pool"]
    for name, features in sample.taps.items():
        maps = np.asarray(keras.Model(base.inputs[0], graphs.analyze(base).output(name))(images))
        expected = maps.mean(axis=(1, 2)) if maps.ndim == 4 else maps
        np.testing.assert_allclose(features, expected, atol=1e-3 * np.abs(expected).max())
        assert np.ptp(expected, axis=0).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(sample.source_probabilities, np.asarray(base(images)), atol=1e-3)


def test_labels_match_the_images_and_all_classes_are_in_the_sample(colors, cache):
    sample = extract_tiny(colors, make_tiny(), cache, max_images=24)
    names = [str(name).split("/")[-2] for name in sample.images.names]
    assert [colors.class_names[k] for k in sample.labels] == names
    assert sample.num_classes == 3 and np.bincount(sample.labels).tolist() == [8, 8, 8]


def test_shifts_measure_the_distance_to_the_moving_statistics(colors, cache):
    base = make_tiny()
    sample = extract_tiny(colors, base, cache)
    assert list(sample.shifts) == ["block1_bn", "block2_bn", "block3_bn"]
    images = np.stack([sample.images.image(i, SIZE) for i in range(len(sample.labels))]).astype("float32")
    first = np.asarray(base.get_layer("block1_conv")(images / 127.5 - 1))
    layer = base.get_layer("block1_bn")
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance) + layer.epsilon
    by_channel = np.square(first.mean(axis=(0, 1, 2)) - mean)
    by_channel += np.square(first.std(axis=(0, 1, 2)) - np.sqrt(variance))
    assert sample.shifts["block1_bn"] == pytest.approx(np.median(by_channel / variance), rel=0.01)
    assert sample.shifts["block1_bn"] > 0.05, "the images differ from noise"


def test_images_like_the_training_images_have_no_shift():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 4, 4, 3))
    maps = np.random.default_rng(0).normal(size=(200, 4, 4, 3))
    mean, square = maps.mean(axis=(1, 2)), np.square(maps).mean(axis=(1, 2))
    assert batchnorm_shift(layer, mean, square) < 0.01
    assert batchnorm_shift(layer, mean + 1, square + 2 * mean + 1) == pytest.approx(1, abs=0.1)


def test_the_network_is_not_changed_and_cached_features_are_reused(colors, cache, monkeypatch):
    base = make_tiny()
    before, flags_before = snapshot(base), flags(base)
    first = extract_tiny(colors, base, cache)
    assert_bit_equal(before, snapshot(base))
    assert flags_before == flags(base)
    monkeypatch.setattr("transfer.frozen.extraction.make_dataset", None)
    again = extract_tiny(colors, base, cache)
    assert all(np.array_equal(first.taps[name], again.taps[name]) for name in first.taps)


def test_networks_without_batchnorm_or_classifier_have_features(colors, cache):
    inside = [keras.layers.Conv2D(4, 3, strides=2, activation="relu", name=f"block{i}_conv") for i in (1, 2)]
    sample = extract_tiny(colors, keras.Sequential([keras.Input((32, 32, 3)), *inside]), cache, max_images=6)
    assert sample.source_probabilities is None and sample.shifts == {} and sample.taps
    assert sample.taps[list(sample.taps)[-1]].shape == (6, 4)


def test_logits_softmax_and_sigmoid_outputs_become_probabilities():
    logits = np.array([[1.0, 2.0, -3.0], [0.0, 0.0, 0.0]])
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(as_probabilities(logits), softmax)
    np.testing.assert_allclose(as_probabilities(softmax), softmax)
    np.testing.assert_allclose(as_probabilities(softmax[:, None, None]), softmax)
    np.testing.assert_allclose(as_probabilities(np.array([[0.9, 0.9, 0.0]])), [[0.5, 0.5, 0.0]])
    huge = as_probabilities(np.array([[-1e4, 1e4]]))
    np.testing.assert_allclose(huge, [[0.0, 1.0]])
    assert np.isfinite(as_probabilities(np.zeros((2, 3)))).all()


def test_samples_include_small_classes():
    labels = np.array([0] * 5000 + [1] * 40 + [2] * 9)
    chosen = stratified_sample(labels, 256, 0)
    assert len(chosen) == len(set(chosen.tolist())) == 256
    assert np.bincount(labels[chosen]).tolist() == [256 - 49, 40, 9]


def test_samples_include_all_of_few_images():
    assert sorted(stratified_sample(np.array([0, 1, 1, 0, 2]), 256, 0)) == [0, 1, 2, 3, 4]


def test_samples_include_enough_images_of_some_of_many_classes():
    labels = np.random.default_rng(0).integers(0, 500, 20_000)
    chosen = labels[stratified_sample(labels, 256, 0)]
    _, counts = np.unique(chosen, return_counts=True)
    assert counts.min() >= MIN_IMAGES_PER_CLASS
    assert len(counts) * MIN_IMAGES_PER_CLASS == len(chosen) == 256
    assert set(chosen) != set(labels[stratified_sample(labels, 256, 1)])


@pytest.mark.parametrize("cut", [None, 0, "all"])
def test_training_reuses_sample_features(cut, colors, cache):
    from transfer.cases.builders import small_similar
    from transfer.frozen.extraction import frozen_feature_extractor
    from transfer.training.fit import fit

    base = make_tiny()
    sample = extract_tiny(colors, base, cache)
    model = small_similar(base, colors.num_classes, cut=cut, preprocessing="tf")
    known = known_features(sample, model)
    extractor, caches = frozen_feature_extractor(model), [FeatureCache(cache.folder / name) for name in "xyz"]
    reused = extract(extractor, colors.train, image_size=SIZE, cache=caches[0], known=known)
    assert reused.computed == 0
    by_hand = extract(extractor, colors.train, image_size=SIZE, cache=caches[1])
    assert by_hand.computed == len(colors.train)
    np.testing.assert_allclose(reused.load(), by_hand.load(), atol=0.02 * np.abs(by_hand.load()).max())
    assert fit(model, colors, cache=caches[2], known_features=known).computed == len(colors.val)


def test_features_of_other_networks_or_layers_are_not_reused(colors, cache):
    from transfer.cases.builders import small_similar
    from transfer.frozen.extraction import frozen_feature_extractor

    sample = extract_tiny(colors, make_tiny(), cache)
    other_weights = small_similar(make_tiny(seed=7), colors.num_classes, preprocessing="tf")
    other_preprocessing = small_similar(make_tiny(), colors.num_classes, preprocessing="caffe")
    for model in (other_weights, other_preprocessing):
        known = known_features(sample, model)
        extractor = frozen_feature_extractor(model)
        features = extract(extractor, colors.train, image_size=SIZE, cache=cache, known=known)
        assert features.computed == len(colors.train)
    inside = small_similar(
        make_tiny(), colors.num_classes, cut=make_tiny().layers[1].name, preprocessing="tf"
    )
    assert known_features(sample, inside) is None
