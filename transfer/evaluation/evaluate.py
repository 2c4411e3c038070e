"""Figures of merit on images, in the main on those that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
from scipy.special import softmax
from sklearn import metrics

from transfer.common.errors import InputError
from transfer.distributed.process_group import current_group
from transfer.evaluation.metrics import (
    Calibration,
    ClassScore,
    Confused,
    accuracy_interval,
    calibration,
    class_scores,
    confused_pairs,
    fit_temperature,
    top_k,
)
from transfer.frozen.extraction import BATCH_SIZE, check_views, extract, frozen_feature_extractor, input_size
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.shared_pass import local_copy
from transfer.images.datasets import ImageData, Split, flips_are_safe
from transfer.images.pipeline import make_dataset

MOST_CONFUSED = 10
"""Pairs of classes that are listed."""

FEWEST_TO_CALIBRATE = 30
"""Images for validation from which on a temperature is fitted: of fewer, the few wrong ones alone would set it."""


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a split.

    Attributes:
        class_names: in the order of the labels.
        labels: true class of each image, shape (N,).
        probabilities: the model's, shape (N, classes).
        names: what each image is called.
        groups: of each image, such as its patient; empty where there are none.
        seen: how many of the images were trained or validated on.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]
    groups: Sequence[str] = ()
    seen: int = 0

    @property
    def predictions(self) -> np.ndarray:
        """The most probable class of each image, shape (N,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of images named rightly, 0 to 1."""
        return float(metrics.accuracy_score(self.labels, self.predictions))

    @property
    def loss(self) -> float:
        """Mean negative log probability of the true class, in nats."""
        every_class = list(range(len(self.class_names)))
        return float(metrics.log_loss(self.labels, self.probabilities, labels=every_class))

    @property
    def confusion(self) -> np.ndarray:
        """Counts of shape (classes, classes): rows are true classes, columns predicted ones."""
        every_class = range(len(self.class_names))
        return metrics.confusion_matrix(self.labels, self.predictions, labels=list(every_class))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Between what the accuracy lies with 95% confidence, by the bootstrap over images, or over groups."""
        return accuracy_interval(self.labels == self.predictions, groups=self.groups)

    def top_k(self, k: int) -> float:
        """Share of images whose class is among the `k` most probable ones, 0 to 1."""
        return top_k(self.labels, self.probabilities, k)

    @cached_property
    def by_class(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of each class."""
        return class_scores(self.labels, self.predictions, self.class_names)

    @property
    def macro(self) -> ClassScore:
        """Their means, in which every class that has images counts the same."""
        there = [one for one in self.by_class if one.images]
        precision, recall, f1 = (float(np.mean([one[i] for one in there])) for i in (1, 2, 3))
        return ClassScore("mean of classes", precision, recall, f1, len(self.labels))

    @cached_property
    def calibration(self) -> Calibration:
        """Confidence against accuracy, and the expected calibration error."""
        return calibration(self.labels, self.probabilities)

    @property
    def confused(self) -> tuple[Confused, ...]:
        """Which classes are taken for which, the most frequent first."""
        return confused_pairs(self.confusion, self.class_names)

    @property
    def mistakes(self) -> np.ndarray:
        """Positions of the images that are named wrongly, the surest mistakes first."""
        wrong = np.flatnonzero(self.labels != self.predictions)
        return wrong[np.argsort(self.probabilities[wrong, self.labels[wrong]], kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Give the figures, for programs."""
        macro, most = self.macro, range(1, min(5, len(self.class_names)) + 1)
        return {
            "num_images": len(self.labels),
            "num_seen": self.seen,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "top_k": {str(k): self.top_k(k) for k in most},
            "log_loss": self.loss,
            "calibration_error": self.calibration.error,
            "macro": {"precision": macro.precision, "recall": macro.recall, "f1": macro.f1},
            "classes": [one._asdict() for one in self.by_class],
            "confused": [one._asdict() for one in self.confused[:MOST_CONFUSED]],
        }

    def to_text(self) -> str:
        """Give the figures as lines for people."""
        low, high = self.interval
        k = min(5, len(self.class_names) - 1)
        unit = f"groups of {len(self.labels):,} images" if len(self.groups) else "images"
        count = len(set(self.groups)) if len(self.groups) else len(self.labels)
        lines = [
            f"Accuracy {self.accuracy:.1%}, {low:.1%} to {high:.1%} with 95% confidence, on {count:,} {unit}",
            *(
                [f"Figures flatter: {self.seen:,} of the images were trained or validated on"]
                if self.seen
                else []
            ),
            *([f"Among the {k} most probable classes: {self.top_k(k):.1%}"] if k > 1 else []),
            f"Log loss {self.loss:.3f}; calibration error {self.calibration.error:.3f} (0 is perfect)",
            "",
        ]
        width = max(len(one.name) for one in (*self.by_class, self.macro))
        lines.append(f"{'':{width}} {'precision':>10} {'recall':>8} {'F1':>8} {'images':>9}")
        lines += [
            f"{one.name:{width}} {one.precision:>10.1%} {one.recall:>8.1%} {one.f1:>8.1%} {one.images:>9,}"
            for one in (*self.by_class, self.macro)
        ]
        if self.confused:
            lines += ["", "Most often taken for another:"]
            lines += [
                f"  {c.label} for {c.predicted}: {c.images:,} ({c.share:.0%})" for c in self.confused[:5]
            ]
        return "\n".join([*lines, ""])


def evaluate(
    model: keras.Model,
    data: ImageData,
    *,
    split: str = "test",
    views: int = 1,
    augment: str = "none",
    flip: bool | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
) -> Evaluation:
    """Run a model over a split and compare with the labels.

    Where only a Dense softmax head trains, the frozen rest is run as `fit` runs it, by the same engine, and what it
    gives is kept.

    Args:
        model: eats raw RGB, gives class probabilities.
        data: of `load_data`.
        split: `"train"`, `"val"` or `"test"`.
        views: how often the model sees each image: first as it is, then changed by `augment`, each time otherwise.
            The probabilities are their mean.
        augment: a level of `augmentation.AUGMENTATIONS`, for the views after the first.
        flip: whether augmentation mirrors images; None does, but where the classes are digits or letters.
        engine: what runs the frozen part, one of `engines.ENGINES`.
        cache: where its features are kept; None is the user's own cache.
        seed: of the views.

    Returns:
        The evaluation, with `accuracy`, `loss`, `confusion` and the probabilities.

    Raises:
        InputError: no such split, no images in it, another number of classes, or several views without
            augmentation.

    Example:
        >>> from transfer.cases.builders import small_similar
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> 0 <= evaluate(small_similar(base, 12), load_data("emoji"), split="val").accuracy <= 1
        True
    """
    part = getattr(data, split, None)
    if not isinstance(part, Split) or not len(part):
        raise InputError(f"Expected a split with images: train, val or test. Received: {split!r}.")
    if model.output_shape[-1] != data.num_classes:
        raise InputError(f"The model has {model.output_shape[-1]} classes, the data have {data.num_classes}.")
    check_views(views, augment)
    flip = flips_are_safe(data.class_names) if flip is None else flip
    options: dict[str, Any] = {"image_size": input_size(model, data), "views": views, "augment": augment}
    options |= {"flip": flip, "seed": seed, "engine": engine, "cache": cache}
    # In full precision: figures are those of the model that is saved.
    extractor, known = frozen_feature_extractor(model), getattr(model.layers[-1], "activation", None)
    if extractor is not None and getattr(known, "__name__", "") == "softmax":
        cached = extract(extractor, part, name=f"{split} features", precision="float32", **options)
        kernel, bias = model.layers[-1].get_weights()
        probabilities = softmax(cached.load().astype("float64") @ kernel + bias, axis=1)
        probabilities = probabilities.reshape(views, len(part), -1).mean(axis=0)
    elif views > 1:
        cached = extract(model, part, name=f"{split} predictions", precision="float32", **options)
        probabilities = cached.load().astype("float64").reshape(views, len(part), -1).mean(axis=0)
    else:
        own = part.take(current_group().part(len(part)).tolist())  # of several workers, each its part
        dataset = make_dataset(own, image_size=options["image_size"], batch_size=BATCH_SIZE)
        given = local_copy(model).predict(dataset, verbose=0) if len(own) else np.zeros((0, data.num_classes))
        probabilities = current_group().rows(np.asarray(given, "float32")).astype("float64")
    # float32 sums miss 1 by 1e-7, of which scikit-learn would warn.
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    seen = 0 if split == "test" else len(part)
    names, groups = tuple(part.names), tuple(part.groups)
    return Evaluation(data.class_names, part.labels, probabilities, names, groups, seen)


def check_calibration(data: ImageData) -> None:
    """Refuse data with too few images for validation to calibrate on; better before the training than
    after."""
    if len(data.val) < FEWEST_TO_CALIBRATE:
        raise InputError(
            f"Expected {FEWEST_TO_CALIBRATE} images for validation or more, to fit a temperature on. Received: "
            f"{len(data.val)}. Set more aside with val=..., or leave the probabilities as they are."
        )


def calibrate(model: keras.Model, data: ImageData, **options: Any) -> float:
    """Make a model's probabilities honest, by a temperature that is fitted on the validation images.

    The head's weights are divided by it: which class is the most probable stays, and so does the model's form.

    Args:
        model: ends in a Dense softmax; the weights of that are changed.
        data: of `load_data`, with images for validation.
        options: of `evaluate`.

    Returns:
        The temperature: above 1 where the model was too sure.

    Raises:
        InputError: no Dense softmax at the end, or too few images for validation.

    Example:
        >>> from transfer.cases.builders import small_similar
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> calibrate(small_similar(base, 12), load_data("emoji")) > 0
        True
    """
    head = model.layers[-1]
    if not isinstance(head, keras.layers.Dense) or head.activation is not keras.activations.softmax:
        raise InputError(
            f"Expected a model that ends in a Dense softmax. Received: {head.name!r} at its end."
        )
    check_calibration(data)
    found = evaluate(model, data, split="val", **options)
    temperature = fit_temperature(found.labels, found.probabilities)
    head.set_weights([weights / temperature for weights in head.get_weights()])
    return temperature
