"""Advice on real images with tiny networks, and on too few or invalid images."""

from __future__ import annotations

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, flags, make_tiny, raw_images, snapshot

from transfer.adviser.advise import MIN_IMAGES, advise, growth_of
from transfer.adviser.curves import SizePoint
from transfer.adviser.estimates import HeadEvidence, estimate_choices
from transfer.cases.cuts import ALL_LAYERS
from transfer.cases.policies import Case
from transfer.common.errors import InputError
from transfer.images.datasets import load_data
from transfer.networks.backbones import load_backbone

layers = keras.layers


@pytest.fixture(scope="module")
def advised(colors, module_cache):
    return advise(colors, make_tiny(), preprocessing="tf", cache=module_cache)


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory):
    from transfer.frozen.feature_cache import FeatureCache

    return FeatureCache(tmp_path_factory.mktemp("advice"))


def quick(data, base, **options):
    return advise(data, base, **{"preprocessing": "tf", "trial": False, **options})


def test_easy_images_get_a_head_on_the_frozen_network(advised, colors):
    assert advised.signal
    assert advised.case in (Case.SMALL_SIMILAR, Case.SMALL_DIFFERENT)
    assert advised.choice.expected_accuracy > 0.9
    low, high = advised.choice.interval
    assert 0 <= low <= advised.choice.expected_accuracy <= high <= 1
    assert advised.trial is not None and advised.trial.seconds_per_step > 0
    assert sum(advised.images_per_class.values()) == len(colors.train)


def test_text_and_json_have_the_same_content(advised):
    found = json.loads(advised.to_json())
    assert {
        "case",
        "cut",
        "expected_accuracy",
        "interval",
        "signal",
        "similarity",
        "images_per_class",
    } <= set(found)
    assert found["case"] == str(advised.case) and found["signal"] is True
    assert [point["layer"] for point in found["layer_curve"]] == list(advised.curve.names)
    cuts = [case["cut"] for case in found["cases"]]
    assert ALL_LAYERS in cuts and None in cuts and "random" in cuts
    for case in found["cases"]:
        assert {"case", "expected_accuracy", "interval", "seconds", "basis", "action"} <= set(case)
    text = advised.to_text()
    for word in (
        advised.data,
        "Estimated test accuracy",
        "90% interval",
        "Data size:",
        "Layers",
        "<- best single layer",
        "->",
    ):
        assert word in text, word


HEADS = (
    HeadEvidence("all", 0.78, 0.02),
    HeadEvidence("block5", 0.76, 0.02, whole=False),
    HeadEvidence("top", 0.7, 0.02),
)


@pytest.mark.parametrize(
    ("picked", "change", "texts"),
    [
        ("all", {"similar": True}, ["small (90 training images), similar", "case 1 by the", "(case 1). Estimated"]),
        ("all", {"similar": False}, ["different from", "case 2 by the", "(case 1), because", ": 78% against 76%"]),
        ("all", {"heads": HEADS[::2]}, ["(case 1), because no early layer is better than the last one."]),
        ("top", {}, ["(case 1), because case 2 is estimated at 76%, which is not clearly better than 70%."]),
        ("block5", {"num_train": 30_000}, ["large (30,000", "case 4 by", "the options ask for a frozen network"]),
        (None, {"similar": None}, ["of unknown similarity to", "or restart from random weights (case 4), because"]),
        (None, {"similar": True}, ["case 1 by the", "whole network (case 3), because", "82% against 78%"]),
    ],
)  # fmt: skip
def test_the_reason_separates_the_data_from_the_method(advised, picked, change, texts):
    evidence = replace(
        advised.evidence,
        **{"num_train": 90, "num_sampled": 90, "heads": HEADS, "growth": 0.0, "similar": False, **change},
    )
    choices = estimate_choices(evidence)
    choice = next(one for one in choices if one.cut == picked)
    found = replace(advised, evidence=evidence, choices=choices, choice=choice, time_budget=None)
    assert found.reason.startswith("Your data: ") and " Recommended method: " in found.reason
    for text in texts:
        assert text in found.reason, found.reason
    assert found.to_dict()["data_case"] == found.data_case and found.case is choice.case


def test_a_case_over_the_time_budget_is_a_reason(advised):
    evidence = replace(advised.evidence, num_train=30_000, heads=HEADS, similar=True, growth=0.0)
    choices = estimate_choices(evidence)
    head = next(one for one in choices if one.cut == "all")
    found = replace(advised, evidence=evidence, choices=choices, choice=head, time_budget=0.001)
    assert "(case 1), because case 3 does not fit the time budget." in found.reason


def test_shuffled_labels_have_no_signal_and_no_trial(shuffled_folder):
    found = advise(load_data(shuffled_folder), make_tiny(), preprocessing="tf")
    assert not found.signal and found.trial is None
    assert found.reason.startswith("No signal") and "shuffled" in found.reason
    assert "random weights" in found.reason, "the labels may be right and the features useless"
    assert f"accuracy {found.curve.all_layers.accuracy:.0%}" in found.reason
    assert found.cut not in (None, "random")  # fine-tuning would waste time
    assert found.to_text().count("shuffled labels") == 1 and "no-signal" not in {
        w.kind for w in found.warnings
    }


