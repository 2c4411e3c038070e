"""Validate after each epoch where Keras' own validation cannot: each process predicts its part of the images."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from transfer.distributed.process_group import current_group
from transfer.frozen.shared_pass import BATCH_SIZE
from transfer.images.pipeline import make_dataset
from transfer.images.splitting import Split
from transfer.networks import surgery


class Validation(keras.callbacks.Callback):
    """Add `val_loss` and `val_accuracy` to the logs of each epoch, for the callbacks after this one."""

    def __init__(
        self, model: keras.Model, val: Split, image_size: tuple[int, int], label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.labels, self.smoothing = val.labels, label_smoothing
        own = val.take(current_group().own_part(len(val)).tolist())
        self.batches = make_dataset(own, image_size=image_size, batch_size=BATCH_SIZE, cache=True)
        self.copy = surgery.clone(model)  # runs on one device

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Predict all validation images with the present weights."""
        self.copy.set_weights(self.model.get_weights())
        own = [np.asarray(self.copy.predict_on_batch(np.asarray(x))) for x, _ in self.batches]
        probabilities = current_group().gather(
            np.concatenate(own) if own else np.zeros((0, self.copy.output_shape[-1]), "float32")
        )
        if logs is not None:
            logs["val_accuracy"] = float((probabilities.argmax(axis=1) == self.labels).mean())
            logs["val_loss"] = cross_entropy(probabilities, self.labels, self.smoothing)


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    """Return the mean cross-entropy in nats, with label smoothing, as Keras computes it."""
    logs = np.log(np.clip(probabilities.astype("float64"), 1e-7, 1 - 1e-7))
    own = logs[np.arange(len(labels)), labels]
    return float(-((1 - smoothing) * own + smoothing * logs.mean(axis=1)).mean())
