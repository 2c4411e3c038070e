"""Comparison of networks for some images, by cross-validated accuracy and cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import keras

from transfer.adviser.advise import MIN_IMAGES, head_evidence, probe_sample
from transfer.adviser.sample_features import extract_sample
from transfer.common.errors import InputError
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import ImageData, check_data
from transfer.networks.backbones import load_backbone
from transfer.networks.graphs import analyze


@dataclass(frozen=True)
class Candidate:
    """Accuracy and cost of a network with its best head."""

    model: str
    image_size: int
    cut: str
    accuracy: float
    standard_error: float
    seconds_per_image: float | None  # of a forward pass on this machine; None if the features were cached
    parameters: int


def compare(
    data: ImageData,
    models: Sequence[str],
    *,
    weights: Mapping[str, str] | None = None,
    image_size: int | None = None,
    max_images: int = 500,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
) -> list[Candidate]:
    """Rank networks by the cross-validated accuracy of a head on each.

    Args:
        data: images from `load_data`. Only training images are used.
        models: names of networks, as for `load_backbone`.
        weights: weights of each network by name, `"pretrained"` by default.
        image_size: height and width in pixels. None is the size that each network was trained at.
        max_images: largest number of training images to use.
        engine: engine that runs the networks, one of `ENGINES`.
        cache: feature cache. None is the user's default cache.
        seed: random seed of the sample.

    Returns:
        The candidates, the most accurate first. Candidates within one standard error of the best are sorted by speed.

    Raises:
        InputError: `data` is not `ImageData`, a name is unknown, or there are too few images for cross-validation.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> options = {"weights": {"MobileNetV2": "none"}, "image_size": 32, "max_images": 60}
        >>> [candidate.model for candidate in compare(load_data("emoji"), ["MobileNetV2"], **options)]
        ['MobileNetV2']
    """
    check_data(data, "compare(data, models)")
    candidates = []
    for name in dict.fromkeys(models):
        base = load_backbone(name, weights=(weights or {}).get(name, "pretrained"), image_size=image_size)
        sample = extract_sample(data, base, max_images=max_images, engine=engine, cache=cache, seed=seed)
        curve, _ = probe_sample(sample, seed)
        if curve is None:
            raise InputError(
                f"Expected {MIN_IMAGES} training images or more, for cross-validation. Received: "
                f"{len(sample.labels)}. Add images."
            )
        head = max(head_evidence(curve), key=lambda head: head.accuracy)
        network = analyze(base)
        parameters = keras.Model(base.inputs, network.output(network.last_layer)).count_params()
        candidates.append(
            Candidate(
                model=name,
                image_size=sample.image_size[0],
                cut=head.cut,
                accuracy=head.accuracy,
                standard_error=head.standard_error,
                seconds_per_image=sample.seconds_per_image,
                parameters=parameters,
            )
        )
    best = max(candidates, key=lambda one: one.accuracy)
    near = [one for one in candidates if best.accuracy - one.accuracy <= best.standard_error]
    rest = [one for one in candidates if one not in near]
    return [
        *sorted(near, key=lambda one: (one.seconds_per_image or 0.0, -one.accuracy)),
        *sorted(rest, key=lambda one: -one.accuracy),
    ]


def comparison_text(candidates: Sequence[Candidate]) -> str:
    """Return candidates as a table."""
    lines = [f"{'network':22}{'pixels':>6}{'accuracy':>18}{'parameters':>13}{'ms per image':>17}  head on"]
    for one in candidates:
        milliseconds = "cached" if one.seconds_per_image is None else f"{1000 * one.seconds_per_image:.1f}"
        accuracy, size = f"{one.accuracy:.1%} +- {one.standard_error:.1%}", f"{one.parameters / 1e6:.1f} M"
        lines.append(
            f"{one.model:22}{one.image_size:>6}{accuracy:>18}{size:>13}{milliseconds:>17}  {one.cut}"
        )
    return "\n".join(lines)


def comparison_json(candidates: Sequence[Candidate]) -> str:
    """Return candidates as JSON text, in their order."""
    return json.dumps([asdict(one) for one in candidates], indent=2) + "\n"
