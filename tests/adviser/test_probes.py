"""Label information and leave-one-out ridge regression against direct computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transfer.adviser import probes
from transfer.adviser.probes import label_information, ridge_leave_one_out, stratified_folds
from transfer.common.errors import InputError


def soft(shape, *, seed: int = 0, sharpness: float = 3.0) -> np.ndarray:
    scores = np.exp(sharpness * np.random.default_rng(seed).normal(size=shape))
    return scores / scores.sum(axis=1, keepdims=True)


def literal(theta: np.ndarray, labels: np.ndarray) -> float:
    """Compute the formula image by image and class by class."""
    count, source_classes = theta.shape
    fraction = {y: float(np.mean(labels == y)) for y in set(labels.tolist())}
    entropy = -sum(p * math.log(p) for p in fraction.values())
    total = 0.0
    for left_out in range(count):
        others = [i for i in range(count) if i != left_out]
        likelihood = 0.0
        for z in range(source_classes):
            both = sum(theta[i, z] for i in others if labels[i] == labels[left_out])
            either = sum(theta[i, z] for i in others)
            extra = probes._PSEUDO_COUNT
            conditional = (both + extra * fraction[int(labels[left_out])]) / (either + extra)
            likelihood += conditional * theta[left_out, z]
        total += math.log(max(likelihood, 1e-12))
    return 1 + total / count / entropy


def leep(theta: np.ndarray, labels: np.ndarray) -> float:
    """Compute LEEP as published, without leaving out images, on the same scale."""
    one_hot = np.eye(labels.max() + 1)[labels]
    conditional = one_hot.T @ theta / theta.sum(axis=0)
    likelihood = np.sum(conditional[labels] * theta, axis=1)
    fraction = one_hot.mean(axis=0)
    return 1 + float(np.mean(np.log(likelihood))) / -float(np.sum(fraction * np.log(fraction)))


@pytest.mark.parametrize("count, source_classes, new_classes", [(2, 3, 2), (12, 5, 3), (40, 7, 4)])
def test_label_information_equals_a_direct_computation(count, source_classes, new_classes):
    theta = soft((count, source_classes), seed=count)
    labels = np.arange(count) % new_classes
    labels[: count // 4] = 0
    assert label_information(theta, labels) == pytest.approx(literal(theta, labels), abs=1e-12)


def test_source_classes_equal_to_the_labels_have_full_information():
    labels = np.repeat(np.arange(5), 40)
    assert label_information(np.eye(5)[labels], labels) > 0.98


def test_source_classes_under_other_names_tell_everything_too():
    labels = np.repeat(np.arange(5), 40)
    renamed = np.random.default_rng(0).permutation(1000)[:5]
    assert label_information(np.eye(1000)[renamed[labels]], labels) > 0.98


def test_unrelated_source_classes_have_no_information():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    assert abs(label_information(soft((2000, 10), seed=1), labels)) < 0.02
    assert abs(label_information(np.eye(10)[rng.integers(0, 10, 2000)], labels)) < 0.02


def test_noise_in_the_source_classes_lowers_the_information():
    labels = np.repeat(np.arange(4), 50)
    noise = soft((200, 4), seed=2, sharpness=1.0)
    values = [
        label_information((1 - n) * np.eye(4)[labels] + n * noise, labels) for n in (0.0, 0.3, 0.6, 1.0)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.9 > values[1] > values[2] > 0.05


def test_information_does_not_depend_on_the_order_of_images_or_classes():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 60)
    theta = 0.5 * soft((60, 6), seed=3) + 0.5 * np.eye(6)[labels]
    expected = label_information(theta, labels)
    order = rng.permutation(60)
    assert label_information(theta[order], labels[order]) == pytest.approx(expected, abs=1e-12)
    assert label_information(theta[:, rng.permutation(6)], labels) == pytest.approx(expected, abs=1e-12)
    assert label_information(theta, np.array([2, 0, 1])[labels]) == pytest.approx(expected, abs=1e-12)


def test_gaps_between_labels_do_not_matter():
    theta, labels = soft((30, 4)), np.arange(30) % 3
    assert label_information(theta, 7 * labels) == pytest.approx(label_information(theta, labels), abs=1e-12)


def test_one_class_has_no_information():
    assert label_information(soft((10, 4)), np.zeros(10, int)) == 0.0


def test_no_images_have_no_information():
    assert label_information(np.zeros((0, 4)), np.zeros(0, int)) == 0.0


def test_a_single_image_of_a_source_class_does_not_predict_itself():
    labels = np.arange(40) % 2
    alone = np.eye(40)
    assert label_information(alone, labels) == pytest.approx(0.0, abs=1e-9)
    assert leep(alone, labels) == pytest.approx(1.0)


def test_information_depends_little_on_the_number_of_images_unlike_leep():
    """With many source classes per label, LEEP is too high for small samples; label information is not."""

    def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, count)
        known = rng.random(count) < 0.6
        source = np.where(known, labels, rng.integers(0, 4, count)) * 20 + rng.integers(0, 20, count)
        return 0.5 * np.eye(80)[source] + 0.5 * soft((count, 80), seed=seed), labels

    def mean(measure, count: int) -> float:
        return float(np.mean([measure(*draw(count, seed)) for seed in range(5)]))

    ours, plain = ([mean(measure, count) for count in (256, 4000)] for measure in (label_information, leep))
    assert abs(ours[0] - ours[1]) < 0.06
    assert plain[0] - plain[1] > 0.1
    assert ours[0] <= ours[1] + 0.02, "too high for a small sample"


def clusters(count: int, width: int, classes: int, *, apart: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = apart * np.random.default_rng(99).normal(size=(classes, width))
    return 5 + rng.normal(size=(count, width)) + centers[labels], labels


def refitted(x: np.ndarray, labels: np.ndarray, classes: int, strength: float, groups) -> np.ndarray:
    """Fit a ridge regression with an intercept without each group, and predict the group."""
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
def test_left_out_scores_equal_refitted_models(count, width, strength, grouped):
    x, labels = clusters(count, width, 3, apart=0.5)
    groups = np.arange(count) // 4 if grouped else np.arange(count)
    probe = ridge_leave_one_out(x, labels, 3, lambdas=[strength], groups=groups if grouped else None)
    expected = refitted(x, labels, 3, strength, groups.tolist())
    assert np.allclose(probe.scores, expected, atol=1e-7)
    assert probe.accuracy == np.mean(expected.argmax(axis=1) == labels)
    assert np.array_equal(probe.correct, expected.argmax(axis=1) == labels)


def test_scores_of_collinear_features_equal_refitted_models():
    x, labels = clusters(25, 6, 3, apart=0.5)
    x = np.hstack([x, x[:, :3], np.ones((25, 2))])
    probe = ridge_leave_one_out(x, labels, 3, lambdas=[2.0])
    assert np.allclose(probe.scores, refitted(x, labels, 3, 2.0, range(25)), atol=1e-7)


def test_each_strength_has_an_accuracy_and_the_best_is_chosen():
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


def test_strengths_scale_with_the_features():
    x, labels = clusters(60, 20, 3, apart=0.3)
    one, other = ridge_leave_one_out(x, labels, 3), ridge_leave_one_out(1000 * x, labels, 3)
    assert list(one.accuracy_by_lambda.values()) == list(other.accuracy_by_lambda.values())
    assert other.best_lambda == pytest.approx(1e6 * one.best_lambda)


def test_shuffled_labels_have_chance_accuracy_also_with_more_features_than_images():
    rng = np.random.default_rng(0)
    x, labels = clusters(200, 600, 4, apart=0.5)
    assert ridge_leave_one_out(x, labels, 4).accuracy > 0.9
    shuffled = ridge_leave_one_out(x, rng.permutation(labels), 4)
    assert shuffled.accuracy < 0.25 + 4 * shuffled.standard_error
    assert max(shuffled.accuracy_by_lambda.values()) < 0.4


def test_the_standard_error_is_over_images_or_groups():
    x, labels = clusters(400, 10, 3, apart=0.3)
    probe = ridge_leave_one_out(x, labels, 3)
    assert probe.standard_error == pytest.approx(np.std(probe.correct, ddof=1) / 20)
    four_times = np.repeat(np.arange(400), 4)
    copies = ridge_leave_one_out(
        x[four_times], labels[four_times], 3, lambdas=[4 * probe.best_lambda], groups=four_times
    )
    assert copies.accuracy == pytest.approx(probe.accuracy)
    assert copies.standard_error == pytest.approx(probe.standard_error)


def test_images_of_a_group_are_left_out_together():
    """Images of a patient are similar, and the patient's class is random."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    x = rng.normal(size=(40, 30))[groups] + 0.05 * rng.normal(size=(200, 30))
    labels = (np.arange(40) % 2)[groups]
    assert ridge_leave_one_out(x, labels, 2).accuracy > 0.8
    assert ridge_leave_one_out(x, labels, 2, groups=[f"patient {g}" for g in groups]).accuracy < 0.7