@pytest.mark.parametrize(("accuracies", "growth"), [((0.5, 0.97), 0.03), ((0.7, 0.6), 0.0), ((0.9,), 0.0)])
def test_more_images_promise_no_accuracy_above_1_and_no_loss(accuracies, growth):
    assert growth_of([SizePoint(50, accuracy, 0.01) for accuracy in accuracies]) == pytest.approx(growth)


def test_the_network_is_not_changed(colors):
    base = make_tiny()
    before, flags_before = snapshot(base), flags(base)
    advise(colors, base, preprocessing="tf")
    assert_bit_equal(snapshot(base), before)
    assert flags(base) == flags_before and not base.compiled


def test_test_images_are_not_used(colors):
    class Hidden:
        def __len__(self):
            return 5

        def __getattr__(self, name):
            raise AssertionError(f"test.{name} was used")

    assert quick(replace(colors, test=Hidden()), make_tiny()).signal


def test_the_same_seed_gives_the_same_advice(colors):
    # The first advice fills the cache. The others measure no time, which would differ.
    _, one, other = (quick(colors, make_tiny(), max_images=40, seed=3).to_dict() for _ in range(3))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_time_budget_excludes_slower_choices(colors):
    found = advise(colors, make_tiny(), preprocessing="tf", time_budget=0.5)
    assert found.choice.cut not in (None, "random")
    assert all(c.seconds > 0.5 for c in found.choices if c.cut in (None, "random"))


def test_frozen_recommends_a_head(colors):
    assert quick(colors, make_tiny(), frozen=True).cut not in (None, "random")


def test_notes_mention_a_missing_trial(colors):
    assert any("trial" in note for note in quick(colors, make_tiny()).notes)


@pytest.mark.parametrize(
    ("count", "classes"), [(2, 2), (MIN_IMAGES - 1, 2), (60, 60)], ids=["a pair", "few", "one of each"]
)
def test_too_few_images_get_the_rule_of_thumb(count, classes):
    data = load_data((raw_images(count).astype("uint8"), np.arange(count) % classes), val=0, test=0)
    found = quick(data, make_tiny())
    assert found.curve is None and found.choice.interval == (0.0, 1.0)
    assert any("too few" in note for note in found.notes)
    assert found.case in (Case.SMALL_SIMILAR, Case.SMALL_DIFFERENT)
    assert (
        "train a new head" in found.reason
        and "rule of thumb" in found.reason
        and found.cut in {op.name for op in make_tiny().operations}
    )
    json.loads(found.to_json())
    assert found.to_text()


def test_notes_mention_classes_outside_the_sample():
    images = np.random.default_rng(0).integers(0, 256, (4000, 8, 8, 3), "uint8")
    data = load_data((images, np.arange(4000) % 2000), val=0, test=0, near_duplicates=False)
    found = quick(data, make_tiny(), max_images=160)
    assert any("the sample lacks 1,980 of 2,000 classes" in note for note in found.notes)
    assert not found.signal


def test_identical_images_have_no_signal():
    images = np.full((40, 32, 32, 3), 99, "uint8")
    found = quick(load_data((images, np.arange(40) % 2), val=0, test=0, near_duplicates=False), make_tiny())
    assert not found.signal and found.to_text()


def test_tiny_grey_images_get_advice():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (60, 8, 8)).astype("uint8") + 150 * (np.arange(60) % 2)[
        :, None, None
    ].astype("uint8")
    found = quick(load_data((images, np.arange(60) % 2), val=0, test=0), make_tiny())
    assert found.signal
    assert "low-resolution" in [warning.kind for warning in found.warnings]


def test_a_network_that_returns_nan_is_rejected(colors):
    base = make_tiny()
    base.layers[1].set_weights([np.full_like(w, np.nan) for w in base.layers[1].get_weights()])
    with pytest.raises(InputError, match="NaN"):
        quick(colors, base)


def test_networks_without_classifier_or_batchnorm_get_advice(colors):
    headless = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(6, 3), layers.ReLU()])
    found = quick(colors, headless)
    assert found.similarity is None and any(
        note.startswith("Similarity: the network has no classifier") for note in found.notes
    )
    vgg = load_backbone("VGG16", weights="none", image_size=32)
    found = quick(colors, vgg, preprocessing=None, max_images=30)
    assert any("BatchNormalization" in note for note in found.notes)


@pytest.mark.parametrize("options", [{"max_images": 1}, {"time_budget": 0.0}, {"time_budget": -1.0}])
def test_numbers_out_of_range_are_rejected(colors, options):
    with pytest.raises(InputError, match="max_images"):
        advise(colors, make_tiny(), **options)


@pytest.mark.slow
def test_emoji_have_a_signal_and_fine_tuning_is_timed():
    found = advise(load_data("emoji"), load_backbone(image_size=96))
    assert found.signal and 0.6 < found.choice.expected_accuracy < 0.95
    assert found.trial.steps >= 8 and found.similarity.calibrated
