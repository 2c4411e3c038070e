"""The reference of a run: directions of training images, and scores of held-out images that set the thresholds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, REGRESSION
from transfer.distributed.strategies import scope_of
from transfer.evaluation import unknown
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.prediction_intervals import describe_intervals, measure_intervals
from transfer.evaluation.prediction_sets import (
    COVERAGE,
    conformal_quantile,
    describe_sets,
    measure_sets,
    set_scores,
)
from transfer.evaluation.value_evaluation import ValueEvaluation
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
from transfer.images.stratification import strata_of
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
    # `set_scores` of held-out images, or the absolute errors of a regression; empty without validation images, and for
    # several labels per image.
    scores: np.ndarray

    @property
    def threshold(self) -> float:
        """The largest distance of an image of the known classes."""
        return unknown.distance_threshold(self.distances)

    @property
    def interval_width(self) -> float | None:
        """Width of the intervals of predicted numbers; None with too few validation images."""
        half = conformal_quantile(self.scores, COVERAGE)
        return None if half is None else 2 * half

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
    """Compute the reference of a model; `held_out` has outputs and labels in place of the model's own."""
    width = compared_width(model)
    most = max(2, min(unknown.MAX_IMAGES, MAX_BYTES // width))
    train = data.train.take(unknown.spread_over_classes(_strata(data.train.labels), most).tolist())
    val = sample(data.val)
    frozen = frozen_feature_extractor(model) is not None
    with _extraction(model, input_size(model, data), engine, known, precision="auto") as run:
        features = run(train)[0][:, -width:]
        own, outputs = run(val) if len(val) else (features[:0], np.zeros((0, data.num_classes)))
    directions = unknown.as_directions(features)
    if len(val) >= MIN_VALIDATION["frozen" if frozen else "fine-tuned"]:
        found, where = unknown.neighbor_distances(own[:, -width:], directions), "validation"
    else:
        found, where = unknown.neighbor_distances(features, directions, leave_one_out=True), "training"
    scores = held_out_scores(data.task, *(held_out or (outputs, val.labels)))
    return Reference(directions, np.sort(found), where, scores)


def held_out_scores(task: str, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the conformal score of each image, ascending: the absolute error of a number, or `set_scores`."""
    if task == MULTI:
        return np.zeros(0)  # several labels have no scores
    return np.sort(np.abs(outputs[:, 0] - labels)) if task == REGRESSION else set_scores(outputs, labels)


def _strata(labels: np.ndarray) -> np.ndarray:
    """Return the class of each image, the band of its number, or the rarest of its labels."""
    if labels.ndim == 1:
        return strata_of(labels)
    rare = labels / np.maximum(1, labels.sum(axis=0))
    return np.where(labels.any(axis=1), rare.argmax(axis=1), labels.shape[1])


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
    """Yield a function that returns the features and outputs of a split; frozen layers use the cache."""
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
    evaluation: AnyEvaluation | None,
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
        scores, labels, groups = reference.scores, evaluation.labels, evaluation.groups
        if isinstance(evaluation, ValueEvaluation):
            found = measure_intervals(scores, evaluation.predictions, labels, coverage=wanted, groups=groups)
            values["prediction_intervals"] = found
        else:
            found = measure_sets(scores, evaluation.outputs, labels, coverage=wanted, groups=groups)
            values["prediction_sets"] = found
    return values


def with_interval_width(evaluation: AnyEvaluation, reference: Reference | None) -> AnyEvaluation:
    """Return an evaluation with the interval width of a reference if it is that of a regression."""
    if not isinstance(evaluation, ValueEvaluation) or reference is None:
        return evaluation
    return replace(evaluation, interval_width=reference.interval_width)


def limit_notes(values: Mapping[str, Any]) -> list[str]:
    """Return the values of `measured` as sentences; none for evaluations of earlier versions."""
    notes = []
    if "unknown" in values:
        notes.append(unknown.describe_unknown(values["unknown"]))
    if "prediction_sets" in values:
        notes.append(describe_sets(values["prediction_sets"]))
    if "prediction_intervals" in values:
        notes.append(describe_intervals(values["prediction_intervals"]))
    return notes