def test_scores_do_not_depend_on_row_order_or_float_type():
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
    "changes, message",
    [
        ({"features": np.full((6, 2), np.nan)}, "NaN or infinity in 6 of 6"),
        ({"features": np.zeros((5, 2))}, "a label for each image"),
        ({"features": np.zeros((6, 2, 2))}, "Pool feature maps"),
        ({"labels": np.zeros(6, int)}, "2 classes or more"),
        ({"labels": np.arange(6) / 2}, "integer labels"),
        ({"labels": np.arange(6)}, "below num_classes=2"),
        ({"lambdas": [1.0, 0.0]}, "lambdas above 0"),
        ({"lambdas": []}, "lambdas above 0"),
        ({"groups": [1, 2, 3]}, "a group for each of 6"),
        ({"groups": [1] * 6}, "2 different ones"),
    ],
)
def test_invalid_arguments_are_rejected(changes, message):
    arguments = {"features": np.eye(6), "labels": np.arange(6) % 2, "num_classes": 2, **changes}
    positional = [arguments.pop(name) for name in ("features", "labels", "num_classes")]
    with pytest.raises(InputError, match=message):
        ridge_leave_one_out(*positional, **arguments)


@pytest.mark.parametrize("seed", range(3))
def test_chance_accuracy_equals_the_accuracy_with_shuffled_labels(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % 3
    clear = rng.normal(size=(120, 10)) + 3 * np.eye(10)[labels]
    mean, deviation = probes.chance_accuracy(clear, labels, 3)
    shuffled = [probes.ridge_leave_one_out(clear, rng.permutation(labels), 3).accuracy for _ in range(10)]
    assert abs(mean - np.mean(shuffled)) < 0.06 and 0.01 < deviation < 0.08
    assert probes.ridge_leave_one_out(clear, labels, 3).accuracy > mean + 6 * deviation
    assert probes.chance_accuracy(clear, labels, 3) == (mean, deviation)


@pytest.mark.parametrize("counts", [(9,) * 10, (30, 30), (40, 3, 7), (1, 1, 1), (200, 2), (1,) * 50])
def test_folds_have_about_one_image_of_each_class(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = stratified_folds(labels)
    assert min(10, len(labels)) <= folds.max() + 1 <= max(max(counts), 10)
    for fold in np.unique(folds):
        inside = np.bincount(labels[folds == fold], minlength=len(counts))
        assert (inside <= np.ceil(np.array(counts) / max(max(counts), 10))).all()
    assert max(counts) == 1 or not np.array_equal(folds, stratified_folds(labels, seed=1))


def test_random_features_have_chance_accuracy_with_stratified_folds():
    rng, labels = np.random.default_rng(0), np.arange(90) % 10
    single, by_fold = [], []
    for _ in range(20):
        features = rng.normal(size=(90, 40))
        single.append(ridge_leave_one_out(features, labels, 10).correct_by_lambda.mean())
        by_fold.append(
            ridge_leave_one_out(
                features, labels, 10, groups=stratified_folds(labels)
            ).correct_by_lambda.mean()
        )
    assert np.mean(single) < 0.07 < np.mean(by_fold) < 0.13


def test_groups_of_several_sizes_equal_models_refitted_without_them():
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
