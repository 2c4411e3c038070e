"""Which network is best for some images: each judged by what a head on it would give, and by its cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import keras

from transfer.adviser.advise import FEWEST_IMAGES, curves_of, heads_of
from transfer.adviser.sample_features import extract_sample
from transfer.common.errors import InputError
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import ImageData
from transfer.networks import graphs
from transfer.networks.backbones import load_backbone


@dataclass(frozen=True)
class Candidate:
    """A network among others."""

    model: str
    # Pixels.
    image_size: int
    cut: str
    accuracy: float
    error: float
    # Of the forward pass on this machine.
    seconds_per_image: float | None
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
    """Rank networks by what a head on each would give.

    Args:
        data: of `load_data`; the test images are not looked at.
        models: names, as `load_backbone` takes them.
        weights: of each, by name; `"pretrained"` where there is none.
        image_size: pixels; None is what each was trained for.
        max_images: images to look at, at most.
        engine: what runs the networks.
        cache: where features are kept; None is the user's own cache.
        seed: of the choice of images.

    Returns:
        The most accurate first; of those no more than a standard error behind it, the quickest come first.

    Raises:
        InputError: a name is unknown, or there are too few images to leave some out.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> options = {"weights": {"MobileNetV2": "none"}, "image_size": 32, "max_images": 60}
        >>> [found.model for found in compare(load_data("emoji"), ["MobileNetV2"], **options)]
        ['MobileNetV2']
    """
    found = []
    for name in dict.fromkeys(models):
        base = load_backbone(name, weights=(weights or {}).get(name, "pretrained"), image_size=image_size)
        sample = extract_sample(data, base, max_images=max_images, engine=engine, cache=cache, seed=seed)
        curve, _ = curves_of(sample, seed)
        if curve is None:
            raise InputError(
                f"Expected {FEWEST_IMAGES} images to train on or more, so that some can be left out. Received: "
                f"{len(sample.labels)}. Add some."
            )
        head = max(heads_of(curve), key=lambda head: head.accuracy)
        last = graphs.find(base, graphs.layer_before_classifier(base))
        kept = keras.Model(base.inputs, last.tensor)
        size = sample.image_size[0]
        found.append(
            Candidate(
                name, size, head.cut, head.accuracy, head.error, sample.seconds_per_image, kept.count_params()
            )
        )
    return _ranked(found)


def _ranked(found: Sequence[Candidate]) -> list[Candidate]:
    best = max(found, key=lambda one: one.accuracy)
    near = [one for one in found if best.accuracy - one.accuracy <= best.error]
    rest = [one for one in found if one not in near]
    return [
        *sorted(near, key=lambda one: (one.seconds_per_image or 0.0, -one.accuracy)),
        *sorted(rest, key=lambda one: -one.accuracy),
    ]


def comparison_text(found: Sequence[Candidate]) -> str:
    """Give candidates as a table."""
    lines = [f"{'network':22}{'pixels':>6}{'accuracy':>10}{'parameters':>21}{'ms per image':>17}  head at"]
    for one in found:
        milliseconds = "kept" if one.seconds_per_image is None else f"{1000 * one.seconds_per_image:.1f}"
        accuracy = f"{one.accuracy:.1%} +- {one.error:.1%}"
        size = f"{one.parameters / 1e6:.1f} M"
        lines.append(
            f"{one.model:22}{one.image_size:>6}{accuracy:>18}{size:>13}{milliseconds:>17}  {one.cut}"
        )
    return "\n".join(lines)


def comparison_json(found: Sequence[Candidate]) -> str:
    """Give candidates as JSON, in their order."""
    return json.dumps([asdict(one) for one in found], indent=2) + "\n"
