"""Measure on training images whether mirroring turns the images of a class into those of another class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy.special import bdtrc

from transfer.distributed.process_group import current_group
from transfer.frozen.engines import Engine
from transfer.frozen.extraction import extract
from transfer.images.augmentation import MIRROR
from transfer.images.splitting import Split
from transfer.training.phases import TrainingLog, TrainingSettings
from transfer.training.upper_layers import parts_to_train

logger = logging.getLogger(__name__)

PER_CLASS = 40
"""Maximum number of images of a class that are mirrored."""

MOST = (400, 0.25)
"""Maximum number of images that are mirrored: this number, or this fraction of the training images if that is more.
That is one forward pass per image, less than 2% of the time of fine-tuning."""

LEAST = 5
"""Minimum number of images of a class; smaller classes are not measured."""

FOLDS = 10
"""Number of folds of the cross-validation."""

RIDGE = 0.1
"""Penalty of the ridge regression, for features of mean square 1. Between 0.03 and 0.3 it made no difference."""

SIGNIFICANCE = {"direction": 0.01, "sides": 0.02}
"""Significance levels of `mirrored_pair`, for all pairs of classes together. False alarms are more frequent, because
held-out predictions depend on each other. In simulations, their rate was 4% with 8 classes that cannot be learned. It
was 7% with 12 images of each of 8 classes that differ in kind and face opposite sides. It was 21% with 0.05 and a
`LEAST_LOSS` of 0.4."""

LEAST_LOSS = 0.5
"""Smallest loss that switches flips off, as a fraction of the accuracy above chance. A smaller loss may be significant
with many images although flips do no harm."""


class Pair(NamedTuple):
    """Two classes, and the accuracy of distinguishing them with and without their directions."""

    first: int
    second: int
    # Number of images, half of each class.
    images: int
    # Accuracy of the direction: the difference between the features of an image and of its mirror image.
    direction: float
    # Accuracy if the direction is ignored: the sum of both features.
    sides: float
    # Probability of a direction at least as accurate by chance, and of this lead over the sum.
    p_direction: float
    p_sides: float


def decide_flips(
    settings: TrainingSettings, extractor: keras.Model, engine: Engine | None = None
) -> TrainingLog:
    """Decide whether augmentation flips images, and measure it if needed; return the decision as a log."""
    if settings.flip is not None or not augments_images(settings):
        return TrainingLog(flip=settings.flip)
    if settings.shaped:  # there are no classes that mirroring could swap
        return TrainingLog(flip=True)
    train = settings.data.train
    sample = train.take(_sample(train.labels, settings.data.num_classes, settings.seed))
    if not len(sample):
        return TrainingLog(flip=True)
    options: dict[str, Any] = {"image_size": settings.image_size, "cache": settings.cache}
    options["engine"] = engine or settings.make_engine(extractor)
    plain = extract(extractor, sample, name="features", known=settings.known_features, **options)
    both = extract(extractor, sample, name="mirrored images", views=2, augment=MIRROR, **options)
    problem = current_group().broadcast(lambda: _problem(both.load(), sample, settings))
    log_problem(problem)
    return TrainingLog(computed=plain.computed, engine=plain.engine, flip=not problem, flip_problem=problem)


def augments_images(settings: TrainingSettings) -> bool:
    """Return whether any training image is augmented."""
    if settings.augment == "none" or (settings.views or 1) > 1:
        return settings.augment != "none"
    return not settings.head_only and parts_to_train(settings) is None


def log_problem(problem: str) -> None:
    """Log why flips are off."""
    if problem:
        logger.info("Horizontal flips are off: %s. (--flip)", problem)


def _problem(features: np.ndarray, sample: Split, settings: TrainingSettings) -> str:
    """Return why images must not be flipped, or an empty string."""
    plain, mirrored = np.split(features, 2)
    pair = mirrored_pair(plain, mirrored, sample.labels, groups=sample.groups, seed=settings.seed)
    if pair is None:
        return ""
    a, b = (settings.data.class_names[i] for i in pair[:2])
    return f"mirrored training images of {a!r} look like {b!r}, and the reverse"


def mirrored_pair(
    plain: np.ndarray, mirrored: np.ndarray, labels: np.ndarray, *, groups: Sequence[str] = (), seed: int = 0
) -> Pair | None:
    """Return the two classes that mirroring swaps, by the features of images and of their mirror images."""
    # Take the features of an image and of its mirror image. Their sum does not depend on the direction; their
    # difference does. If mirroring keeps the classes, the sum distinguishes them at least as well as the difference. If
    # it swaps two classes, only the difference distinguishes them. A comparison of predictions for mirror images finds
    # fewer such classes: networks were trained with flips, so that their features depend little on the direction.
    pairs, level = (
        measured_pairs(plain, mirrored, labels, groups=groups, seed=seed),
        _level(len(np.unique(labels))),
    )
    directed = [pair for pair in pairs if pair.p_direction < level]
    found = [
        pair
        for pair in directed
        if pair.p_sides < SIGNIFICANCE["sides"] / len(directed)
        and pair.sides - 0.5 < (1 - LEAST_LOSS) * (pair.direction - 0.5)
    ]
    return min(found, key=lambda pair: pair.p_sides, default=None)


def measured_pairs(
    plain: np.ndarray, mirrored: np.ndarray, labels: np.ndarray, *, groups: Sequence[str] = (), seed: int = 0
) -> list[Pair]:
    """Measure each class with the class whose directions are most opposite."""
    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[counts >= LEAST]
    if len(classes) < 2:
        return []
    difference, total = (
        x.reshape(len(x), -1).astype("float64") for x in (plain - mirrored, plain + mirrored)
    )
    means = np.stack([difference[labels == k].mean(axis=0) for k in classes])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    opposite = (means @ means.T).argmin(axis=1)
    order = np.random.default_rng(seed).permutation(len(labels))
    group = np.unique(groups, return_inverse=True)[1] if len(groups) else np.arange(len(labels))
    pairs = []
    for i, k in sorted({(min(i, k), max(i, k)) for i, k in enumerate(opposite.tolist()) if i != k}):
        members = [order[labels[order] == classes[j]] for j in (i, k)]
        size = min(map(len, members))  # with classes of one size, accuracy by chance is 1/2
        rows = np.concatenate([part[:size] for part in members])
        truth = np.repeat([-1.0, 1.0], size)
        folds = _folds(group[rows])
        sums = total[rows] - total[rows].mean(axis=0)
        right = [_predicted(x, truth, folds) * truth > 0 for x in (difference[rows], sums)]
        pairs.append(_pair(int(classes[i]), int(classes[k]), *right))
    return pairs


def _level(classes: int) -> float:
    """Return the significance level of the direction of a pair of classes."""
    return SIGNIFICANCE["direction"] / max(1, classes * (classes - 1) / 2)


def _pair(first: int, second: int, direction: np.ndarray, sides: np.ndarray) -> Pair:
    """Test the accuracies: of the direction against chance, and against that of the sum by McNemar's test."""
    count, better, differ = len(direction), int((direction & ~sides).sum()), int((direction != sides).sum())
    by_chance = float(bdtrc(direction.sum() - 1.0, count, 0.5))
    lead = float(bdtrc(better - 1.0, differ, 0.5)) if differ else 1.0
    return Pair(first, second, count, float(direction.mean()), float(sides.mean()), by_chance, lead)


def _predicted(x: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return held-out predictions of a ridge regression without intercept."""
    x = x / max(np.sqrt(np.mean(np.sum(np.square(x), axis=1))), 1e-12)
    products, predicted = x @ x.T, np.zeros(len(x))
    for fold in np.unique(folds):
        out, seen = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        system = products[np.ix_(seen, seen)] + RIDGE * np.eye(len(seen))
        predicted[out] = products[np.ix_(out, seen)] @ np.linalg.solve(system, truth[seen])
    return predicted


def _folds(groups: np.ndarray) -> np.ndarray:
    """Return a fold for each image: those of a group share one, and those of a class are spread evenly."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    return first.argsort().argsort()[group] % FOLDS


def _sample(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Choose the same number of images of each class; none if they are too few for a significant result."""
    each = min(PER_CLASS, int(max(MOST[0], MOST[1] * len(labels)) // classes))
    if 0.5 ** (2 * each) > _level(classes):
        return np.zeros(0, "int64")
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:each] for k in range(classes)])
