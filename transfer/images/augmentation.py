"""Augmentation and mixing of training images by Keras layers, with a seed per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transfer.common.errors import InputError, unknown
from transfer.common.whole_numbers import at_least

AUGMENTATIONS = ("none", "light", "standard", "strong")
"""Levels of augmentation:

- `light`: shifts of up to 10%, and mirrors half of the images;
- `standard`: also zooms, and changes brightness, contrast and saturation;
- `strong`: shifts, zooms, mirrors, then applies RandAugment and, to a quarter of the images, RandomErasing.

No level changes the hue, because color distinguishes many classes.
"""

MIRROR = "mirror"
"""Level that mirrors every image, for `training.mirroring` only; it is not a level to train with."""

MIXES = ("none", "mixup", "cutmix")
"""Ways to mix the images of a batch and their labels: MixUp (Zhang et al. 2018, arXiv:1710.09412) blends two images,
CutMix (Yun et al. 2019, arXiv:1905.04899) pastes a piece of one onto the other."""

MIXUP_ALPHA = 0.2
"""Parameter of MixUp's Beta distribution; its authors recommend 0.2 to 0.4 for photographs."""

ERASED = 0.25
"""Fraction of images in which `strong` erases a rectangle; Zhong et al. (2020, arXiv:1708.04896) use 0.5."""

RANDAUGMENT_OPS = 2
"""Number of RandAugment operations per image (Cubuk et al. 2020, arXiv:1909.13719)."""


def check_views(views: int, augment: str) -> None:
    """Raise InputError if the number of views does not fit the augmentation."""
    if not at_least(1, views) or (views > 1 and augment == "none"):
        raise InputError(
            "Expected a whole number of views of at least 1, and an augmentation if views is above 1. Received: "
            f"views={views!r}, augment={augment!r}."
        )


def augmentation(level: str, *, flip: bool = True) -> Callable[[Any, Any], Any]:
    """Return a function that changes an image, shape (height, width, 3), by its seed, two integers."""
    from keras import ops

    if level == MIRROR:
        return lambda image, seed: ops.flip(ops.cast(image, "float32"), axis=1)
    if level not in AUGMENTATIONS:
        raise unknown("augmentation", level, AUGMENTATIONS)
    steps = _steps(level, flip)

    def change(image: Any, seed: Any) -> Any:
        images = ops.cast(image, "float32")[None]
        for number, layers in enumerate(steps):
            images = _one_of(layers, images, _fold_in(seed, number))
        # Interpolation and color conversions may round to values outside the range.
        return ops.clip(images[0], 0.0, 255.0)

    return change


def mixing(kind: str, num_classes: int, *, alpha: float = MIXUP_ALPHA) -> Callable[[Any, Any, Any], Any]:
    """Return a function that mixes the images and the labels of a batch by a seed; class numbers become one-hot."""
    import keras

    ops = keras.ops
    if kind not in MIXES:
        raise unknown("mix", kind, MIXES)
    kinds = {"mixup": (keras.layers.MixUp, alpha), "cutmix": (keras.layers.CutMix, (1.0, 1.0))}
    layer = None if kind == "none" else kinds[kind][0](kinds[kind][1], dtype="float32")

    def mix(images: Any, labels: Any, seed: Any) -> Any:
        images = ops.cast(images, "float32")
        if keras.backend.standardize_dtype(labels.dtype) == "float32":  # several labels, or a number
            labels = ops.reshape(labels, (-1, num_classes))
        else:
            labels = ops.one_hot(labels, num_classes, dtype="float32")
        if layer is None:
            return images, labels
        transformation = layer.get_random_transformation(images, training=True, seed=_generator(seed))
        if kind == "cutmix":  # Keras would weigh by the area before rounding to pixels
            pasted = ops.mean(ops.cast(transformation["batch_masks"], "float32"), axis=(1, 2, 3))
            transformation = {**transformation, "mix_weight": 1.0 - pasted}
        return layer.transform_images(images, transformation), layer.transform_labels(labels, transformation)

    return mix


