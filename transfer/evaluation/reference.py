"""The reference of a run: directions of training images, and scores of held-out images that set the thresholds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.strategies import scope_of
from transfer.evaluation import unknown
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.prediction_sets import (
    COVERAGE,
    conformal_quantile,
    describe_sets,
    measure_sets,
    set_scores,
)
from transfer.frozen.extraction import (
    KnownFeatures,
    apply_head,
    extract,
    frozen_feature_extractor,
    input_size,
)
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.openvino_engine import in_float
from transfer.frozen.shared_pass import local_copy
from transfer.images.datasets import ImageData, Split
from transfer.networks import surgery
from transfer.networks.gradients import averaged_models
from transfer.networks.graphs import graph

MAX_BYTES = 3 * 2**19
"""Largest size of the training images' features: 1.5 MB, 768 images of ResNet50."""

MIN_VALIDATION = {"frozen": 100, "fine-tuned": 20}
"""Fewest validation images that set the threshold of the distance, by what was trained. With fewer, each training image
is compared with the others. Fine-tuned layers have seen these, so their distances are too small."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Directions of training images, and distances and scores of held-out images."""

    # The features of training images, int8 of shape (N, D).
    directions: np.ndarray
    # Distances of held-out images, ascending.
    distances: np.ndarray
    # Where these come from: "validation", or "training" with each image left out.
    held_out: str
    # `set_scores` of held-out images; empty without validation images.
    scores: np.ndarray

    @property
    def threshold(self) -> float:
        """The largest distance of an image of the known classes."""
        return unknown.distance_threshold(self.distances)

    def distances_of(self, features: np.ndarray) -> np.ndarray:
        """Return the distances of images to the training images; the last features are compared."""
        width = self.directions.shape[1]
        if features.shape[1] < width:
            raise InputError(
                f"Expected {width:,} features, as in the reference of the run. Received a model with "
                f"{features.shape[1]:,}. The files are of different runs."
            )
        return unknown.neighbor_distances(features[:, -width:], self.directions)


def reference_of(
    model: keras.Model,
    data: ImageData,
    *,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    known: KnownFeatures | None = None,
    engine: str = "auto",
) -> Reference:
    """Compute the reference of a model; `held_out` has probabilities and labels in place of the model's own."""
    width = compared_width(model)
    most = max(2, min(unknown.MAX_IMAGES, MAX_BYTES // width))
    train = data.train.take(unknown.spread_over_classes(data.train.labels, most).tolist())
    val = sample(data.val)
    frozen = frozen_feature_extractor(model) is not None
    with _extraction(model, input_size(model, data), engine, known, precision="auto") as run:
        features = run(train)[0][:, -width:]
        own, probabilities = run(val) if len(val) else (features[:0], np.zeros((0, data.num_classes)))
    directions = unknown.as_directions(features)
    if len(val) >= MIN_VALIDATION["frozen" if frozen else "fine-tuned"]:
        found, where = unknown.neighbor_distances(own[:, -width:], directions), "validation"
    else:
        found, where = unknown.neighbor_distances(features, directions, leave_one_out=True), "training"
    scores = set_scores(*(held_out or (probabilities, val.labels)))
    return Reference(directions, np.sort(found), where, scores)


def sample(split: Split) -> Split:
    """Return a split, or a random part of a large one, in which each class has its fraction of the images."""
    if len(split) <= unknown.MAX_IMAGES:
        return split
    return split.take(np.random.default_rng(0).permutation(len(split))[: unknown.MAX_IMAGES].tolist())


@contextlib.contextmanager
def _extraction(
    model: keras.Model,
    image_size: tuple[int, int],
    engine: str,
    known: KnownFeatures | None = None,
    *,
    precision: str,
) -> Iterator[Any]:
    """Yield a function that returns the features and probabilities of a split; frozen layers use the cache."""
    options: dict[str, Any] = {"image_size": image_size, "engine": in_float(engine), "name": "features"}
    frozen = frozen_feature_extractor(model)
    if frozen is not None:

        def run_frozen(split: Split) -> tuple[np.ndarray, np.ndarray]:
            features = extract(frozen, split, precision=precision, known=known, **options).load()
            return features, apply_head(model, features)

        yield run_frozen
        return
    joined = with_features(local_copy(model))
    with tempfile.TemporaryDirectory(prefix="transfer-features-") as folder:
        options |= {"cache": FeatureCache(Path(folder)), "precision": "float32"}

        def run(split: Split) -> tuple[np.ndarray, np.ndarray]:
            features = extract(joined, split, **options)
            first, last = features.parts(range(len(split)))
            return first.astype("float32"), last.astype("float64")

        yield run


def with_features(model: keras.Model) -> keras.Model:
    """Return a model with two outputs: the features before its head, of an average its last one, and its own output."""
    with scope_of(model):
        features = surgery.feature_extractor_of(averaged_models(model)[-1]).outputs[0]
        return keras.Model(model.inputs[0], [features, model.outputs[0]], name=model.name)


def compared_width(model: keras.Model) -> int:
    """Return the number of features that are compared: of a head on several layers, those of the last layer."""
    # In `tests/benchmarks/unknown.py`, all layers together have an AUROC of 0.741 on held-out classes and of 0.961 on
    # other data sets; the last layer has 0.764 and 0.998.
    nodes = graph(averaged_models(model)[-1])
    joined = nodes[nodes[-1].parents[0]]
    parts = [nodes[parent] for parent in joined.parents]
    if len(parts) > 1 and all(isinstance(part.op, keras.layers.UnitNormalization) for part in parts):
        return int(parts[-1].tensor.shape[-1])
    return int(joined.tensor.shape[-1])


def measured(
    reference: Reference,
    model: keras.Model,
    data: ImageData,
    evaluation: Evaluation | None,
    *,
    coverage: float | None = None,
    others: np.ndarray | None = None,
    engine: str = "auto",
) -> dict[str, Any]:
    """Measure the thresholds on the test images; `others` has distances of images of no class."""
    # A coverage of None is the default one, or none if there are too few validation images.
    if evaluation is None:
        return {}
    with _extraction(model, input_size(model, data), engine, precision="float32") as run:
        distances = reference.distances_of(run(sample(data.test))[0])
    values = {"unknown": unknown.measure_unknown(reference.threshold, distances, others)}
    values["unknown"]["threshold_from"] = reference.held_out
    wanted = coverage or COVERAGE
    if coverage is not None or conformal_quantile(reference.scores, wanted) is not None:
        values["prediction_sets"] = measure_sets(
            reference.scores, evaluation.probabilities, evaluation.labels, coverage=wanted, groups=evaluation.groups
        )  # fmt: skip
    return values


def limit_notes(values: Mapping[str, Any]) -> list[str]:
    """Return the values of `measured` as sentences; none for evaluations of earlier versions."""
    notes = []
    if "unknown" in values:
        notes.append(unknown.describe_unknown(values["unknown"]))
    if "prediction_sets" in values:
        notes.append(describe_sets(values["prediction_sets"]))
    return notes
