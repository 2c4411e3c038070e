"""Figures of merit on pictures that training never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy.special import softmax
from sklearn import metrics

from transfer.cache import FeatureCache
from transfer.datasets import ImageData, Split
from transfer.errors import InputError
from transfer.features import BATCH_SIZE, extract, frozen_trunk, input_size
from transfer.pipeline import make_dataset


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
    engine: str = "auto",
    cache: FeatureCache | None = None,
) -> Evaluation:
    """Run a model over a split and compare with the labels.

    Where only a Dense softmax head trains, the frozen rest is run as `fit` runs it, by the same engine, and what it
    gives is kept.

    Args:
        model: eats raw RGB, gives class probabilities.
        data: of `load_data`.
        split: `"train"`, `"val"` or `"test"`.
        engine: what runs the frozen part, one of `engines.ENGINES`.
        cache: where its features are kept; None is the user's own cache.

    Returns:
        The evaluation, with `accuracy`, `loss`, `confusion` and the probabilities.

    Raises:
        InputError: no such split, no pictures in it, or another number of classes.

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
    size = input_size(model, data)
    trunk = frozen_trunk(model)
    if trunk is not None and getattr(model.layers[-1].activation, "__name__", "") == "softmax":
        # In full precision: figures are those of the model that is saved.
        options: dict[str, Any] = {"engine": engine, "precision": "float32", "cache": cache}
        cached = extract(trunk, part, image_size=size, name=f"{split} features", **options)
        kernel, bias = model.layers[-1].get_weights()
        probabilities = softmax(cached.load().astype("float64") @ kernel + bias, axis=1)
    else:
        dataset = make_dataset(part, image_size=size, batch_size=BATCH_SIZE)
        probabilities = np.asarray(model.predict(dataset, verbose=0), "float64")
    # float32 sums miss 1 by 1e-7, of which scikit-learn would warn.
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Evaluation(data.class_names, part.labels, probabilities, tuple(part.names))
