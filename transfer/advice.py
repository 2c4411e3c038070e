"""Which case is mine? A quick look at the data through the network's own classifier."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

from transfer import graphs, surgery
from transfer.backbones import preprocessing_of
from transfer.cases import SMALL_DATA, Case, rule_of_thumb
from transfer.datasets import ImageData
from transfer.features import extract
from transfer.looks import as_probabilities, some_of_each
from transfer.probes import label_information

MOST_IMAGES = 256
"""Pictures to look at; with more the information moves by a few hundredths."""

SIMILAR_FROM = 0.45
"""Data count as similar from this label information on. EfficientNet-Lite0 at 224 and 128 px gave: photos of
ants and bees 0.66 and 0.52, CIFAR-10 0.35 and 0.36, Fashion-MNIST 0.27 and 0.40, hand signs 0.07 and 0.19
(`similarity` in the metrics.json of runs with `--case auto`)."""


@dataclass(frozen=True)
class Advice:
    """A recommended case and what it rests on.

    Attributes:
        case: the recommendation.
        similarity: label information of the old classifier, about 0 (different) to 1 (similar); None where
            it could not be measured.
        reason: the recommendation in a sentence.
    """

    case: Case
    similarity: float | None
    reason: str


def quick_advice(
    data: ImageData, base: keras.Model, *, preprocessing: str | None = None, seed: int = 0
) -> Advice:
    """Choose a case by the rule of thumb: size from the data, similarity from at most 256 pictures.

    Args:
        data: of `load_data`; only its training pictures are looked at.
        base: the pre-trained network, best with its own classifier.
        preprocessing: see `builders.build`.
        seed: of the choice of pictures.

    Returns:
        The advice.

    Example:
        >>> from transfer.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3))
        >>> print(quick_advice(load_data("emoji"), base).case)
        small-different
    """
    similarity = _similarity(data, base, preprocessing, seed)
    count = len(data.train)
    similar = similarity is not None and similarity >= SIMILAR_FROM
    case = rule_of_thumb(count, similar)
    size = (
        f"{'fewer' if count < SMALL_DATA else 'no fewer'} than {SMALL_DATA:,} training pictures ({count:,})"
    )
    if similarity is None:
        seen = "taken as different, since the network has no classifier to measure it by"
    else:
        seen = (
            f"{'similar to' if similar else 'different from'} what the network knows (its old classes tell "
            f"{max(0.0, similarity):.0%} of what the labels say; similar from {SIMILAR_FROM:.0%} on)"
        )
    return Advice(case, similarity, f"{size}, and {seen}")


def _similarity(data: ImageData, base: keras.Model, preprocessing: str | None, seed: int) -> float | None:
    if graphs.layer_before_classifier(base) == graphs.graph(base)[-1].op.name:
        return None
    some = data.train.take(some_of_each(data.train.labels, MOST_IMAGES, seed).tolist())
    _, labels = np.unique(some.labels, return_inverse=True)
    height, width = base.input_shape[1:3]
    size = (height, width) if height and width else data.image_size or (224, 224)
    whole = surgery.clone(base, preprocess=preprocessing_of(base, preprocessing))
    scores = extract(whole, some, image_size=size, name="quick look").load()
    return label_information(as_probabilities(scores), labels)
