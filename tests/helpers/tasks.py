"""Small images with several labels or with a number, which a tiny network can learn."""

from __future__ import annotations

import functools

import numpy as np

from transfer.images.datasets import ImageData, load_data


def stripes(count: int = 90, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images and their labels, shape (images, 3): which of three stripes have a bright color."""
    draw = np.random.default_rng(seed)
    labels = (draw.random((count, 3)) < [0.25, 0.5, 0.4]).astype("int8")
    images = draw.integers(0, 90, (count, 32, 32, 3)).astype("uint8")
    for color in range(3):
        images[labels[:, color] == 1, 2 + 10 * color : 10 + 10 * color, :, color] = 200
    return images, labels


def brightness(count: int = 90, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images and the brightness of each, shape (images,)."""
    draw = np.random.default_rng(seed)
    values = draw.uniform(20, 200, count)
    noise = draw.normal(0, 30, (count, 32, 32, 3))
    return np.clip(values[:, None, None, None] + noise, 0, 255).astype("uint8"), values


@functools.cache
def task_data(task: str, factor: float = 1.0, offset: float = 0.0) -> ImageData:
    """Return images of a task with validation and test images; values are scaled and shifted."""
    images, labels = stripes() if task == "multi" else brightness()
    labels = labels if task == "multi" else factor * labels + offset
    return load_data((images, labels), task=task, val=0.2, test=0.2, near_duplicates=False)
