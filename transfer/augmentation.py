"""Changes to training pictures, by Keras' own layers, from a seed per picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

AUGMENTATIONS = ("none", "light")
"""The names of the levels; `light` is the function below."""


def light(*, flip: bool = True) -> Callable[[Any, Any], Any]:
    """Make the light augmentation: half the pictures mirrored, all shifted by up to 10%.

    Args:
        flip: also mirror left-right; wrong for letters and digits.

    Returns:
        A function of an image (height, width, 3) and a seed (two int32), for use in `tf.data`: the same
        seed always makes the same change, on any number of threads.

    Example:
        >>> import numpy as np
        >>> light()(np.zeros((32, 32, 3), "uint8"), np.array([1, 2], "int32")).shape
        TensorShape([32, 32, 3])
    """
    import keras
    import tensorflow as tf

    class SeedFromPicture(keras.random.SeedGenerator):
        """Draws from the picture's own seed; Keras' generator keeps a variable, which threads would race on."""

        def __init__(self, seed: Any) -> None:
            self.picture_seed, self.draws = seed, 0

        def next(self, ordered: bool = True) -> Any:
            self.draws += 1
            return tf.random.experimental.stateless_fold_in(self.picture_seed, self.draws)

    layers = [keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")]
    if flip:
        layers.append(keras.layers.RandomFlip("horizontal"))

    def change(image: Any, seed: Any) -> Any:
        generator = SeedFromPicture(seed)
        image = tf.cast(image, tf.float32)
        for layer in layers:
            how = layer.get_random_transformation(image, training=True, seed=generator)
            image = layer.transform_images(image, how, training=True)
        return image

    return change
