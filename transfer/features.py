"""One forward pass over the pictures: what a frozen network makes of them, computed once."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from tqdm.auto import tqdm

from transfer.datasets import ImageData, Split
from transfer.errors import InputError
from transfer.pipeline import make_dataset

BATCH_SIZE = 32
"""Pictures per step of the forward pass; more is no faster on a CPU and costs memory."""


def extract(
    trunk: keras.Model,
    split: Split,
    *,
    image_size: tuple[int, int],
    batch_size: int = BATCH_SIZE,
    name: str = "features",
) -> np.ndarray:
    """Run a network once over the pictures of a split, in inference mode.

    Args:
        trunk: a model that eats raw RGB, 0 to 255.
        split: the pictures.
        image_size: height and width in pixels.
        batch_size: pictures per step.
        name: what the progress bar is called.

    Returns:
        float32 array of the trunk's outputs, in the split's order.

    Example:
        >>> from transfer.datasets import load_data
        >>> trunk = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()])
        >>> extract(trunk, load_data("emoji").val.take(range(5)), image_size=(32, 32)).shape
        (5, 3)
    """
    if not len(split):
        return np.zeros((0, *trunk.output_shape[1:]), "float32")
    dataset = make_dataset(split, image_size=image_size, batch_size=batch_size)
    with _Bar(len(split), batch_size, name) as bar:
        return np.asarray(trunk.predict(dataset, verbose=0, callbacks=[bar]), "float32")


def input_size(model: keras.Model, data: ImageData) -> tuple[int, int]:
    """Say at what size a model is to see the pictures.

    Args:
        model: a built model.
        data: the data.

    Returns:
        Height and width: the data's own where they were asked for, else the model's.

    Raises:
        InputError: the two differ, or neither is known.

    Example:
        >>> from transfer.datasets import load_data
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
        >>> input_size(model, load_data("emoji"))
        (32, 32)
    """
    height, width = model.input_shape[1:3]
    if height is None or width is None:
        if data.image_size is None:
            raise InputError(f"{model.name!r} takes any size. Say which: load_data(..., image_size=224).")
        return data.image_size
    if data.image_size not in (None, (height, width)):
        raise InputError(
            f"The model takes pictures of {height}x{width}, the data were asked for at "
            f"{data.image_size[0]}x{data.image_size[1]}. Leave image_size out of load_data, or build the model "
            "for that size."
        )
    return height, width


class _Bar(keras.callbacks.Callback):
    """A tqdm bar that counts pictures, so that its rate can be compared."""

    def __init__(self, total: int, batch_size: int, name: str) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.bar = tqdm(total=total, desc=name, unit=" pictures", leave=False)

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.bar.update(min(self.batch_size, self.bar.total - self.bar.n))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
