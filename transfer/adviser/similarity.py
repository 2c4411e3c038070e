"""How much images resemble those of a network's pre-training: three measures, each placed among known sets."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np

from transfer.adviser.probes import label_information
from transfer.adviser.sample_features import SampleFeatures
from transfer.common.errors import InputError
from transfer.common.keras_private import all_layers

WEIGHTS = {"information": 2.0, "confidence": 1.0, "shift": 3.0}
"""How much each percentile counts. The information counts double the confidence, which is high on hand signs and
drawings as well. It does not count double the shift, for it says how well the old classes tell the new ones apart, not
how alike the images are: EfficientNet-Lite0 at 128 px gave random patterns 0.55, clothes 0.45, and CIFAR-10 0.39,
and the shift had these the other way round (see `references.json`). Weighted 2, 1, 1, CIFAR-10 and clothes had means
of 0.72 and 0.72 at 96 px, and 0.73 and 0.63 at 128 px; weighted like this, 0.75 and 0.62, and 0.77 and 0.53."""

BORDERS = {True: 0.64, False: 0.9}
"""The mean percentile from which on images count as similar, where the shift counts, and where it does not; chosen on
the known sets themselves. EfficientNet-Lite0, at 96 to 224 px and from 50 to 1,000 images, had ants and bees at 0.82
to 1, CIFAR-10 at 0.65 to 0.78, clothes at 0.62 at most, hand signs at 0.50 at most, and drawings at 0.45 to 0.73.
Without the shift no border tells CIFAR-10 from clothes, which MobileNetV2 placed before it in the mean at each size, at
up to 0.87; there only ants and bees, at 128 px or more, are similar: 0.97 to 1."""

SIMILAR_FROM = 0.5
"""The score at the border, to which `BORDERS` are drawn, so that it means the same whatever could be measured."""

_USUAL_SIZE = 128  # pixels, for a look that does not say at which size

Shift = tuple[float, float, float]


@dataclass(frozen=True)
class Reference:
    """What a network made of a set of images that is known (see `tests/benchmarks/references.py`)."""

    name: str
    model: str
    # Height and width in pixels.
    image_size: int
    num_available: int
    num_images: int
    num_classes: int
    # Label information of the old classifier, by the number of images that it was taken from.
    information: Mapping[int, float]
    confidence: float
    # See `shift_by_depth`.
    shift: Shift | None

    @property
    def images_per_class(self) -> float:
        """Images that were looked at, per class."""
        return self.num_images / self.num_classes


class Place(NamedTuple):
    """Where a known set is."""

    name: str
    num_images: int
    score: float


@dataclass(frozen=True)
class Similarity:
    """How much images resemble those of the pre-training, and what that rests on."""

    score: float
    # What the old classes tell of the new ones (see `probes.label_information`).
    information: float | None
    # Largest probability of the old classifier, mean over images.
    confidence: float | None
    # See `shift_by_depth`.
    shift: Shift | None
    # The place of each measure among the known sets, 0 to 1.
    percentiles: dict[str, float]
    # The measures that do not count, each with the reason.
    missing: dict[str, str]
    nearest: str
    scale: tuple[Place, ...]
    calibrated: bool

    @property
    def similar(self) -> bool:
        """Whether the images count as similar."""
        return self.score >= SIMILAR_FROM


@dataclass(frozen=True)
class _Measures:
    """The measures of a set, those of a known one as they would be at some size and from so many
    images."""

    information: float | None
    confidence: float | None
    shift: Shift | None
    name: str = ""
    num_images: int = 0


def measure_similarity(
    sample: SampleFeatures, model_name: str, *, base: keras.Model | None = None
) -> Similarity | None:
    """Compare what a network makes of images with what it made of known sets of images."""
    own = references(model_name)
    size = float(np.sqrt(np.prod(sample.image_size))) or _USUAL_SIZE
    measured, missing = _measure(sample, base)
    known = _known(own or _shipped(), size=size, count=len(sample.labels))
    comparable = bool(own) and all(one.shift for one in known)  # statistics are of one network alone
    if measured.shift and not comparable:
        missing["shift"] = f"it is not known what that of {model_name} is on the known sets"
    percentiles = _percentiles(measured, known, without=missing)
    if not percentiles:
        return None
    score = _joined(percentiles)
    scale = _scale(known, missing)
    return Similarity(
        score=score,
        information=measured.information,
        confidence=measured.confidence,
        shift=measured.shift,
        percentiles=percentiles,
        missing=missing,
        nearest=min(scale, key=lambda place: abs(place.score - score)).name,
        scale=scale,
        calibrated=bool(own),
    )


def references(model_name: str) -> tuple[Reference, ...]:
    """Give what a network made of known sets, at several image sizes."""
    return tuple(one for one in _shipped() if _plain(one.model) == _plain(model_name))


@functools.cache
def _shipped() -> tuple[Reference, ...]:
    text = (importlib.resources.files("transfer.adviser") / "references.json").read_text(encoding="utf-8")
    found = []
    for row in json.loads(text)["references"]:
        row["information"] = {int(count): value for count, value in row["information"].items()}
        row["shift"] = row["shift"] and tuple(row["shift"])
        found.append(Reference(**row))
    return tuple(found)


def _plain(model_name: str) -> str:
    """Without what Keras adds to a constructor's name: the width of 1 and the image size."""
    return re.sub(r"(_1\.0+)?(_(\d+|none))?$", "", model_name.lower())


