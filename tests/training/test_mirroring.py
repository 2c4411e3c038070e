"""Classes that mirroring swaps are found by measurement, whatever their names; other classes are not."""

import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import build
from transfer.cases.decisions import decision_of
from transfer.evaluation.evaluate import evaluate
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import load_data
from transfer.training.fit import fit
from transfer.training.learning_rate_finder import find_learning_rate
from transfer.training.mirroring import mirrored_pair


def features(count=20, classes=2, seed=0, *, kind=0.0, side=0.0, swapped=True, noise=0.5):
    """Return features of images and of their mirror images: one column for the kind, one for the side, and noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), count)
    shared, own = rng.normal(size=(2, len(labels), 12))
    signs = 1.0 - 2.0 * (labels % 2)
    plain, mirrored = shared + noise * own, shared - noise * own
    for x, turned in ((plain, 1), (mirrored, -1)):
        x[:, 0] += kind * labels
        x[:, 1] += side * turned * (signs if swapped else 1.0)
    return plain, mirrored, labels


@pytest.mark.parametrize("count", [14, 40])
def test_two_classes_that_differ_only_in_their_side_are_found(count):
    pair = mirrored_pair(*features(count, side=2.0))
    assert pair[:2] == (0, 1) and pair.direction > 0.9 and pair.sides < 0.75


def test_the_right_pair_is_found_among_other_classes():
    plain, mirrored, labels = features(20, classes=6)
    for x, turned in ((plain, 1), (mirrored, -1)):
        x[:, 2:8] += 6 * np.eye(6)[np.where(labels == 4, 2, labels)]  # classes 2 and 4 look alike
        x[:, 1] += 3 * turned * ((labels == 2).astype(float) - (labels == 4))
    assert mirrored_pair(plain, mirrored, labels)[:2] == (2, 4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {},  # nothing can be learned
        {"kind": 3.0},  # symmetric classes
        {"side": 2.0, "swapped": False},  # all images face the same side, and nothing can be learned
        {"kind": 3.0, "side": 2.0},  # cars that face left, and trucks that face right
    ],
)
def test_classes_that_keep_their_meaning_are_not_found(options, seed):
    assert mirrored_pair(*features(30, seed=seed, **options)) is None
    if "kind" in options:
        assert mirrored_pair(*features(40, classes=8, seed=seed, **options)) is None


def test_images_of_one_group_are_not_evidence_for_each_other():
    """Of each class there are two patients, whose images all have the side of the patient."""
    plain, mirrored, labels = features(40)
    groups = np.arange(80) // 20
    side = np.random.default_rng(0).normal(size=(4, 12))[groups]
    args = (plain + 3 * side, mirrored - 3 * side, labels)
    assert mirrored_pair(*args) is not None
    assert mirrored_pair(*args, groups=[str(group) for group in groups]) is None


def test_a_few_images_per_class_decide_nothing():
    assert mirrored_pair(*features(4, side=3.0)) is None


# In `fit`


def sloped(names, count=24, seed=0):
    """Return images that get brighter to the right in the first class, and to the left in the second."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, 32)[None, None, :, None] * np.ones((2 * count, 32, 32, 3))
    ramp[count:] = ramp[count:, :, ::-1]
    x = np.clip(ramp + rng.normal(0, 15, ramp.shape), 0, 255).astype("uint8")
    return load_data((x, np.repeat([0, 1], count)), class_names=names, near_duplicates=False)


@pytest.fixture(scope="module")
def kant_and_keer():
    return sloped(["kant", "keer"])


def built(case="large-similar", **options):
    return build(case, make_tiny(), 2, preprocessing="tf", **options)


def test_fit_and_evaluate_use_the_measured_decision(kant_and_keer, caplog, tmp_path):
    caplog.set_level("INFO", logger="transfer")
    model, cache = built(), FeatureCache(tmp_path)
    log = fit(model, kant_and_keer, epochs=2, cache=cache, verbose=0)
    assert log.flip is False and "'kant' look like 'keer'" in log.flip_problem
    assert f"Horizontal flips are off: {log.flip_problem}. (--flip)" in caplog.text
    assert decision_of(model).flip is False
    options = {"views": 3, "augment": "light", "cache": cache}
    same = evaluate(model, kant_and_keer, flip=False, **options).probabilities
    flipped = evaluate(model, kant_and_keer, flip=True, **options).probabilities
    found = evaluate(model, kant_and_keer, **options).probabilities
    assert np.array_equal(found, same) and np.abs(found - flipped).max() > 1e-3


def test_views_of_a_frozen_network_follow_the_measured_decision(kant_and_keer, tmp_path):
    logs = []
    for flip in (None, False):
        model = built("small-similar")
        logs.append(fit(model, kant_and_keer, views=2, flip=flip, cache=FeatureCache(tmp_path), verbose=0))
        assert decision_of(model).flip is False
    assert logs[0].rows == logs[1].rows and logs[1].computed == 0


def test_symmetric_classes_are_flipped(color_folder, tmp_path):
    data = load_data(color_folder)
    model = build("large-similar", make_tiny(), 3, preprocessing="tf")
    log = fit(model, data, epochs=1, cache=FeatureCache(tmp_path), verbose=0)
    assert log.flip is True and log.flip_problem == "" and decision_of(model).flip is True


@pytest.mark.parametrize("flip", [True, False])
def test_the_caller_decides(flip, kant_and_keer, caplog):
    caplog.set_level("INFO", logger="transfer")
    log = fit(built(), kant_and_keer, epochs=1, flip=flip, verbose=0)
    assert log.flip is flip and log.flip_problem == "" and "flips" not in caplog.text


def test_names_decide_without_a_measurement(tmp_path):
    log = fit(built(), sloped(["left", "right"]), epochs=1, cache=FeatureCache(tmp_path), verbose=0)
    assert log.flip is False and log.flip_problem == "the classes 'left' and 'right' would swap"


@pytest.mark.parametrize(
    ("case", "built_with", "options"),
    [
        ("small-similar", {}, {}),
        ("large-similar", {}, {"augment": "none", "epochs": 1}),
        ("small-similar", {"unfreeze_from": "block3_conv"}, {"epochs": 1}),
    ],
)
def test_nothing_is_measured_where_nothing_is_flipped(case, built_with, options, kant_and_keer, tmp_path):
    cache = FeatureCache(tmp_path)
    log = fit(built(case, **built_with), kant_and_keer, cache=cache, verbose=0, **options)
    forced = fit(built(case, **built_with), kant_and_keer, flip=False, cache=cache, verbose=0, **options)
    assert log.flip is None and log.flip_problem == ""
    assert log.computed > forced.computed == 0 and log.rows == forced.rows


def test_random_weights_measure_nothing(kant_and_keer):
    log = fit(built("large-different", init="random"), kant_and_keer, epochs=1, verbose=0)
    assert log.flip is True


def test_a_resumed_training_keeps_the_decision(kant_and_keer, tmp_path):
    model = built()
    first = fit(model, kant_and_keer, epochs=1, checkpoints=tmp_path, verbose=0)
    resumed = fit(model, kant_and_keer, epochs=1, checkpoints=tmp_path, verbose=0)
    assert (resumed.flip, resumed.flip_problem) == (False, first.flip_problem) and resumed.rows == first.rows


def test_the_learning_rate_finder_measures_too(kant_and_keer, caplog):
    caplog.set_level("INFO", logger="transfer")
    find_learning_rate(built(), kant_and_keer, steps=10)
    assert "Horizontal flips are off" in caplog.text
