"""Figures of merit on pictures that training never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy.special import softmax
from sklearn import metrics

from transfer.cache import FeatureCache
from transfer.datasets import ImageData, Split, flips_are_safe
from transfer.errors import InputError
from transfer.features import BATCH_SIZE, check_views, extract, frozen_trunk, input_size
from transfer.pipeline import make_dataset
from transfer.shared_pass import local_copy
from transfer.workers import crew


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a split.

    Attributes:
        class_names: in the order of the labels.
        labels: true class of each picture, shape (N,).
        probabilities: the model's, shape (N, classes).
        names: what each picture is called.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]

    @property
    def predictions(self) -> np.ndarray:
        """The most probable class of each picture, shape (N,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of pictures named rightly, 0 to 1."""
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
        views: how often the model sees each picture: first as it is, then changed by `augment`, each time otherwise.
            The probabilities are their mean.
        augment: a level of `augmentation.AUGMENTATIONS`, for the views after the first.
        flip: whether augmentation mirrors pictures; None does, but where the classes are digits or letters.
        engine: what runs the frozen part, one of `engines.ENGINES`.
        cache: where its features are kept; None is the user's own cache.
        seed: of the views.

    Returns:
        The evaluation, with `accuracy`, `loss`, `confusion` and the probabilities.

    Raises:
        InputError: no such split, no pictures in it, another number of classes, or several views without
            augmentation.

    Example:
        >>> from transfer.builders import small_similar
        >>> from transfer.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> 0 <= evaluate(small_similar(base, 12), load_data("emoji"), split="val").accuracy <= 1
        True
    """
    part = getattr(data, split, None)
    if not isinstance(part, Split) or not len(part):
        raise InputError(f"Expected a split with pictures: train, val or test. Received: {split!r}.")
    if model.output_shape[-1] != data.num_classes:
        raise InputError(f"The model has {model.output_shape[-1]} classes, the data have {data.num_classes}.")
    check_views(views, augment)
    flip = flips_are_safe(data.class_names) if flip is None else flip
    options: dict[str, Any] = {"image_size": input_size(model, data), "views": views, "augment": augment}
    options |= {"flip": flip, "seed": seed, "engine": engine, "cache": cache}
    # In full precision: figures are those of the model that is saved.
    trunk, known = frozen_trunk(model), getattr(model.layers[-1], "activation", None)
    if trunk is not None and getattr(known, "__name__", "") == "softmax":
        cached = extract(trunk, part, name=f"{split} features", precision="float32", **options)
        kernel, bias = model.layers[-1].get_weights()
        probabilities = softmax(cached.load().astype("float64") @ kernel + bias, axis=1)
        probabilities = probabilities.reshape(views, len(part), -1).mean(axis=0)
    elif views > 1:
        cached = extract(model, part, name=f"{split} predictions", precision="float32", **options)
        probabilities = cached.load().astype("float64").reshape(views, len(part), -1).mean(axis=0)
    else:
        own = part.take(crew().part(len(part)).tolist())  # of several workers, each its part
        dataset = make_dataset(own, image_size=options["image_size"], batch_size=BATCH_SIZE)
        given = local_copy(model).predict(dataset, verbose=0) if len(own) else np.zeros((0, data.num_classes))
        probabilities = crew().rows(np.asarray(given, "float32")).astype("float64")
    # float32 sums miss 1 by 1e-7, of which scikit-learn would warn.
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Evaluation(data.class_names, part.labels, probabilities, tuple(part.names))
