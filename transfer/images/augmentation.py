"""Changes to training images, by Keras' own layers, from a seed per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transfer.common.errors import unknown

AUGMENTATIONS = ("none", "light", "standard", "strong")
"""How much training images change:

- `light`: shifted by up to 10%, half of them mirrored;
- `standard`: also zoomed, and their brightness, contrast and saturation changed;
- `strong`: shifted, zoomed, mirrored, then RandAugment and, for a quarter of them, RandomErasing.

Hues stay as they are at every level, for color is what tells many classes apart.
"""

MIXES = ("none", "mixup", "cutmix")
"""How the images of a batch are mixed, labels and all: MixUp (Zhang et al. 2018, arXiv:1710.09412) blends two
images, CutMix (Yun et al. 2019, arXiv:1905.04899) lays a piece of one on the other."""

MIXUP_ALPHA = 0.2
"""Of MixUp's Beta distribution: the least of what its authors recommend for photographs, 0.2 to 0.4."""

ERASED = 0.25
"""The share of images that `strong` erases a piece of (Zhong et al. 2020, arXiv:1708.04896, take a half)."""

RANDAUGMENT_OPS = 2
"""Changes of RandAugment per image (Cubuk et al. 2020, arXiv:1909.13719)."""


def augmentation(level: str, *, flip: bool = True) -> Callable[[Any, Any], Any]:
    """Make the function that changes a training image."""
    from keras import ops

    if level not in AUGMENTATIONS:
        raise unknown("augmentation", level, AUGMENTATIONS)
    steps = _steps(level, flip)

    def change(image: Any, seed: Any) -> Any:
        images = ops.cast(image, "float32")[None]
        for number, layers in enumerate(steps):
            images = _one_of(layers, images, _fold_in(seed, number))
        # Sampling between pixels and conversions of color may round past the ends.
        return ops.clip(images[0], 0.0, 255.0)

    return change


def mixing(kind: str, num_classes: int, *, alpha: float = MIXUP_ALPHA) -> Callable[[Any, Any, Any], Any]:
    """Make the function that mixes the images of a batch with one another, and their labels alike."""
    import keras

    ops = keras.ops
    if kind not in MIXES:
        raise unknown("mix", kind, MIXES)
    layer = {
        "none": lambda: None,
        "mixup": lambda: keras.layers.MixUp(alpha, dtype="float32"),
        "cutmix": lambda: keras.layers.CutMix((1.0, 1.0), dtype="float32"),
    }[kind]()

    def mix(images: Any, labels: Any, seed: Any) -> Any:
        images, labels = ops.cast(images, "float32"), ops.one_hot(labels, num_classes)
        if layer is None:
            return images, labels
        how = layer.get_random_transformation(images, training=True, seed=_generator(seed))
        if kind == "cutmix":  # Keras takes the area before it is rounded to pixels
            pasted = ops.mean(ops.cast(how["batch_masks"], "float32"), axis=(1, 2, 3))
            how = {**how, "mix_weight": 1.0 - pasted}
        return layer.transform_images(images, how), layer.transform_labels(labels, how)

    return mix


def _steps(level: str, flip: bool) -> list[Sequence[Any]]:
    """What is done one after the other: at each step, one of some layers, None for nothing."""
    import keras

    layers, to_edge = keras.layers, {"fill_mode": "nearest", "dtype": "float32"}
    shift = layers.RandomTranslation(0.1, 0.1, **to_edge)
    zoom = layers.RandomZoom((-0.25, 0.05), (-0.25, 0.05), **to_edge)  # below 0 is nearer: a crop
    mirror = [[layers.RandomFlip("horizontal", dtype="float32")]] if flip else []
    if level == "none":
        return []
    if level == "light":
        return [[shift], *mirror]
    if level == "standard":
        color = [
            layers.RandomBrightness(0.1, dtype="float32"),
            layers.RandomContrast(0.2, dtype="float32"),
            # The range is that of the saturation, whatever that of the pixels; 0.5 changes nothing.
            layers.RandomSaturation((0.4, 0.6), value_range=(0, 1), dtype="float32"),
        ]
        return [[zoom], [shift], *mirror, *([layer] for layer in color)]
    erase = layers.RandomErasing((1.0, 1.0), dtype="float32")
    erased = [erase] + [None] * round(1 / ERASED - 1)
    return [[zoom], [shift], *mirror, *[_randaugment()] * RANDAUGMENT_OPS, erased]


def _randaugment() -> list[Any]:
    """The changes that RandAugment chooses from, as strong as its authors have them."""
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
    """Change a batch of one image by one of the layers; the others are not computed."""
    import keras

    def branch(layer: Any) -> Callable[[], Any]:
        def change() -> Any:
            if layer is None:
                return images
            how = layer.get_random_transformation(images, training=True, seed=_generator(seed))
            return keras.ops.reshape(layer.transform_images(images, how, training=True), images.shape)

        return change

    if len(layers) == 1:
        return branch(layers[0])()
    # Of -1, from which no layer draws.
    chosen = keras.random.randint((), 0, len(layers), seed=_generator(_fold_in(seed, -1)))
    return keras.ops.switch(chosen, [branch(layer) for layer in layers])


def _fold_in(seed: Any, number: int) -> Any:
    """A seed of its own for each number."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.random.fold_in(seed, number % 2**32)
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(seed, number)


def _generator(seed: Any) -> Any:
    """Draws for one layer and image; Keras' own generator keeps a variable, which threads would race
    on."""
    import keras

    class SeedFromImage(keras.random.SeedGenerator):
        def __init__(self) -> None:
            self.draws = 0

        def next(self, ordered: bool = True) -> Any:
            self.draws += 1
            return _fold_in(seed, self.draws)

    return SeedFromImage()
