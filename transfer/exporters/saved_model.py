"""A SavedModel that takes images as they come: of any size, or still encoded, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from transfer.common.errors import unknown
from transfer.images.decoding import RESIZES


def write_saved_model(
    model: keras.Model,
    place: Path,
    *,
    image_size: tuple[int, int],
    class_names: Sequence[str],
    resize: str = RESIZES[0],
) -> None:
    """Write a SavedModel with two signatures, `serving_default` for pixels and `encoded` for files'
    bytes."""
    if resize not in RESIZES:
        raise unknown("resize", resize, RESIZES)
    names = tf.constant(list(class_names))

    def answer(images: Any) -> dict[str, Any]:
        probabilities = tf.cast(model(images, training=False), tf.float32)
        return {
            "probabilities": probabilities,
            "classes": tf.tile(names[tf.newaxis], [tf.shape(probabilities)[0], 1]),
        }

    def from_pixels(images: Any) -> dict[str, Any]:
        return answer(fitted(images, image_size, resize=resize))

    def from_bytes(encoded: Any) -> dict[str, Any]:
        # One by one, since each may have another size.
        one = tf.TensorSpec((*image_size, 3), tf.float32)
        return answer(
            tf.map_fn(
                lambda data: fitted(decoded(data)[tf.newaxis], image_size, resize=resize)[0],
                encoded,
                fn_output_signature=one,
            )
        )

    pixels = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
    strings = tf.TensorSpec((None,), tf.string, name="encoded")
    module = tf.Module()
    # Each once: Keras' own export writes them twice.
    module.weights = [variable.value for variable in model.variables]
    signatures = {
        "serving_default": tf.function(from_pixels, [pixels], autograph=False),
        "encoded": tf.function(from_bytes, [strings], autograph=False),
    }
    plain = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # nobody trains it there
    tf.saved_model.save(module, str(place), signatures, plain)


def fitted(images: Any, size: tuple[int, int], *, resize: str = RESIZES[0]) -> Any:
    """Bring images to a size inside a graph, as `images.decode` does outside, to about one step of
    255."""
    images = tf.cast(images, tf.float32)
    if resize == "crop":
        images = _cropped(images, size)
    elif resize == "pad":
        images = _padded(images, size)
    else:
        images = tf.image.resize(images, size, antialias=True)
    return tf.ensure_shape(tf.clip_by_value(tf.round(images), 0, 255), (None, *size, 3))


def _cropped(images: Any, size: tuple[int, int]) -> Any:
    """The middle at the scale at which the image covers the size; the box may begin between two
    pixels."""
    sides = tf.cast(tf.shape(images)[1:3], tf.float32)
    scale = tf.reduce_max(size / sides)
    return tf.raw_ops.ScaleAndTranslate(
        images=images,
        size=size,
        scale=[scale, scale],
        translation=(size - sides * scale) / 2,
        kernel_type="triangle",
        antialias=True,
    )


def _padded(images: Any, size: tuple[int, int]) -> Any:
    """The whole image in the middle, black around it."""
    sides = tf.cast(tf.shape(images)[1:3], tf.float64)  # float32 would round other halves than Python does
    scale = tf.reduce_min(size / sides)
    inner = tf.maximum(1, tf.cast(tf.round(sides * scale), tf.int32))
    top, left = tf.unstack((tf.constant(size) - inner) // 2)
    small = tf.image.resize(images, inner, antialias=True)
    return tf.image.pad_to_bounding_box(small, top, left, *size)


def decoded(data: Any) -> Any:
    """Decode one image inside a graph, as `images.decode` does outside, but for two things."""
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 8) == b"\x89PNG\r\n\x1a\n"
    pixels = tf.cond(
        is_jpeg,
        # The exact transform, as Pillow's; TensorFlow's default is a fast one.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.cond(
            is_png,
            lambda: _on_white(tf.io.decode_png(data, channels=4)),
            lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
        ),
    )
    return tf.ensure_shape(pixels, (None, None, 3))


def _on_white(pixels: Any) -> Any:
    values = tf.cast(pixels, tf.float32)
    opacity = values[..., 3:] / 255
    return tf.cast(tf.round(values[..., :3] * opacity + 255 * (1 - opacity)), tf.uint8)
