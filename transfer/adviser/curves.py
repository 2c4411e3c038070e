"""Cross-validated accuracy by layer and by number of images, and the best cut."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer.adviser.probes import RidgeProbe, chance_accuracy, ridge_leave_one_out, stratified_folds
from transfer.common.display import one_line
from transfer.common.errors import InputError
from transfer.common.streams import progress_bar
from transfer.common.text import plural
from transfer.frozen.head_choice import concatenate_normalized

SIGNAL_DEVIATIONS = 4.0
"""Standard deviations above the accuracy with shuffled labels at which labels count as related to the images."""

MANY_IMAGES = 1000
"""Number of images above which 10 shuffles suffice: the accuracy with shuffled labels hardly varies."""


_LATE: dict[str, Any] = {"leave": False, "delay": 1}  # a progress bar that appears after a second


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """Cross-validated accuracy of a linear head on each layer, and on all layers together."""

    names: tuple[str, ...]  # layers in the order of the network
    probes: tuple[RidgeProbe, ...]
    all_layers: RidgeProbe
    labels: np.ndarray  # shape (N,)
    chance: tuple[float, float]  # mean and standard deviation of `all_layers` with shuffled labels

    def __repr__(self) -> str:
        best = f"best cut {self.cut} {self.accuracy.max():.1%}"
        return one_line(
            self, f"{plural(len(self.names), 'layer')}; {best}; all {self.all_layers.accuracy:.1%}"
        )

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy by layer."""
        return np.array([probe.accuracy for probe in self.probes])

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of the accuracy by layer."""
        return np.array([probe.standard_error for probe in self.probes])

    @property
    def best(self) -> RidgeProbe:
        """Most accurate probe, on one layer or on all layers."""
        return max((*self.probes, self.all_layers), key=lambda probe: probe.accuracy)

    @property
    def cut(self) -> str:
        """Most accurate layer; among equals, the deepest."""
        # The rule of Breiman et al. (1984) would take the deepest layer within a standard error of the best. On the
        # tuning sets of tests/benchmarks/advice.py (`fit`) it lost 3.5 points to the best layer, and this rule 1.4.
        return self.names[len(self.names) - 1 - int(self.accuracy[::-1].argmax())]

    @property
    def signal(self) -> bool:
        """Whether the features predict the labels better than shuffled labels."""
        mean, deviation = self.chance
        margin = SIGNAL_DEVIATIONS * max(deviation, 1 / len(self.labels))
        return bool(self.all_layers.accuracy > mean + margin)


def layer_curve(
    taps: Mapping[str, np.ndarray], labels: np.ndarray, num_classes: int, *, groups: Sequence[Hashable] = ()
) -> LayerCurve:
    """Cross-validate a ridge regression on the features of each layer, by group or by stratified fold."""
    if not taps:
        raise InputError("Expected the features of one layer or more. Received: none.")
    folds = groups if len(groups) else stratified_folds(labels)
    probes = []
    draws = 20 if len(labels) <= MANY_IMAGES else 10
    with progress_bar(total=len(taps) + 2, desc="measuring layers", unit=" layers", **_LATE) as bar:
        for x in taps.values():
            probes.append(ridge_leave_one_out(x, labels, num_classes, groups=folds))
            bar.update()
        joined = concatenate_normalized(list(taps.values()))
        all_layers = ridge_leave_one_out(joined, labels, num_classes, groups=folds)
        bar.update()
        chance = chance_accuracy(joined, labels, num_classes, groups=groups, draws=draws)
    return LayerCurve(tuple(taps), tuple(probes), all_layers, np.asarray(labels), chance)


@dataclass(frozen=True)
class SizePoint:
    """Cross-validated accuracy with a number of images."""

    num_images: int
    accuracy: float  # mean over disjoint parts of that size
    standard_error: float


def size_curve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    groups: Sequence[Hashable] = (),
    seed: int = 0,
) -> list[SizePoint]:
    """Cross-validate with a quarter, half and all of the images; skip sizes that leave a class fewer than 2."""
    # Every k-th image of this order is a stratified part: shuffled within classes, class after class.
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    points = []
    for count in (4, 2, 1):
        parts = [order[start::count] for start in range(count)]
        if any(np.bincount(labels[part], minlength=num_classes).min() < 2 for part in parts):
            continue
        with progress_bar(iterable=parts, desc="measuring data sizes", unit=" parts", **_LATE) as bar:
            probes = [
                ridge_leave_one_out(
                    features[part],
                    labels[part],
                    num_classes,
                    groups=[groups[i] for i in part] if groups else stratified_folds(labels[part]),
                )
                for part in bar
            ]
        error = np.sqrt(np.sum([probe.standard_error**2 for probe in probes])) / count
        accuracy = float(np.mean([probe.accuracy for probe in probes]))
        points.append(SizePoint(len(parts[0]), accuracy, float(error)))
    return points
