"""Features of sample images from one forward pass. All of the advice is computed from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np

from transfer.cases.decisions import decision_of
from transfer.common.keras_private import count_calls
from transfer.common.tasks import SINGLE
from transfer.frozen.extraction import KnownFeatures, extract
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.head_choice import features_of
from transfer.images.datasets import ImageData, Split
from transfer.images.label_forms import task_of
from transfer.networks import surgery
from transfer.networks.graphs import NetworkInfo, Node, analyze
from transfer.networks.preprocessing import preprocessing_of

MAX_IMAGES = 2000
"""Default size of the sample. With this size, the accuracy of a probe is known to within one point."""

MIN_IMAGES_PER_CLASS = 8
"""Minimum number of images of a class in the sample. With many classes, the sample has only some of them."""


_SOURCE = "source classifier"  # name of the output of the network's classifier


@dataclass(frozen=True, eq=False)
class SampleFeatures:
    """Features, source probabilities and BatchNormalization shifts of some training images."""

    images: Split
    # Numbers from 0 among the classes of the sample, shape (N,). Several labels and numbers are as in the split.
    labels: np.ndarray
    num_classes: int  # in the sample
    # Mean over positions at the end of each block and before the classifier, float32 of shape (N, channels).
    taps: dict[str, np.ndarray]
    # Probabilities of the network's own classifier, shape (N, source classes).
    source_probabilities: np.ndarray | None
    shifts: dict[
        str, float
    ]  # by BatchNormalization layer, in the order of the network; see `batchnorm_shift`
    image_size: tuple[int, int] = (0, 0)
    seconds_per_image: float | None = None  # None if the features were cached
    # Time of the pass, number of images whose features were computed now, and the engine that computed them.
    seconds: float = 0.0
    computed: int = 0
    engine: str = ""

    def first(self, count: int) -> SampleFeatures:
        """Return the features of the first images."""
        return self.take(np.arange(len(self.labels))[:count])

    def take(self, positions: np.ndarray) -> SampleFeatures:
        """Return the features of the images at some positions."""
        labels, num_classes = _numbered(self.labels[positions])
        source = self.source_probabilities
        return replace(
            self,
            images=self.images.take(positions),
            labels=labels,
            num_classes=num_classes,
            taps={name: x[positions] for name, x in self.taps.items()},
            source_probabilities=None if source is None else source[positions],
        )


def extract_sample(
    data: ImageData,
    base: keras.Model,
    *,
    max_images: int = MAX_IMAGES,
    preprocessing: str | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
) -> SampleFeatures:
    """Run a network over a stratified sample of the training images."""
    images = data.train.take(stratified_sample(data.train.labels, max_images, seed).tolist())
    return extract_sample_features(
        images, base, image_size=data.image_size, preprocessing=preprocessing, engine=engine, cache=cache
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
    """Run a network once over all of these images."""
    start = time.perf_counter()
    labels, num_classes = _numbered(images.labels)
    height, width = base.input_shape[1:3]
    size = (height, width) if height and width else image_size or (224, 224)
    whole = analyze(surgery.clone(base, image_size=size, preprocess=preprocessing_of(base, preprocessing)))
    tapped, names = _tapped(analyze(base), whole)
    features = extract(
        tapped,
        images,
        name="sample features",
        image_size=size,
        engine=engine,
        precision="float32",  # differences between layers are small
        cache=cache,
    )
    parts = dict(zip(names, features.parts(range(len(images))), strict=True))
    source = as_probabilities(parts.pop(_SOURCE)) if _SOURCE in parts else None
    shifts = {
        layer.name: batchnorm_shift(layer, parts.pop(f"{layer.name}/mean"), parts.pop(f"{layer.name}/square"))
        for layer in _batchnorm_layers(whole.nodes)
    }
    taps = {name: part.reshape(len(images), -1) for name, part in parts.items()}
    return SampleFeatures(
        images,
        labels,
        num_classes,
        taps,
        source,
        shifts,
        image_size=size,
        seconds_per_image=features.seconds_per_image,
        seconds=time.perf_counter() - start,
        computed=features.computed,
        engine=features.engine,
    )


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return labels, numbered from 0 among the classes that occur, and the number of classes or labels."""
    if task_of(labels) != SINGLE:
        return labels, labels.shape[1] if labels.ndim == 2 else 1
    classes, numbers = np.unique(labels, return_inverse=True)
    return numbers, len(classes)


