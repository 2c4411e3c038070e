"""Distances to training images: an image that is far from all of them probably belongs to none of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from transfer.evaluation.prediction_sets import conformal_quantile

NEIGHBORS = 2
"""Number of nearest training images whose mean distance counts. In `tests/benchmarks/unknown.py`, the AUROC
of 1 to 3 differs by 0.4 points; 5 are worse for classes of few images."""

FALSE_ALARMS = 0.05
"""Fraction of images of the known classes that the threshold marks as unknown."""

MAX_IMAGES = 1000
"""Largest number of training images, of validation images and of test images that are compared."""

_WHOLE = 127  # the largest value of int8


def as_directions(features: np.ndarray) -> np.ndarray:
    """Return the directions of feature vectors as int8, a quarter of the size of float32."""
    largest = np.abs(features).max(axis=1, keepdims=True)
    return np.rint(features / np.where(largest > 0, largest, 1) * _WHOLE).astype("int8")


def neighbor_distances(
    features: np.ndarray, references: np.ndarray, *, leave_one_out: bool = False
) -> np.ndarray:
    """Return the mean cosine distance of each image to its nearest references, shape (N,), 0 to 2."""
    # Sun et al. (2022), arXiv:2204.06507. With `leave_one_out`, image i is reference i, and no neighbor of itself.
    apart = 1 - _units(features) @ _units(references).T
    if leave_one_out:
        np.fill_diagonal(apart, np.inf)
    count = max(1, min(NEIGHBORS, len(references) - leave_one_out))
    return np.partition(apart, count - 1, axis=1)[:, :count].mean(axis=1).astype("float64")


def _units(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype("float32")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def distance_threshold(held_out: np.ndarray, false_alarms: float = FALSE_ALARMS) -> float:
    """Return the distance above which at most this fraction of new images of the known classes lies."""
    found = conformal_quantile(held_out, 1 - false_alarms)
    # With fewer than 19 images, the largest distance has the fewest false alarms that they allow.
    return float(held_out.max()) if found is None else found


def spread_over_classes(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Choose positions of images in random order, one of each class in turn, so that small classes are included."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class, turn = np.sort(labels), np.empty(len(labels), "int64")
    turn[np.argsort(labels[order], kind="stable")] = np.arange(len(labels)) - np.searchsorted(
        by_class, by_class
    )
    return np.asarray(order[np.argsort(turn, kind="stable")][:most])


def measure_unknown(
    threshold: float, distances: np.ndarray, others: np.ndarray | None = None
) -> dict[str, Any]:
    """Count the test images that are marked as unknown; with images of no class, measure how well these are found."""
    values: dict[str, Any] = {
        "false_alarms": FALSE_ALARMS,
        "threshold": threshold,
        "num_images": len(distances),
        "num_abstained": int((distances > threshold).sum()),
    }
    if others is not None:
        from sklearn import metrics  # takes seconds to import

        truth = np.repeat([False, True], [len(distances), len(others)])
        values["num_unknown"] = len(others)
        values["num_detected"] = int((others > threshold).sum())
        values["auroc"] = float(metrics.roc_auc_score(truth, np.concatenate([distances, others])))
    return values


def describe_unknown(values: dict[str, Any]) -> str:
    """Return the counts as one or two sentences."""
    images, abstained = values["num_images"], values["num_abstained"]
    text = (
        f"Unknown: {abstained:,} of {images:,} test images ({abstained / images:.1%}) are marked as unknown; "
        f"{values['false_alarms']:.0%} are expected (--abstain)."
    )
    if "auroc" in values:
        others, found = values["num_unknown"], values["num_detected"]
        text += f" Of {others:,} images of no class, {found / others:.1%} are marked. AUROC: {values['auroc']:.3f}."
    return text