def _steps(level: str, flip: bool) -> list[Sequence[Any]]:
    """Return the steps of a level; a step applies one of its layers, and None changes nothing."""
    import keras

    layers, to_edge = keras.layers, {"fill_mode": "nearest", "dtype": "float32"}
    shift = Shift(0.1, flip=flip)
    zoom = layers.RandomZoom((-0.25, 0.05), (-0.25, 0.05), **to_edge)  # negative values zoom in
    if level == "none":
        return []
    if level == "light":
        return [[shift]]
    if level == "standard":
        color = [
            layers.RandomBrightness(0.1, dtype="float32"),
            layers.RandomContrast(0.2, dtype="float32"),
            # `value_range` is the range of the saturation, not of the pixels; 0.5 changes nothing.
            layers.RandomSaturation((0.4, 0.6), value_range=(0, 1), dtype="float32"),
        ]
        return [[zoom], [shift], *([layer] for layer in color)]
    erase = layers.RandomErasing((1.0, 1.0), dtype="float32")
    erased = [erase] + [None] * round(1 / ERASED - 1)
    return [[zoom], [shift], *[_randaugment()] * RANDAUGMENT_OPS, erased]


class Shift:
    """Shift images by up to a fraction of their size and mirror half of them, like layers of Keras, but faster."""

    def __init__(self, fraction: float, *, flip: bool) -> None:
        self.fraction, self.flip = fraction, flip

    def get_random_transformation(self, images: Any, training: bool, seed: Any) -> Any:
        """Return three random numbers from -1 to 1: the shift along both axes, and the direction of the image."""
        import keras

        return keras.random.uniform((3,), -1.0, 1.0, "float32", seed)

    def transform_images(self, images: Any, transformation: Any, training: bool) -> Any:
        """Transform a batch of one image; edge pixels fill the empty border."""
        from keras import ops

        image = images[0]
        for axis, size in enumerate(image.shape[:2]):
            shift = transformation[axis] * self.fraction * size
            whole = ops.floor(shift)
            first = ops.arange(size, dtype="int32") - ops.cast(whole, "int32")
            if axis and self.flip:
                first = ops.where(transformation[2] < 0.0, ops.flip(first), first)
            before, after = (ops.take(image, ops.clip(first - n, 0, size - 1), axis=axis) for n in (1, 0))
            image = after + (before - after) * (shift - whole)
        return image[None]


def _randaugment() -> list[Any]:
    """Return the operations of RandAugment, with the strengths of its authors."""
    import keras

    layers, to_edge = keras.layers, {"fill_mode": "nearest", "dtype": "float32"}
    return [
        None,
        layers.RandomRotation(30 / 360, **to_edge),
        layers.RandomShear(0.3, 0.0, **to_edge),
        layers.RandomShear(0.0, 0.3, **to_edge),
        layers.RandomTranslation(0.2, 0.2, **to_edge),
        layers.RandomBrightness(0.3, dtype="float32"),
        layers.RandomContrast(0.9, dtype="float32"),
        layers.RandomColorDegeneration(1.0, dtype="float32"),
        layers.RandomSharpness(1.0, dtype="float32"),
        layers.RandomPosterization((4, 8), dtype="float32"),
        layers.Solarization(0.0, (0.0, 1.0), dtype="float32"),
        layers.AutoContrast(dtype="float32"),
        layers.Equalization(dtype="float32"),
    ]


def _one_of(layers: Sequence[Any], images: Any, seed: Any) -> Any:
    """Apply one layer, chosen at random, to a batch of one image; the others are not computed."""
    import keras

    def branch(layer: Any) -> Callable[[], Any]:
        def change() -> Any:
            if layer is None:
                return images
            transformation = layer.get_random_transformation(images, training=True, seed=_generator(seed))
            return keras.ops.reshape(
                layer.transform_images(images, transformation, training=True), images.shape
            )

        return change

    if len(layers) == 1:
        return branch(layers[0])()
    # -1 is a number that no step uses.
    chosen = keras.random.randint((), 0, len(layers), seed=_generator(_fold_in(seed, -1)))
    return keras.ops.switch(chosen, [branch(layer) for layer in layers])


def _fold_in(seed: Any, number: int) -> Any:
    """Return a new seed for each number."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.random.fold_in(seed, number % 2**32)
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(seed, number)


def _generator(seed: Any) -> Any:
    """Return a seed generator for one layer and image."""
    import keras

    # Keras' own generator keeps a variable, which would make the result depend on the order of threads.
    class SeedFromImage(keras.random.SeedGenerator):
        def __init__(self) -> None:
            self.draws = 0

        def next(self, ordered: bool = True) -> Any:
            self.draws += 1
            return _fold_in(seed, self.draws)

    return SeedFromImage()
