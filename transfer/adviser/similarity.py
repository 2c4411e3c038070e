"""Similarity of images to a network's pre-training data, by three measures relative to reference sets."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np

from transfer.adviser.probes import label_information
from transfer.adviser.sample_features import SampleFeatures
from transfer.common.display import one_line
from transfer.common.errors import InputError
from transfer.common.keras_private import all_layers
from transfer.common.tasks import SINGLE
from transfer.images.label_forms import task_of

WEIGHTS = {"information": 2.0, "confidence": 1.0, "shift": 3.0}
"""Weights of the percentiles. The information counts twice as much as the confidence, which is also high on hand signs
and drawings. The shift counts most: the information measures how well the source classes separate the new classes,
not how similar the images are. For example, EfficientNet-Lite0 at 128 px had an information of 0.55 on random patterns,
0.45 on clothes and 0.39 on CIFAR-10; the shift ranked these in reverse (see `references.json`). These weights separate
CIFAR-10 from clothes, with means of 0.75 and 0.62 at 96 px, and 0.77 and 0.53 at 128 px. With weights of 2, 1, 1 the
means were 0.72 and 0.72, and 0.73 and 0.63."""

THRESHOLDS = {True: 0.64, False: 0.9}
"""Lowest mean percentile of similar images, with and without the shift; chosen on the reference sets. For
EfficientNet-Lite0 at 96 to 224 px and 50 to 1,000 images, hymenoptera had 0.82 to 1, CIFAR-10 0.65 to 0.78, clothes at
most 0.62, hand signs at most 0.50, and drawings 0.45 to 0.73. Without the shift no threshold separates CIFAR-10 from
clothes, which MobileNetV2 ranked higher on average at each size, up to 0.87. With the threshold without the shift, only
hymenoptera at 128 px or more count as similar, with 0.97 to 1."""

SIMILAR_SCORE = 0.5
"""Score at the threshold. `THRESHOLDS` are mapped to it, so that a score means the same with and without the shift."""

_DEFAULT_SIZE = 128  # pixels, for a sample without an image size

Shift = tuple[float, ...]
"""Median shift of the BatchNormalization layers in the early, middle and late third of a network."""


@dataclass(frozen=True)
class Reference:
    """Measures of a network on a reference set at an image size (see `tests/benchmarks/references.py`)."""

    name: str
    model: str
    image_size: int
    num_available: int
    num_images: int
    num_classes: int
    information: Mapping[int, float]  # label information by the number of images it was computed from
    confidence: float
    shift: Shift | None


class RankedReference(NamedTuple):
    """A reference set with its similarity score."""

    name: str
    num_images: int
    score: float


@dataclass(frozen=True)
class Similarity:
    """Similarity of images to the pre-training data, and its measures."""

    score: (
        float  # 0 (different) to 1 (similar): the weighted mean percentile, with the threshold mapped to 0.5
    )
    information: float | None  # information of the source classes on the labels (see `label_information`)
    confidence: float | None  # mean over images of the largest source probability
    shift: Shift | None
    percentiles: dict[str, float]  # by measure, among the reference sets; 1 is similar
    missing: dict[str, str]  # measures that do not count, with the reason
    nearest: str  # reference set with the nearest score
    references: tuple[RankedReference, ...]  # the most similar first
    calibrated: bool  # whether the reference sets were measured with this network

    def __repr__(self) -> str:
        nearest = f"; nearest: {self.nearest}" if self.nearest else ""
        return one_line(self, f"{self.score:.2f} of 1, {'similar' if self.similar else 'different'}{nearest}")

    @property
    def similar(self) -> bool:
        """Whether the images count as similar."""
        return self.score >= SIMILAR_SCORE


@dataclass(frozen=True)
class _Measures:
    """Measures of a data set, or of a reference set interpolated to an image size and number of images."""

    information: float | None
    confidence: float | None
    shift: Shift | None
    name: str = ""
    num_images: int = 0


def measure_similarity(
    sample: SampleFeatures, model_name: str, *, base: keras.Model | None = None
) -> Similarity | None:
    """Compare images with reference sets by the measures of a network; None if it has none of them."""
    own = references(model_name)
    size = float(np.sqrt(np.prod(sample.image_size))) or _DEFAULT_SIZE
    measures, missing = _measure(sample, base)
    reference_sets = _interpolate(own or _all_references(), size=size, count=len(sample.labels))
    comparable = bool(own) and all(one.shift for one in reference_sets)  # shifts differ between networks
    if measures.shift and not comparable:
        missing["shift"] = f"the reference sets have no shift for {model_name}"
    percentiles = _percentiles(measures, reference_sets, without=missing)
    if not percentiles:
        return None
    score = _score(percentiles)
    ranking = _rank(reference_sets, missing)
    return Similarity(
        score=score,
        information=measures.information,
        confidence=measures.confidence,
        shift=measures.shift,
        percentiles=percentiles,
        missing=missing,
        nearest=min(ranking, key=lambda one: abs(one.score - score)).name,
        references=ranking,
        calibrated=bool(own),
    )


def references(model_name: str) -> tuple[Reference, ...]:
    """Return the reference sets that were measured with a network, at several image sizes."""
    return tuple(one for one in _all_references() if _plain(one.model) == _plain(model_name))


@functools.cache
def _all_references() -> tuple[Reference, ...]:
    text = (importlib.resources.files("transfer.adviser") / "references.json").read_text(encoding="utf-8")
    rows = json.loads(text)["references"]
    for row in rows:
        row["information"] = {int(count): value for count, value in row["information"].items()}
        row["shift"] = row["shift"] and tuple(row["shift"])
    return tuple(Reference(**row) for row in rows)


def _plain(model_name: str) -> str:
    """Return a name without the width of 1 and the image size that Keras appends."""
    return re.sub(r"(_1\.0+)?(_(\d+|none))?$", "", model_name.lower())


def shift_by_depth(shifts: Mapping[str, float]) -> Shift | None:
    """Return the median shift of the early, middle and late third of the layers; None for too few."""
    if len(shifts) < 3:
        return None
    return tuple(float(np.median(part)) for part in np.array_split(list(shifts.values()), 3))


def keeps_statistics(base: keras.Model) -> bool:
    """Return whether a BatchNormalization layer has statistics of the pre-training data."""
    # All means are 0 and all variances 1 in untrained networks, and where the layers were folded into the convolutions,
    # as in weights that were recovered from an 8-bit model.
    layers = [x for x in all_layers(base) if isinstance(x, keras.layers.BatchNormalization)]
    statistics = keras.ops.convert_to_numpy
    return any(
        np.any(statistics(x.moving_mean) != 0) or np.any(statistics(x.moving_variance) != 1) for x in layers
    )


def percentile(value: float, reference: Sequence[float]) -> float:
    """Return the percentile of a value among reference values, 0 to 1."""
    if not len(reference):
        raise InputError("Expected reference values for a percentile. Received: none.")
    return float(np.interp(value, np.sort(reference), np.linspace(0, 1, len(reference))))


def _measure(sample: SampleFeatures, base: keras.Model | None) -> tuple[_Measures, dict[str, str]]:
    """Return the measures of the sample, and the reasons for missing ones."""
    if not len(sample.labels):
        raise InputError("Expected a sample of one image or more. Received: no images.")
    source = sample.source_probabilities
    if not all(np.isfinite(x).all() for x in ([] if source is None else source, [*sample.shifts.values()])):
        raise InputError(
            "Expected finite outputs of the network. Received: NaN or infinity. Check the network's weights."
        )
    information = confidence = shift = None
    missing = {}
    if source is None:
        missing["information"] = missing["confidence"] = "the network has no classifier"
    else:
        confidence = float(source.max(axis=1).mean())
        if task_of(sample.labels) != SINGLE:
            missing["information"] = "it needs one class per image"
        elif sample.num_classes > 1:
            information = float(label_information(source, sample.labels))
        else:
            missing["information"] = "all images are of one class"
    if not sample.shifts:
        missing["shift"] = "the network has no BatchNormalization"
    elif base is not None and not keeps_statistics(base):
        missing["shift"] = "the BatchNormalization layers have no statistics (all means 0, all variances 1)"
    else:
        shift = shift_by_depth(sample.shifts)
        if shift is None:
            missing["shift"] = f"{len(sample.shifts)} BatchNormalization layers are too few"
    return _Measures(information, confidence, shift), missing


def _interpolate(rows: Sequence[Reference], *, size: float, count: int) -> list[_Measures]:
    """Interpolate each reference set to an image size and number of images, linearly in their logarithms."""
    by_set: dict[tuple[str, str], list[Reference]] = {}
    for row in sorted(rows, key=lambda row: row.image_size):
        by_set.setdefault((row.model, row.name), []).append(row)
    measures = []
    for at_sizes in by_set.values():
        sizes = [row.image_size for row in at_sizes]
        information = [
            _log_interp(count, list(row.information), list(row.information.values())) for row in at_sizes
        ]
        shifts = [row.shift for row in at_sizes if row.shift]
        shift = tuple(_log_interp(size, sizes, x) for x in zip(*shifts, strict=True)) if shifts else None
        measures.append(
            _Measures(
                information=_log_interp(size, sizes, information),
                confidence=_log_interp(size, sizes, [row.confidence for row in at_sizes]),
                shift=shift,
                name=at_sizes[0].name,
                num_images=at_sizes[0].num_available,
            )
        )
    return measures


def _log_interp(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    return float(np.interp(np.log(x), np.log(xs), ys))


def _percentiles(
    measures: _Measures, reference_sets: Sequence[_Measures], *, without: Mapping[str, str]
) -> dict[str, float]:
    """Return the percentile of each measure among the reference sets, where 1 is similar."""
    percentiles = {}
    for name in WEIGHTS:
        value = getattr(measures, name)
        if name in without or value is None:
            continue
        others = [getattr(other, name) for other in reference_sets]
        if name == "shift":  # a large shift is different; each third of the network counts equally
            thirds = zip(value, zip(*others, strict=True), strict=True)
            percentiles[name] = 1 - float(np.mean([percentile(own, reference) for own, reference in thirds]))
        else:
            percentiles[name] = percentile(value, others)
    return percentiles


def _score(percentiles: Mapping[str, float]) -> float:
    """Return the weighted mean percentile, with the threshold mapped to `SIMILAR_SCORE`."""
    mean = np.average(list(percentiles.values()), weights=[WEIGHTS[name] for name in percentiles])
    return float(np.interp(mean, [0, THRESHOLDS["shift" in percentiles], 1], [0, SIMILAR_SCORE, 1]))


def _rank(reference_sets: Sequence[_Measures], missing: Mapping[str, str]) -> tuple[RankedReference, ...]:
    """Score the reference sets by the same measures, averaged over networks, the most similar first."""
    scores: dict[str, list[float]] = {}
    for one in reference_sets:
        scores.setdefault(one.name, []).append(_score(_percentiles(one, reference_sets, without=missing)))
    counts = {one.name: one.num_images for one in reference_sets}
    ranking = [RankedReference(name, counts[name], float(np.mean(x))) for name, x in scores.items()]
    return tuple(sorted(ranking, key=lambda one: -one.score))
