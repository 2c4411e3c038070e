"""Label information and the left-out ridge against literal computations, and against what they must mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transfer.adviser import probes
from transfer.adviser.probes import label_information, one_of_each, ridge_leave_one_out
from transfer.common.errors import InputError


def soft(shape, *, seed: int = 0, sharpness: float = 3.0) -> np.ndarray:
    scores = np.exp(sharpness * np.random.default_rng(seed).normal(size=shape))
    return scores / scores.sum(axis=1, keepdims=True)


def literal(theta: np.ndarray, labels: np.ndarray) -> float:
    """The formula, image by image and class by class."""
    count, old_classes = theta.shape
    share = {y: float(np.mean(labels == y)) for y in set(labels.tolist())}
    entropy = -sum(p * math.log(p) for p in share.values())
    total = 0.0
    for left_out in range(count):
        others = [i for i in range(count) if i != left_out]
        likelihood = 0.0
        for z in range(old_classes):
            both = sum(theta[i, z] for i in others if labels[i] == labels[left_out])
            either = sum(theta[i, z] for i in others)
            extra = probes._PSEUDO_COUNT
            conditional = (both + extra * share[int(labels[left_out])]) / (either + extra)
            likelihood += conditional * theta[left_out, z]
        total += math.log(max(likelihood, 1e-12))
    return 1 + total / count / entropy


def leep(theta: np.ndarray, labels: np.ndarray) -> float:
    """The same without leaving anything out, as published, on the same scale."""
    one_hot = np.eye(labels.max() + 1)[labels]
    conditional = one_hot.T @ theta / theta.sum(axis=0)
    likelihood = np.sum(conditional[labels] * theta, axis=1)
    share = one_hot.mean(axis=0)
    return 1 + float(np.mean(np.log(likelihood))) / -float(np.sum(share * np.log(share)))


@pytest.mark.parametrize("count, old_classes, new_classes", [(2, 3, 2), (12, 5, 3), (40, 7, 4)])
def test_it_equals_a_literal_leave_one_out_computation(count, old_classes, new_classes):
    theta = soft((count, old_classes), seed=count)
    labels = np.arange(count) % new_classes
    labels[: count // 4] = 0
    assert label_information(theta, labels) == pytest.approx(literal(theta, labels), abs=1e-12)


def test_old_classes_that_are_the_new_ones_tell_everything():
    labels = np.repeat(np.arange(5), 40)
    assert label_information(np.eye(5)[labels], labels) > 0.98


def test_old_classes_under_other_names_tell_everything_too():
    labels = np.repeat(np.arange(5), 40)
    renamed = np.random.default_rng(0).permutation(1000)[:5]
    assert label_information(np.eye(1000)[renamed[labels]], labels) > 0.98


def test_unrelated_old_classes_tell_about_nothing():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    assert abs(label_information(soft((2000, 10), seed=1), labels)) < 0.02
    assert abs(label_information(np.eye(10)[rng.integers(0, 10, 2000)], labels)) < 0.02


def test_more_noise_in_the_old_classes_tells_less():
    labels = np.repeat(np.arange(4), 50)
    noise = soft((200, 4), seed=2, sharpness=1.0)
    told = [label_information((1 - n) * np.eye(4)[labels] + n * noise, labels) for n in (0.0, 0.3, 0.6, 1.0)]
    assert told == sorted(told, reverse=True)
    assert told[0] > 0.9 > told[1] > told[2] > 0.05


def test_the_order_of_images_old_classes_and_new_classes_does_not_matter():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 60)
    theta = 0.5 * soft((60, 6), seed=3) + 0.5 * np.eye(6)[labels]
    expected = label_information(theta, labels)
    order = rng.permutation(60)
    assert label_information(theta[order], labels[order]) == pytest.approx(expected, abs=1e-12)
    assert label_information(theta[:, rng.permutation(6)], labels) == pytest.approx(expected, abs=1e-12)
    assert label_information(theta, np.array([2, 0, 1])[labels]) == pytest.approx(expected, abs=1e-12)


def test_numbers_of_classes_that_do_not_occur_do_not_matter():
    theta, labels = soft((30, 4)), np.arange(30) % 3
    assert label_information(theta, 7 * labels) == pytest.approx(label_information(theta, labels), abs=1e-12)


def test_one_class_leaves_nothing_to_tell():
    assert label_information(soft((10, 4)), np.zeros(10, int)) == 0.0


def test_no_images_tell_nothing():
    assert label_information(np.zeros((0, 4)), np.zeros(0, int)) == 0.0


def test_a_image_that_is_alone_with_its_old_class_does_not_predict_itself():
    labels = np.arange(40) % 2
    alone = np.eye(40)
    assert label_information(alone, labels) == pytest.approx(0.0, abs=1e-9)
    assert leep(alone, labels) == pytest.approx(1.0)


def test_it_drifts_little_with_the_number_of_images_unlike_plain_leep():
    """Old classes by the dozen for each new one, half of them right: LEEP praises small samples, this does not."""

    def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, count)
        known = rng.random(count) < 0.6
        old = np.where(known, labels, rng.integers(0, 4, count)) * 20 + rng.integers(0, 20, count)
        return 0.5 * np.eye(80)[old] + 0.5 * soft((count, 80), seed=seed), labels

    def mean(measure, count: int) -> float:
        return float(np.mean([measure(*draw(count, seed)) for seed in range(5)]))

    ours, plain = ([mean(measure, count) for count in (256, 4000)] for measure in (label_information, leep))
    assert abs(ours[0] - ours[1]) < 0.06
    assert plain[0] - plain[1] > 0.1
    assert ours[0] <= ours[1] + 0.02, "a small sample is made out to tell more than it does"


def clusters(count: int, width: int, classes: int, *, apart: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = apart * np.random.default_rng(99).normal(size=(classes, width))
    return 5 + rng.normal(size=(count, width)) + centers[labels], labels


def refitted(x: np.ndarray, labels: np.ndarray, classes: int, strength: float, groups) -> np.ndarray:
    """Ridge regression with an intercept, fitted anew without each group and asked about it."""
    scores = np.empty((len(x), classes))
    targets = 2 * np.eye(classes)[labels] - 1
    for group in set(groups):
        out = np.asarray(groups) == group
        mean, offset = x[~out].mean(axis=0), targets[~out].mean(axis=0)
        z = x[~out] - mean
        kernel = np.linalg.solve(z.T @ z + strength * np.eye(x.shape[1]), z.T @ (targets[~out] - offset))
        scores[out] = (x[out] - mean) @ kernel + offset
    return scores


@pytest.mark.parametrize("count, width", [(30, 8), (12, 40), (20, 20)])
@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("grouped", [False, True])
def test_left_out_scores_equal_refits(count, width, strength, grouped):
    x, labels = clusters(count, width, 3, apart=0.5)
    groups = np.arange(count) // 4 if grouped else np.arange(count)
    probe = ridge_leave_one_out(x, labels, 3, lambdas=[strength], groups=groups if grouped else None)
    expected = refitted(x, labels, 3, strength, groups.tolist())
    assert np.allclose(probe.scores, expected, atol=1e-7)
    assert probe.accuracy == np.mean(expected.argmax(axis=1) == labels)
    assert np.array_equal(probe.correct, expected.argmax(axis=1) == labels)


def test_features_that_depend_on_each_other_equal_refits_too():
    x, labels = clusters(25, 6, 3, apart=0.5)
    x = np.hstack([x, x[:, :3], np.ones((25, 2))])
    probe = ridge_leave_one_out(x, labels, 3, lambdas=[2.0])
    assert np.allclose(probe.scores, refitted(x, labels, 3, 2.0, range(25)), atol=1e-7)


def test_each_strength_has_its_accuracy_and_the_best_is_taken():
    x, labels = clusters(90, 60, 3, apart=0.25)
    probe = ridge_leave_one_out(x, labels, 3)
    assert len(probe.accuracy_by_lambda) == len(probes.LAMBDAS)
    assert len(set(probe.accuracy_by_lambda.values())) > 3
    for strength, accuracy in list(probe.accuracy_by_lambda.items())[::4]:
        assert ridge_leave_one_out(x, labels, 3, lambdas=[strength]).accuracy == accuracy
    assert probe.accuracy == max(probe.accuracy_by_lambda.values())
    assert probe.accuracy == np.mean(probe.scores.argmax(axis=1) == labels)
    equals = [s for s, a in probe.accuracy_by_lambda.items() if a == probe.accuracy]
    assert probe.best_lambda == max(equals)


def test_the_strengths_follow_the_scale_of_the_features():
    x, labels = clusters(60, 20, 3, apart=0.3)
    one, other = ridge_leave_one_out(x, labels, 3), ridge_leave_one_out(1000 * x, labels, 3)
    assert list(one.accuracy_by_lambda.values()) == list(other.accuracy_by_lambda.values())
    assert other.best_lambda == pytest.approx(1e6 * one.best_lambda)


def test_shuffled_labels_show_no_signal_even_with_more_features_than_images():
    rng = np.random.default_rng(0)
    x, labels = clusters(200, 600, 4, apart=0.5)
    assert ridge_leave_one_out(x, labels, 4).accuracy > 0.9
    shuffled = ridge_leave_one_out(x, rng.permutation(labels), 4)
    assert shuffled.accuracy < 0.25 + 4 * shuffled.standard_error
    assert max(shuffled.accuracy_by_lambda.values()) < 0.4


def test_the_standard_error_is_that_of_a_share_and_of_groups_where_there_are_any():
    x, labels = clusters(400, 10, 3, apart=0.3)
    probe = ridge_leave_one_out(x, labels, 3)
    assert probe.standard_error == pytest.approx(np.std(probe.correct, ddof=1) / 20)
    four_times = np.repeat(np.arange(400), 4)
    copies = ridge_leave_one_out(
        x[four_times], labels[four_times], 3, lambdas=[4 * probe.best_lambda], groups=four_times
    )
    assert copies.accuracy == pytest.approx(probe.accuracy)
    assert copies.standard_error == pytest.approx(probe.standard_error)


def test_groups_are_left_out_together():
    """Images of one patient are nearly the same, and the patient's class is chance."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    x = rng.normal(size=(40, 30))[groups] + 0.05 * rng.normal(size=(200, 30))
    labels = (np.arange(40) % 2)[groups]
    assert ridge_leave_one_out(x, labels, 2).accuracy > 0.8
    assert ridge_leave_one_out(x, labels, 2, groups=[f"patient {g}" for g in groups]).accuracy < 0.7


