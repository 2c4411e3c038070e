"""How similar: places among known sets, what cannot be measured, and the numbers that come along."""

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
    SIMILAR_FROM,
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


def make_look(*, sure=0.6, right=1.0, shift=(0.1, 0.08, 0.1), count=200, classes=4, size=128):
    """A look at images of which a share is right, in old classes that are the new ones by another name."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    seen = np.where(rng.uniform(size=count) < right, labels, rng.integers(0, classes, count))
    old = np.full((count, 10), (1 - sure) / 9)
    old[np.arange(count), 9 - seen] = sure
    shifts = {f"bn{i}": value for i, value in enumerate(np.repeat(shift, 4).tolist())} if shift else {}
    images = Split([], labels, [])
    return SampleFeatures(images, labels, len(set(labels.tolist())), {}, old, shifts, (size, size))


def scores(model, size, *, shift=True, count=200):
    """Of the known sets, as they would be at a size and from so many images."""
    sample = make_look(size=size, shift=shift and (0.1, 0.1, 0.1), count=count)
    return {place.name: place.score for place in measure_similarity(sample, model).scale}


def test_a_percentile_is_linear_between_neighbours_and_ends_at_the_extremes():
    known = [4.0, 0.0, 1.0]
    assert [percentile(x, known) for x in (-9, 0, 0.5, 1, 2.5, 4, 9)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert percentile(3.0, [3.0]) in (0, 1)
    with pytest.raises(InputError, match="known values"):
        percentile(1.0, [])


@pytest.mark.parametrize("count", [50, 100, 200, 400, 1000])
@pytest.mark.parametrize("size", [96, 112, 128, 160, 224])
def test_known_sets_are_in_the_order_that_one_expects(size, count):
    found = scores(LITE, size, count=count)
    assert set(found) == {one.name for one in references(LITE)} and len(found) >= 9
    assert max(found, key=found.get) == "hymenoptera"
    assert found["hymenoptera"] > found["hymenoptera-32px"] > found["cifar10-blurred"]
    assert found["cifar10"] > found["cifar10-inverted"] > found["cifar10-blurred"]
    assert min(found["hymenoptera"], found["cifar10"]) >= SIMILAR_FROM
    either = ("hymenoptera", "cifar10", "emoji")
    assert max(score for name, score in found.items() if name not in either) < SIMILAR_FROM


@pytest.mark.parametrize("count", [50, 100, 200, 400, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_where_no_shift_counts_nothing_passes_for_similar_that_is_not(size, count):
    """What is missed: photos at 96 px, and CIFAR-10, which the classifier alone cannot tell from clothes."""
    for found in (scores(MOBILE, size, count=count), scores(LITE, size, shift=False, count=count)):
        assert all(score < SIMILAR_FROM for name, score in found.items() if name != "hymenoptera")
        assert size == 96 or found["hymenoptera"] >= SIMILAR_FROM


def test_a_look_is_placed_among_the_known_sets():
    at_128 = [one for one in references(LITE) if one.image_size == 128]
    hymenoptera = next(one for one in at_128 if one.name == "hymenoptera")
    found = measure_similarity(make_look(shift=hymenoptera.shift, sure=0.99, count=400), LITE)
    assert found.percentiles == {"information": 1, "confidence": 1, "shift": 1} and found.score == 1
    assert found.shift == pytest.approx(hymenoptera.shift)
    assert found.confidence == pytest.approx(0.99) and found.information > 0.9
    assert found.similar and found.calibrated and not found.missing and found.nearest == "hymenoptera"
    assert [place.score for place in found.scale] == sorted((p.score for p in found.scale), reverse=True)
    confidences = [one.confidence for one in at_128]
    some = measure_similarity(make_look(sure=0.5), LITE)
    assert some.percentiles["confidence"] == pytest.approx(percentile(0.5, confidences))
    json.dumps(dataclasses.asdict(some))


def test_the_score_is_the_weighted_mean_drawn_to_its_border():
    found = measure_similarity(make_look(right=0.5, sure=0.5), LITE)
    mean = sum(WEIGHTS[k] * v for k, v in found.percentiles.items()) / sum(WEIGHTS.values())
    assert set(found.percentiles) == set(WEIGHTS) and 0 < mean < similarity.BORDERS[True]
    assert found.score == pytest.approx(mean * SIMILAR_FROM / similarity.BORDERS[True])


def test_each_measure_moves_the_score_its_own_way():
    by_shift = [
        measure_similarity(make_look(shift=(s, s, s)), LITE).score for s in (0.03, 0.08, 0.2, 0.5, 9.0)
    ]
    assert by_shift == sorted(by_shift, reverse=True) and by_shift[0] > by_shift[-1] + 0.2
    by_right = [measure_similarity(make_look(right=r), LITE) for r in (0.0, 0.3, 0.6, 1.0)]
    assert len({round(found.confidence, 9) for found in by_right}) == 1
    values = [found.score for found in by_right]
    assert values == sorted(values) and values[-1] > values[0] + 0.1
    # Of one class there is no information, and what is surer is more similar.
    by_sure = [measure_similarity(make_look(sure=s, classes=1), LITE).score for s in (0.1, 0.4, 0.6, 0.99)]
    assert by_sure == sorted(by_sure) and by_sure[-1] > by_sure[0] + 0.1


def test_few_images_are_compared_with_few():
    """The same images give less information when there are fewer, which must not make them different."""
    at_128 = [one for one in references(LITE) if one.image_size == 128 and one.name == "cifar10"]
    few, many = at_128[0].information[100], at_128[0].information[1000]
    assert many > few + 0.1
    known = {
        count: {one.name: one for one in similarity._known(references(LITE), size=128.0, count=count)}
        for count in (10, 100, 1000, 5000)
    }
    assert known[100]["cifar10"].information == pytest.approx(few)
    assert known[1000]["cifar10"].information == known[5000]["cifar10"].information == pytest.approx(many)
    assert known[10]["cifar10"].information == pytest.approx(at_128[0].information[50])


def test_other_sizes_are_compared_between_the_known_ones():
    places = {size: scores(LITE, size) for size in (32, 96, 128, 150, 224, 600)}
    assert places[32] == places[96] and places[600] == places[224]
    confidence = {
        size: next(
            one.confidence
            for one in similarity._known(references(LITE), size=float(size), count=9)
            if one.name == "cifar10"
        )
        for size in (128, 150, 224)
    }
    share = math.log(150 / 128) / math.log(224 / 128)
    between = confidence[128] + share * (confidence[224] - confidence[128])
    assert confidence[150] == pytest.approx(between) and confidence[128] > confidence[224] + 0.1


def test_a_network_without_classifier_is_judged_by_its_shift():
    found = measure_similarity(dataclasses.replace(make_look(), old=None), LITE)
    assert list(found.percentiles) == ["shift"] and found.information is None and found.confidence is None
    assert (
        set(found.missing) == {"information", "confidence"}
        and "no classifier" in found.missing["information"]
    )


def test_a_network_without_batchnorm_is_judged_by_its_classifier():
    found = measure_similarity(make_look(shift=None), "VGG16")
    assert set(found.percentiles) == {"information", "confidence"} and found.shift is None
    assert "no BatchNormalization" in found.missing["shift"] and not found.calibrated


def test_statistics_that_were_folded_away_do_not_count(colors, cache):
    base = make_tiny()
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(keras.ops.zeros_like(layer.moving_mean))
            layer.moving_variance.assign(keras.ops.ones_like(layer.moving_variance))
    assert not similarity.keeps_statistics(base) and similarity.keeps_statistics(make_tiny())
    sample = extract_sample(colors, base, max_images=12, preprocessing="tf", cache=cache)
    found = measure_similarity(sample, LITE, base=base)
    assert "keep no statistics" in found.missing["shift"] and found.shift is None
    assert "shift" in measure_similarity(sample, LITE, base=make_tiny()).percentiles


def test_shifts_are_not_compared_with_those_of_another_network():
    found = measure_similarity(make_look(), "ResNet50")
    assert found.shift == pytest.approx((0.1, 0.08, 0.1)) and "shift" not in found.percentiles
    assert "ResNet50" in found.missing["shift"] and not found.calibrated
    assert len({place.name for place in found.scale}) == len(found.scale)
    # Nor where the known ones were lost.
    assert "shift" in measure_similarity(make_look(), MOBILE).missing
    assert measure_similarity(make_look(), MOBILE).calibrated


def test_nothing_to_compare_is_none():
    nothing = dataclasses.replace(make_look(shift=None), old=None)
    assert measure_similarity(nothing, LITE) is None
    assert measure_similarity(dataclasses.replace(make_look(), old=None), "ResNet50") is None


def test_too_little_is_missing_with_a_reason():
    one_class = measure_similarity(make_look(classes=1), LITE)
    assert "one class" in one_class.missing["information"] and "confidence" in one_class.percentiles
    two_layers = dataclasses.replace(make_look(), shifts={"a": 0.1, "b": 0.1})
    assert "too few" in measure_similarity(two_layers, LITE).missing["shift"]
    assert shift_by_depth({"a": 0.1, "b": 0.1}) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    sample = make_look()
    old = sample.old.copy()
    old[3, 2] = value
    for bad in ({"old": old}, {"shifts": {**sample.shifts, "bn3": value}}):
        with pytest.raises(InputError, match="finite"):
            measure_similarity(dataclasses.replace(sample, **bad), LITE)


def test_no_images_are_refused():
    empty = dataclasses.replace(make_look(), labels=np.zeros(0, "int64"), old=np.zeros((0, 10)))
    with pytest.raises(InputError, match="one image or more"):
        measure_similarity(empty, LITE)


@pytest.mark.parametrize("name", ["EfficientNetLite0", "efficientnetlite0"])
def test_a_network_is_known_by_either_name(name):
    assert len(references(name)) == len(SIZES) * len({one.name for one in references(name)}) > 0


def test_networks_of_other_widths_are_not_the_same():
    same = ("MobileNetV2", "mobilenetv2_1.00_128", "mobilenetv2_1.00_None")
    assert all(references(name) == references(MOBILE) for name in same) and references(MOBILE)
    assert not any(
        references(name) for name in ("mobilenetv2_0.35_128", "mobilenet_1.00_224", "efficientnetlite1")
    )


def test_the_numbers_are_in_the_package_and_well_formed():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    assert "references.json" in setup["options.package_data"]["transfer"].split()
    text = (importlib.resources.files("transfer") / "references.json").read_text(encoding="utf-8")
    stored = json.loads(text)
    assert "tests/benchmarks/references.py" in stored["made by"] and len(text) < 50_000
    found = [*references(LITE), *references(MOBILE)]
    assert len(found) == len(stored["references"])
    keys = [(one.model, one.image_size, one.name) for one in found]
    assert keys == sorted(set(keys)) and {name for *_, name in keys} == set(stored["sets"])
    for one in found:
        assert 0 < one.confidence < 1 and one.num_images <= one.num_available and one.images_per_class > 1
        assert all(-0.5 < value < 1 for value in one.information.values())
        assert list(one.information) == sorted(one.information) and max(one.information) == one.num_images
        assert one.shift is None if one.model == MOBILE else min(one.shift) > 0
