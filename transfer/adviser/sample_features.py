"""One forward pass over some images, from which all of the advice is computed: what each block sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transfer.adviser.curves import side_by_side
from transfer.cases.decisions import decision_of
from transfer.common.keras_private import count_calls
from transfer.distributed.strategies import scope_of
from transfer.frozen.extraction import extract, keep
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import ImageData, Split
from transfer.networks import graphs, surgery
from transfer.networks.backbones import block_ends, preprocessing_of

MOST_IMAGES = 2000
"""Images to look at: the accuracy of a probe is known to within a point then."""

FEWEST_OF_A_CLASS = 8
"""Images to look at of each class; where there are too many classes for that, some of them will do."""


@dataclass(frozen=True, eq=False)
class SampleFeatures:
    """What a network makes of some training images."""

    images: Split
    # Their classes, numbered from 0 among those that were looked at, shape (N,).
    labels: np.ndarray
    num_classes: int
    # Of each block's end, averaged over the image, float32 of shape (N, channels).
    taps: dict[str, np.ndarray]
    # Probabilities of the network's own classes, shape (N, old classes).
    old: np.ndarray | None
    # How far the images' statistics are from those of the pre-training, by BatchNormalization in the
    # order of the network (see `batchnorm_shift`).
    shifts: dict[str, float]
    image_size: tuple[int, int] = (0, 0)
    # That this took (see `features.Features`).
    seconds_per_image: float | None = None


def extract_sample(
    data: ImageData,
    base: keras.Model,
    *,
    max_images: int = MOST_IMAGES,
    preprocessing: str | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
) -> SampleFeatures:
    """Run a network once over at most so many training images, spread over the classes."""
    chosen = some_of_each(data.train.labels, max_images, seed)
    some = data.train.take(chosen.tolist())
    return extract_sample_features(
        some, base, image_size=data.image_size, preprocessing=preprocessing, engine=engine, cache=cache
    )


def extract_sample_features(
    images: Split,
    base: keras.Model,
    *,
    image_size: tuple[int, int] | None = None,
    preprocessing: str | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
) -> SampleFeatures:
    """Run a network once over images."""
    classes, labels = np.unique(images.labels, return_inverse=True)
    height, width = base.input_shape[1:3]
    size = (height, width) if height and width else image_size or (224, 224)
    whole = surgery.clone(base, image_size=size, preprocess=preprocessing_of(base, preprocessing))
    tapped, names = _tapped(base, whole)
    # In full precision: differences between layers are small.
    options: dict[str, Any] = {"image_size": size, "engine": engine, "precision": "float32", "cache": cache}
    seen = extract(tapped, images, name="looking", **options)
    parts = dict(zip(names, seen.parts(range(len(images))), strict=True))
    old = as_probabilities(parts.pop("old")) if "old" in parts else None
    shifts = {
        layer.name: batchnorm_shift(layer, parts.pop(f"{layer.name}/mean"), parts.pop(f"{layer.name}/square"))
        for layer in _watched(whole)
    }
    taps = {name: part.reshape(len(images), -1) for name, part in parts.items()}
    return SampleFeatures(images, labels, len(classes), taps, old, shifts, size, seen.seconds_per_image)


def keep_for_training(
    sample: SampleFeatures, model: keras.Model, *, engine: str = "auto", cache: FeatureCache | None = None
) -> bool:
    """Keep what was seen as features of a model's frozen part, so that `fit` need not run it over these
    images again."""
    cuts = decision_of(model).cuts
    if not set(cuts) <= set(sample.taps):
        return False
    parts = [sample.taps[cut] for cut in cuts]
    values = side_by_side(parts) if len(parts) > 1 else parts[0]
    with scope_of(model):
        extractor = surgery.feature_extractor_of(model)
    return keep(extractor, sample.images, values, image_size=sample.image_size, engine=engine, cache=cache)


def _tapped(base: keras.Model, whole: keras.Model) -> tuple[keras.Model, list[str]]:
    """The network with an output for all that is looked at, and what each is."""
    outputs: dict[str, Any] = {}
    last = graphs.layer_before_classifier(base)
    for name in dict.fromkeys([*block_ends(base), last]):
        outputs[name] = _pooled(graphs.find(whole, name).tensor)
    if last != graphs.graph(base)[-1].op.name:
        outputs["old"] = whole.outputs[0]
    for layer in _watched(whole):
        maps = keras.ops.cast(layer.input, "float32")
        outputs[f"{layer.name}/mean"] = _pooled(maps)
        outputs[f"{layer.name}/square"] = _pooled(keras.ops.square(maps))
    return keras.Model(whole.inputs[0], list(outputs.values()), name=base.name), list(outputs)


def _watched(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNormalizations of maps that have a single input, in the order of the network."""
    found = dict.fromkeys(
        node.op for node in graphs.graph(model) if isinstance(node.op, keras.layers.BatchNormalization)
    )
    return [layer for layer in found if count_calls(layer) == 1 and len(layer.input.shape) == 4]


def _pooled(tensor: Any) -> Any:
    axes = tuple(range(1, len(tensor.shape) - 1))
    return keras.ops.mean(keras.ops.cast(tensor, "float32"), axis=axes) if axes else tensor


def batchnorm_shift(layer: keras.layers.BatchNormalization, mean: np.ndarray, square: np.ndarray) -> float:
    """Measure how far images are from those that a network was trained on, at one BatchNormalization."""
    kept_mean = np.asarray(keras.ops.convert_to_numpy(layer.moving_mean), "float64")
    kept_variance = np.asarray(keras.ops.convert_to_numpy(layer.moving_variance), "float64") + layer.epsilon
    now = mean.mean(axis=0, dtype="float64")
    deviation = np.sqrt(np.maximum(square.mean(axis=0, dtype="float64") - np.square(now), 0))
    shift = (np.square(now - kept_mean) + np.square(deviation - np.sqrt(kept_variance))) / kept_variance
    return float(np.median(shift))


def some_of_each(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Pick positions, in turns by class, so that small classes are seen as well."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    classes = rng.permutation(np.unique(labels))[: max(2, most // FEWEST_OF_A_CLASS)]
    order = order[np.isin(labels[order], classes)]
    by_class = np.sort(labels[order])
    turn = np.empty(len(order), dtype=int)
    turn[np.argsort(labels[order], kind="stable")] = np.arange(len(order)) - np.searchsorted(
        by_class, by_class
    )
    return order[np.argsort(turn, kind="stable")][:most]


def as_probabilities(scores: np.ndarray) -> np.ndarray:
    """Bring what a classifier gives, be it logits, a softmax or sigmoids, to rows that sum to 1."""
    scores = scores.reshape(len(scores), -1).astype("float64")
    if scores.min() < 0 or scores.max() > 1 + 1e-2:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    total = scores.sum(axis=1, keepdims=True)
    return np.where(total > 0, scores / np.maximum(total, 1e-12), 1 / scores.shape[1])