def known_features(sample: SampleFeatures, model: keras.Model) -> KnownFeatures | None:
    """Return the sample's features as input of a model's head, or None if its head sees other layers."""
    cuts = decision_of(model).cuts
    if not set(cuts) <= set(sample.taps):
        return None
    return KnownFeatures(sample.images, features_of(sample.taps, cuts))


def _tapped(base: NetworkInfo, whole: NetworkInfo) -> tuple[keras.Model, list[str]]:
    """Return the network with all outputs of the sample, and their names."""
    outputs = {name: _pooled(whole.output(name)) for name in (*base.block_ends, base.last_layer)}
    if base.has_classifier:
        outputs[_SOURCE] = whole.nodes[-1].tensor
    for layer in _batchnorm_layers(whole.nodes):
        maps = keras.ops.cast(layer.input, "float32")
        outputs[f"{layer.name}/mean"] = _pooled(maps)
        outputs[f"{layer.name}/square"] = _pooled(keras.ops.square(maps))
    return keras.Model(whole.nodes[0].tensor, list(outputs.values()), name=base.name), list(outputs)


def _batchnorm_layers(nodes: Sequence[Node]) -> list[keras.layers.BatchNormalization]:
    """Return the BatchNormalization layers of feature maps that are called once, in network order."""
    ops = dict.fromkeys(node.op for node in nodes)
    layers = [op for op in ops if isinstance(op, keras.layers.BatchNormalization)]
    return [layer for layer in layers if count_calls(layer) == 1 and len(layer.input.shape) == 4]


def _pooled(tensor: keras.KerasTensor) -> keras.KerasTensor:
    axes = tuple(range(1, len(tensor.shape) - 1))
    return keras.ops.mean(keras.ops.cast(tensor, "float32"), axis=axes) if axes else tensor


def batchnorm_shift(layer: keras.layers.BatchNormalization, mean: np.ndarray, square: np.ndarray) -> float:
    """Measure the distance of images to the training images of a network, at one BatchNormalization layer."""
    # The squared Wasserstein distance of two normal distributions, in units of the layer's moving variance:
    # [(mean - moving mean)^2 + (deviation - moving deviation)^2] / moving variance, the median over channels.
    moving_mean = np.asarray(keras.ops.convert_to_numpy(layer.moving_mean), "float64")
    moving_variance = np.asarray(keras.ops.convert_to_numpy(layer.moving_variance), "float64") + layer.epsilon
    now = mean.mean(axis=0, dtype="float64")
    deviation = np.sqrt(np.maximum(square.mean(axis=0, dtype="float64") - np.square(now), 0))
    shift = (np.square(now - moving_mean) + np.square(deviation - np.sqrt(moving_variance))) / moving_variance
    return float(np.median(shift))


def stratified_sample(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Choose indices class by class in turn, to include small classes; for several labels or numbers, at random."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    if task_of(labels) != SINGLE:
        return order[:most]
    classes = rng.permutation(np.unique(labels))[: max(2, most // MIN_IMAGES_PER_CLASS)]
    order = order[np.isin(labels[order], classes)]
    by_class, turn = np.sort(labels[order]), np.empty(len(order), dtype=int)
    first = np.searchsorted(by_class, by_class)  # of each class
    turn[np.argsort(labels[order], kind="stable")] = np.arange(len(order)) - first
    return order[np.argsort(turn, kind="stable")][:most]


def as_probabilities(scores: np.ndarray) -> np.ndarray:
    """Convert logits, softmax or sigmoid outputs of a classifier to rows that sum to 1."""
    scores = scores.reshape(len(scores), -1).astype("float64")
    if scores.min() < 0 or scores.max() > 1 + 1e-2:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    total = scores.sum(axis=1, keepdims=True)
    return np.where(total > 0, scores / np.maximum(total, 1e-12), 1 / scores.shape[1])