def test_the_order_of_rows_and_the_float_type_do_not_matter():
    x, labels = clusters(80, 20, 3, apart=0.4)
    x = x.astype("float16")
    order = np.random.default_rng(1).permutation(80)
    one, other = (
        ridge_leave_one_out(x, labels, 3),
        ridge_leave_one_out(x[order].astype("float64"), labels[order], 3),
    )
    assert np.allclose(one.scores[order], other.scores, atol=1e-8)


def test_two_images_and_constant_features_work():
    assert np.isfinite(ridge_leave_one_out(np.eye(2), np.array([0, 1]), 2).scores).all()
    flat = ridge_leave_one_out(np.ones((9, 3)), np.repeat([0, 1], [6, 3]), 2)
    assert flat.accuracy == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"features": np.full((6, 2), np.nan)}, "NaN or infinity in 6 of 6"),
        ({"features": np.zeros((5, 2))}, "a label for each image"),
        ({"features": np.zeros((6, 2, 2))}, "Pool feature maps"),
        ({"labels": np.zeros(6, int)}, "2 classes or more"),
        ({"labels": np.arange(6) / 2}, "whole numbers"),
        ({"labels": np.arange(6)}, "below num_classes=2"),
        ({"lambdas": [1.0, 0.0]}, "lambdas above 0"),
        ({"lambdas": []}, "lambdas above 0"),
        ({"groups": [1, 2, 3]}, "a group for each of 6"),
        ({"groups": [1] * 6}, "2 different ones"),
    ],
)
def test_bad_input_to_the_ridge_is_refused_with_the_remedy(changes, words):
    given = {"features": np.eye(6), "labels": np.arange(6) % 2, "num_classes": 2, **changes}
    essentials = [given.pop(name) for name in ("features", "labels", "num_classes")]
    with pytest.raises(InputError, match=words):
        ridge_leave_one_out(*essentials, **given)


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_what_shuffled_labels_give(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % 3
    clear = rng.normal(size=(120, 10)) + 3 * np.eye(10)[labels]
    mean, deviation = probes.chance_accuracy(clear, labels, 3)
    shuffled = [probes.ridge_leave_one_out(clear, rng.permutation(labels), 3).accuracy for _ in range(10)]
    assert abs(mean - np.mean(shuffled)) < 0.06 and 0.01 < deviation < 0.08
    assert probes.ridge_leave_one_out(clear, labels, 3).accuracy > mean + 6 * deviation
    assert probes.chance_accuracy(clear, labels, 3) == (mean, deviation)


@pytest.mark.parametrize("counts", [(9,) * 10, (30, 30), (40, 3, 7), (1, 1, 1), (200, 2), (1,) * 50])
def test_parts_hold_one_of_each_class_as_far_as_there_are(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = one_of_each(labels)
    assert min(10, len(labels)) <= parts.max() + 1 <= max(max(counts), 10)
    for part in np.unique(parts):
        inside = np.bincount(labels[parts == part], minlength=len(counts))
        assert (inside <= np.ceil(np.array(counts) / max(max(counts), 10))).all()
    assert max(counts) == 1 or not np.array_equal(parts, one_of_each(labels, seed=1))


def test_features_that_say_nothing_are_as_good_as_guessing_and_not_worse():
    rng, labels = np.random.default_rng(0), np.arange(90) % 10
    alone, parts = [], []
    for _ in range(20):
        features = rng.normal(size=(90, 40))
        alone.append(ridge_leave_one_out(features, labels, 10).correct_by_lambda.mean())
        parts.append(
            ridge_leave_one_out(features, labels, 10, groups=one_of_each(labels)).correct_by_lambda.mean()
        )
    assert np.mean(alone) < 0.07 < np.mean(parts) < 0.13


def test_groups_of_several_sizes_are_left_out_as_if_trained_without_them():
    rng = np.random.default_rng(0)
    labels, groups = np.arange(24) % 3, np.array([0] * 5 + [1] * 2 + [2] * 2 + list(range(3, 18)))
    features = rng.normal(size=(24, 4)) + labels[:, None]
    probe = ridge_leave_one_out(features, labels, 3, lambdas=[2.0], groups=groups)
    for group in np.unique(groups):
        out = groups == group
        mean = features[~out].mean(axis=0)
        targets = np.where(np.arange(3) == labels[~out, None], 1.0, -1.0)
        x = features[~out] - mean
        weights = np.linalg.solve(x.T @ x + 2.0 * np.eye(4), x.T @ (targets - targets.mean(axis=0)))
        expected = (features[out] - mean) @ weights + targets.mean(axis=0)
        np.testing.assert_allclose(probe.scores[out], expected, atol=1e-9)
