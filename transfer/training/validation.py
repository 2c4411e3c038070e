"""Validate after each epoch where Keras' own validation cannot: metrics of all images, or a part for each process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from transfer.distributed.process_group import current_group
from transfer.distributed.strategies import on_tensorflow
from transfer.frozen.shared_pass import BATCH_SIZE
from transfer.images.pipeline import make_dataset
from transfer.images.splitting import Split
from transfer.networks import surgery

Measurement = Callable[[np.ndarray], dict[str, float]]
"""Returns the loss and the metrics of the predictions of all validation images."""


class Validation(keras.callbacks.Callback):
    """Add `val_loss` and `val_` metrics to the logs of each epoch, for the callbacks after this one."""

    def __init__(self, measure: Measurement, predict: Callable[[keras.Model], np.ndarray]) -> None:
        super().__init__()
        self.measure, self.predict = measure, predict

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Predict all validation images with the present weights."""
        values = self.measure(self.predict(self.model))
        if logs is not None:
            logs |= {f"val_{name}": value for name, value in values.items()}


class PartPrediction:
    """Predict a split with a copy of a model on one device; each process predicts its part of the images."""

    def __init__(self, model: keras.Model, split: Split, image_size: tuple[int, int]) -> None:
        own = split.take(current_group().own_part(len(split)).tolist())
        self.batches = make_dataset(own, image_size=image_size, batch_size=BATCH_SIZE, cache=True)
        self.copy = surgery.clone(model)

    def __call__(self, model: keras.Model) -> np.ndarray:
        """Return the predictions for all images of the split, with the weights of a model of the same layers."""
        self.copy.set_weights(model.get_weights())
        own = [self._run(np.asarray(x)) for x, _ in self.batches]
        return current_group().gather(
            np.concatenate(own) if own else np.zeros((0, self.copy.output_shape[-1]), "float32")
        )

    def _run(self, images: np.ndarray) -> np.ndarray:
        if on_tensorflow():  # `predict_on_batch` would run all images on each device
            return np.asarray(keras.ops.convert_to_numpy(self.copy(images, training=False)))
        return np.asarray(self.copy.predict_on_batch(images))


def measure_classes(
    probabilities: np.ndarray, labels: np.ndarray, smoothing: float = 0.0
) -> dict[str, float]:
    """Return the loss and the accuracy of predictions of classes."""
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    return {"accuracy": accuracy, "loss": cross_entropy(probabilities, labels, smoothing)}


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    """Return the mean cross-entropy in nats, with label smoothing, as Keras computes it."""
    logs = np.log(np.clip(probabilities.astype("float64"), 1e-7, 1 - 1e-7))
    own = logs[np.arange(len(labels)), labels]
    return float(-((1 - smoothing) * own + smoothing * logs.mean(axis=1)).mean())
