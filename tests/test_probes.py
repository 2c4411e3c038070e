"""Label information against a literal computation, and against what it must mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transfer import probes
from transfer.probes import label_information


def soft(shape, *, seed: int = 0, sharpness: float = 3.0) -> np.ndarray:
    scores = np.exp(sharpness * np.random.default_rng(seed).normal(size=shape))
    return scores / scores.sum(axis=1, keepdims=True)


def literal(theta: np.ndarray, labels: np.ndarray) -> float:
    """The formula, picture by picture and class by class."""
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


def test_the_order_of_pictures_old_classes_and_new_classes_does_not_matter():
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


def test_no_pictures_tell_nothing():
    assert label_information(np.zeros((0, 4)), np.zeros(0, int)) == 0.0


def test_a_picture_that_is_alone_with_its_old_class_does_not_predict_itself():
    labels = np.arange(40) % 2
    alone = np.eye(40)
    assert label_information(alone, labels) == pytest.approx(0.0, abs=1e-9)
    assert leep(alone, labels) == pytest.approx(1.0)


def test_it_drifts_little_with_the_number_of_pictures_unlike_plain_leep():
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
