"""Similarity scores among reference sets, missing measures, and the stored measures."""

import configparser
import dataclasses
import importlib.resources
import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.adviser import similarity
from transfer.adviser.sample_features import SampleFeatures, extract_sample
from transfer.adviser.similarity import (
    SIMILAR_SCORE,
    WEIGHTS,
    measure_similarity,
    percentile,
    references,
    shift_by_depth,
)
from transfer.common.errors import InputError
from transfer.images.splitting import Split

LITE, MOBILE = "EfficientNetLite0", "MobileNetV2"
SIZES = (96, 128, 224)


def make_sample(*, confidence=0.6, correct=1.0, shift=(0.1, 0.08, 0.1), count=200, classes=4, size=128):
    """Return a sample whose source classes are permuted labels, correct for a fraction of the images."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    predicted = np.where(rng.uniform(size=count) < correct, labels, rng.integers(0, classes, count))
    source_probabilities = np.full((count, 10), (1 - confidence) / 9)
    source_probabilities[np.arange(count), 9 - predicted] = confidence
    shifts = {f"bn{i}": value for i, value in enumerate(np.repeat(shift, 4).tolist())} if shift else {}
    images = Split([], labels, [])
    return SampleFeatures(
        images, labels, len(set(labels.tolist())), {}, source_probabilities, shifts, (size, size)
    )


def scores(model, size, *, shift=True, count=200):
    """Return the scores of the reference sets at an image size and number of images."""
    sample = make_sample(size=size, shift=shift and (0.1, 0.1, 0.1), count=count)
    return {one.name: one.score for one in measure_similarity(sample, model).references}


def test_percentiles_are_interpolated_and_clipped():
    known = [4.0, 0.0, 1.0]
    assert [percentile(x, known) for x in (-9, 0, 0.5, 1, 2.5, 4, 9)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert percentile(3.0, [3.0]) in (0, 1)
    with pytest.raises(InputError, match="reference values"):
        percentile(1.0, [])


@pytest.mark.parametrize("count", [50, 100, 200, 400, 1000])
@pytest.mark.parametrize("size", [96, 112, 128, 160, 224])
def test_reference_sets_have_the_expected_order(size, count):
    found = scores(LITE, size, count=count)
    assert set(found) == {one.name for one in references(LITE)} and len(found) >= 9
    assert max(found, key=found.get) == "hymenoptera"
    assert found["hymenoptera"] > found["hymenoptera-32px"] > found["cifar10-blurred"]
    assert found["cifar10"] > found["cifar10-inverted"] > found["cifar10-blurred"]
    assert min(found["hymenoptera"], found["cifar10"]) >= SIMILAR_SCORE
    either = ("hymenoptera", "cifar10", "emoji")
    assert max(score for name, score in found.items() if name not in either) < SIMILAR_SCORE


@pytest.mark.parametrize("count", [50, 100, 200, 400, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_without_the_shift_no_different_set_counts_as_similar(size, count):
    """Photos at 96 px and CIFAR-10 are missed: the classifier alone does not separate them from clothes."""
    for found in (scores(MOBILE, size, count=count), scores(LITE, size, shift=False, count=count)):
        assert all(score < SIMILAR_SCORE for name, score in found.items() if name != "hymenoptera")
        assert size == 96 or found["hymenoptera"] >= SIMILAR_SCORE


def test_a_sample_is_compared_with_the_reference_sets():
    at_128 = [one for one in references(LITE) if one.image_size == 128]
    hymenoptera = next(one for one in at_128 if one.name == "hymenoptera")
    found = measure_similarity(make_sample(shift=hymenoptera.shift, confidence=0.99, count=400), LITE)
    assert found.percentiles == {"information": 1, "confidence": 1, "shift": 1} and found.score == 1
    assert found.shift == pytest.approx(hymenoptera.shift)
    assert found.confidence == pytest.approx(0.99) and found.information > 0.9
    assert found.similar and found.calibrated and not found.missing and found.nearest == "hymenoptera"
    assert [one.score for one in found.references] == sorted(
        (p.score for p in found.references), reverse=True
    )
    confidences = [one.confidence for one in at_128]
    some = measure_similarity(make_sample(confidence=0.5), LITE)
    assert some.percentiles["confidence"] == pytest.approx(percentile(0.5, confidences))
    json.dumps(dataclasses.asdict(some))


def test_the_score_is_the_weighted_mean_mapped_to_the_threshold():
    found = measure_similarity(make_sample(correct=0.5, confidence=0.5), LITE)
    mean = sum(WEIGHTS[k] * v for k, v in found.percentiles.items()) / sum(WEIGHTS.values())
    assert set(found.percentiles) == set(WEIGHTS) and 0 < mean < similarity.THRESHOLDS[True]
    assert found.score == pytest.approx(mean * SIMILAR_SCORE / similarity.THRESHOLDS[True])


def test_each_measure_moves_the_score_in_its_direction():
    by_shift = [
        measure_similarity(make_sample(shift=(s, s, s)), LITE).score for s in (0.03, 0.08, 0.2, 0.5, 9.0)
    ]
    assert by_shift == sorted(by_shift, reverse=True) and by_shift[0] > by_shift[-1] + 0.2
    by_correct = [measure_similarity(make_sample(correct=r), LITE) for r in (0.0, 0.3, 0.6, 1.0)]
    assert len({round(found.confidence, 9) for found in by_correct}) == 1
    values = [found.score for found in by_correct]
    assert values == sorted(values) and values[-1] > values[0] + 0.1
    # One class has no information, and a higher confidence is more similar.
    by_confidence = [
        measure_similarity(make_sample(confidence=s, classes=1), LITE).score for s in (0.1, 0.4, 0.6, 0.99)
    ]
    assert by_confidence == sorted(by_confidence) and by_confidence[-1] > by_confidence[0] + 0.1


def test_references_are_interpolated_to_the_number_of_images():
    """Fewer of the same images have less information, which must not make them different."""
    at_128 = [one for one in references(LITE) if one.image_size == 128 and one.name == "cifar10"]
    few, many = at_128[0].information[100], at_128[0].information[1000]
    assert many > few + 0.1
    known = {
        count: {one.name: one for one in similarity._interpolate(references(LITE), size=128.0, count=count)}
        for count in (10, 100, 1000, 5000)
    }
    assert known[100]["cifar10"].information == pytest.approx(few)
    assert known[1000]["cifar10"].information == known[5000]["cifar10"].information == pytest.approx(many)
    assert known[10]["cifar10"].information == pytest.approx(at_128[0].information[50])


def test_references_are_interpolated_to_the_image_size():
    by_size = {size: scores(LITE, size) for size in (32, 96, 128, 150, 224, 600)}
    assert by_size[32] == by_size[96] and by_size[600] == by_size[224]
    confidence = {
        size: next(
            one.confidence
            for one in similarity._interpolate(references(LITE), size=float(size), count=9)
            if one.name == "cifar10"
        )
        for size in (128, 150, 224)
    }
    fraction = math.log(150 / 128) / math.log(224 / 128)
    between = confidence[128] + fraction * (confidence[224] - confidence[128])
    assert confidence[150] == pytest.approx(between) and confidence[128] > confidence[224] + 0.1


def test_a_network_without_classifier_uses_the_shift():
    found = measure_similarity(dataclasses.replace(make_sample(), source_probabilities=None), LITE)
    assert list(found.percentiles) == ["shift"] and found.information is None and found.confidence is None
    assert (
        set(found.missing) == {"information", "confidence"}
        and "no classifier" in found.missing["information"]
    )


def test_a_network_without_batchnorm_uses_the_classifier():
    found = measure_similarity(make_sample(shift=None), "VGG16")
    assert set(found.percentiles) == {"information", "confidence"} and found.shift is None
    assert "no BatchNormalization" in found.missing["shift"] and not found.calibrated


def test_networks_without_statistics_have_no_shift(colors, cache):
    base = make_tiny()
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(keras.ops.zeros_like(layer.moving_mean))
            layer.moving_variance.assign(keras.ops.ones_like(layer.moving_variance))
    assert not similarity.keeps_statistics(base) and similarity.keeps_statistics(make_tiny())
    sample = extract_sample(colors, base, max_images=12, preprocessing="tf", cache=cache)
    found = measure_similarity(sample, LITE, base=base)
    assert "have no statistics" in found.missing["shift"] and found.shift is None
    assert "shift" in measure_similarity(sample, LITE, base=make_tiny()).percentiles


def test_shifts_are_not_compared_between_networks():
    found = measure_similarity(make_sample(), "ResNet50")
    assert found.shift == pytest.approx((0.1, 0.08, 0.1)) and "shift" not in found.percentiles
    assert "ResNet50" in found.missing["shift"] and not found.calibrated
    assert len({one.name for one in found.references}) == len(found.references)
    # Nor if the references have no shift.
    assert "shift" in measure_similarity(make_sample(), MOBILE).missing
    assert measure_similarity(make_sample(), MOBILE).calibrated


def test_without_measures_there_is_no_similarity():
    nothing = dataclasses.replace(make_sample(shift=None), source_probabilities=None)
    assert measure_similarity(nothing, LITE) is None
    assert (
        measure_similarity(dataclasses.replace(make_sample(), source_probabilities=None), "ResNet50") is None
    )


def test_missing_measures_have_a_reason():
    one_class = measure_similarity(make_sample(classes=1), LITE)
    assert "one class" in one_class.missing["information"] and "confidence" in one_class.percentiles
    two_layers = dataclasses.replace(make_sample(), shifts={"a": 0.1, "b": 0.1})
    assert "too few" in measure_similarity(two_layers, LITE).missing["shift"]
    assert shift_by_depth({"a": 0.1, "b": 0.1}) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_outputs_are_rejected(value):
    sample = make_sample()
    source_probabilities = sample.source_probabilities.copy()
    source_probabilities[3, 2] = value
    for bad in ({"source_probabilities": source_probabilities}, {"shifts": {**sample.shifts, "bn3": value}}):
        with pytest.raises(InputError, match="finite"):
            measure_similarity(dataclasses.replace(sample, **bad), LITE)


def test_no_images_are_rejected():
    empty = dataclasses.replace(
        make_sample(), labels=np.zeros(0, "int64"), source_probabilities=np.zeros((0, 10))
    )
    with pytest.raises(InputError, match="one image or more"):
        measure_similarity(empty, LITE)


@pytest.mark.parametrize("name", ["EfficientNetLite0", "efficientnetlite0"])
def test_references_are_found_by_any_name_of_the_network(name):
    assert len(references(name)) == len(SIZES) * len({one.name for one in references(name)}) > 0


def test_networks_of_other_widths_have_no_references():
    same = ("MobileNetV2", "mobilenetv2_1.00_128", "mobilenetv2_1.00_None")
    assert all(references(name) == references(MOBILE) for name in same) and references(MOBILE)
    assert not any(
        references(name) for name in ("mobilenetv2_0.35_128", "mobilenet_1.00_224", "efficientnetlite1")
    )


def test_the_stored_measures_are_in_the_package_and_valid():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    assert "references.json" in setup["options.package_data"]["transfer.adviser"].split()
    text = (importlib.resources.files("transfer.adviser") / "references.json").read_text(encoding="utf-8")
    stored = json.loads(text)
    assert "tests/benchmarks/references.py" in stored["made_by"] and len(text) < 50_000
    found = [*references(LITE), *references(MOBILE)]
    assert len(found) == len(stored["references"])
    keys = [(one.model, one.image_size, one.name) for one in found]
    assert keys == sorted(set(keys)) and {name for *_, name in keys} == set(stored["sets"])
    for one in found:
        assert (
            0 < one.confidence < 1
            and one.num_images <= one.num_available
            and one.num_images > one.num_classes
        )
        assert all(-0.5 < value < 1 for value in one.information.values())
        assert list(one.information) == sorted(one.information) and max(one.information) == one.num_images
        assert one.shift is None if one.model == MOBILE else min(one.shift) > 0
