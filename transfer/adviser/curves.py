"""What probes say of layers and of more images: curves of left-out accuracy, and where to cut by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer.adviser.probes import RidgeProbe, chance_accuracy, one_of_each, ridge_leave_one_out
from transfer.common.errors import InputError

CLEAR = 4.0
"""Standard deviations above what shuffled labels give, from which on labels have to do with images."""


MANY = 1000
"""Images with which shuffled labels give nearly the same each time, so that fewer draws tell."""


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """How well each layer's features tell the classes, each image predicted by all others."""

    names: tuple[str, ...]
    probes: tuple[RidgeProbe, ...]
    together: RidgeProbe
    # Of the images, shape (N,).
    labels: np.ndarray
    chance: tuple[float, float]

    @property
    def accuracy(self) -> np.ndarray:
        """By layer."""
        return np.array([probe.accuracy for probe in self.probes])

    @property
    def standard_error(self) -> np.ndarray:
        """Of each accuracy."""
        return np.array([probe.standard_error for probe in self.probes])

    @property
    def best(self) -> RidgeProbe:
        """Of the most accurate of the layers and all of them together."""
        return max((*self.probes, self.together), key=lambda probe: probe.accuracy)

    @property
    def cut(self) -> str:
        """The layer that tells the classes best; of equals, the deepest."""
        return self.names[len(self.names) - 1 - int(self.accuracy[::-1].argmax())]

    @property
    def signal(self) -> bool:
        """Whether the labels have to do with the images, as far as this network sees (see `CLEAR`)."""
        mean, deviation = self.chance
        return bool(self.together.accuracy > mean + CLEAR * max(deviation, 1 / len(self.labels)))


def layer_curve(
    taps: Mapping[str, np.ndarray], labels: np.ndarray, num_classes: int, *, groups: Sequence[Any] = ()
) -> LayerCurve:
    """Judge layers by ridge regression on what they see, one image of each class left out at a time."""
    if not taps:
        raise InputError("Expected the features of one layer or more. Received: none.")
    parts = groups if len(groups) else one_of_each(labels)
    probes = [ridge_leave_one_out(x, labels, num_classes, groups=parts) for x in taps.values()]
    joined = side_by_side(list(taps.values()))
    together = ridge_leave_one_out(joined, labels, num_classes, groups=parts)
    draws = 20 if len(labels) <= MANY else 10
    chance = chance_accuracy(joined, labels, num_classes, groups=groups, draws=draws)
    return LayerCurve(tuple(taps), tuple(probes), together, np.asarray(labels), chance)


def side_by_side(taps: Sequence[np.ndarray]) -> np.ndarray:
    """Join the features of several layers, each image's vector of each layer scaled to unit length."""
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in taps]
    units = [x / np.where(length > 0, length, 1) for x, length in zip(taps, lengths, strict=True)]
    return np.concatenate(units, axis=1).astype("float32")


@dataclass(frozen=True)
class SizePoint:
    """Left-out accuracy with so many images."""

    count: int
    accuracy: float
    standard_error: float


def size_curve(
    features: np.ndarray, labels: np.ndarray, num_classes: int, *, groups: Sequence[Any] = (), seed: int = 0
) -> list[SizePoint]:
    """Say how the accuracy grows with the number of images: with a quarter, half and all of them."""
    order = _spread(np.asarray(labels), seed)
    points = []
    for share in (4, 2, 1):
        parts = [order[start::share] for start in range(share)]
        if any(np.bincount(labels[part], minlength=num_classes).min() < 2 for part in parts):
            continue
        probes = [
            ridge_leave_one_out(
                features[part],
                labels[part],
                num_classes,
                groups=[groups[i] for i in part] if groups else one_of_each(labels[part]),
            )
            for part in parts
        ]
        error = np.sqrt(np.sum([probe.standard_error**2 for probe in probes])) / share
        accuracy = float(np.mean([probe.accuracy for probe in probes]))
        points.append(SizePoint(len(parts[0]), accuracy, float(error)))
    return points


def _spread(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of the images in which every k-th is stratified: shuffled within classes, class after
    class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]