def shift_by_depth(shifts: Mapping[str, float]) -> Shift | None:
    """Sum up the shifts of BatchNormalization statistics by depth."""
    if len(shifts) < 3:
        return None
    return _triple(float(np.median(part)) for part in np.array_split(list(shifts.values()), 3))


def _triple(values: Iterable[float]) -> Shift:
    early, middle, late = values
    return early, middle, late


def keeps_statistics(base: keras.Model) -> bool:
    """Tell whether a network's BatchNormalizations keep statistics of what it was trained on."""
    for layer in all_layers(base):
        if isinstance(layer, keras.layers.BatchNormalization):
            mean, variance = (
                keras.ops.convert_to_numpy(kept) for kept in (layer.moving_mean, layer.moving_variance)
            )
            if np.any(mean != 0) or np.any(variance != 1):
                return True
    return False


def percentile(value: float, known: Sequence[float]) -> float:
    """Place a value among known ones."""
    if not len(known):
        raise InputError("Expected known values to place another among. Received: none.")
    return float(np.interp(value, np.sort(known), np.linspace(0, 1, len(known))))


def _measure(sample: SampleFeatures, base: keras.Model | None) -> tuple[_Measures, dict[str, str]]:
    """Take what can be taken, and say why the rest cannot."""
    if not len(sample.labels):
        raise InputError("Expected a look at one image or more. Received: none.")
    given = [*([] if sample.old is None else [sample.old]), np.array(list(sample.shifts.values()))]
    if not all(np.isfinite(values).all() for values in given):
        raise InputError(
            "Expected finite numbers in the look. Received: NaN or infinity. Look at the network's weights."
        )
    information = confidence = shift = None
    missing = {}
    if sample.old is None:
        missing["information"] = missing["confidence"] = "the network has no classifier of its own"
    else:
        confidence = float(sample.old.max(axis=1).mean())
        if sample.num_classes > 1:
            information = float(label_information(sample.old, sample.labels))
        else:
            missing["information"] = "all images are of one class"
    if not sample.shifts:
        missing["shift"] = "the network has no BatchNormalization"
    elif base is not None and not keeps_statistics(base):
        missing["shift"] = (
            "the network's BatchNormalizations keep no statistics (all means 0, all variances 1)"
        )
    else:
        shift = shift_by_depth(sample.shifts)
        if shift is None:
            missing["shift"] = f"{len(sample.shifts)} BatchNormalizations are too few"
    return _Measures(information, confidence, shift), missing


def _known(given: Sequence[Reference], *, size: float, count: int) -> list[_Measures]:
    """Give each known set as it would be at an image size and from so many images, linear in the
    logarithms."""
    by_set: dict[tuple[str, str], list[Reference]] = {}
    for one in sorted(given, key=lambda one: one.image_size):
        by_set.setdefault((one.model, one.name), []).append(one)
    known = []
    for at_sizes in by_set.values():
        sizes = [one.image_size for one in at_sizes]
        information = [
            _along(count, list(one.information), list(one.information.values())) for one in at_sizes
        ]
        shifts = [one.shift for one in at_sizes if one.shift]
        known.append(
            _Measures(
                information=_along(size, sizes, information),
                confidence=_along(size, sizes, [one.confidence for one in at_sizes]),
                shift=_triple(_along(size, sizes, depth) for depth in zip(*shifts, strict=True))
                if shifts
                else None,
                name=at_sizes[0].name,
                num_images=at_sizes[0].num_available,
            )
        )
    return known


def _along(place: float, places: Sequence[float], values: Sequence[float]) -> float:
    return float(np.interp(np.log(place), np.log(places), values))


def _percentiles(
    one: _Measures, known: Sequence[_Measures], *, without: Mapping[str, str]
) -> dict[str, float]:
    """Place each measure of a set among the known sets, so that 1 is similar."""
    found = {}
    for measure in WEIGHTS:
        value = getattr(one, measure)
        if measure in without or value is None:
            continue
        others = [getattr(other, measure) for other in known]
        if measure == "shift":  # a large one is different; each third of the depth counts alike
            thirds = zip(value, zip(*others, strict=True), strict=True)
            found[measure] = 1 - float(np.mean([percentile(mine, theirs) for mine, theirs in thirds]))
        else:
            found[measure] = percentile(value, others)
    return found


def _joined(percentiles: Mapping[str, float]) -> float:
    """The score: the weighted mean, with its border moved to the middle."""
    weights = [WEIGHTS[measure] for measure in percentiles]
    mean = float(np.average(list(percentiles.values()), weights=weights))
    return float(np.interp(mean, [0, BORDERS["shift" in percentiles], 1], [0, SIMILAR_FROM, 1]))


def _scale(known: Sequence[_Measures], missing: Mapping[str, str]) -> tuple[Place, ...]:
    """Score the known sets like any other; where several networks serve, each set once."""
    scores: dict[str, list[float]] = {}
    for one in known:
        scores.setdefault(one.name, []).append(_joined(_percentiles(one, known, without=missing)))
    counts = {one.name: one.num_images for one in known}
    places = [Place(name, counts[name], float(np.mean(of_set))) for name, of_set in scores.items()]
    return tuple(sorted(places, key=lambda place: -place.score))
