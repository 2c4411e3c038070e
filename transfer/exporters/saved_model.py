"""Write a SavedModel that decodes and resizes images itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from transfer.common.errors import unknown
from transfer.common.tasks import SINGLE, output_name
from transfer.images.decoding import RESIZES
from transfer.images.pixel_range import Extent, PixelRange, range_of


def write_saved_model(
    model: keras.Model,
    place: Path,
    *,
    image_size: tuple[int, int],
    class_names: Sequence[str],
    resize: str = RESIZES[0],
    pixel_range: PixelRange | None = None,
    task: str = SINGLE,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write a SavedModel with the signatures `serving_default` (pixels) and `encoded` (bytes of image files)."""
    if resize not in RESIZES:
        raise unknown("resize", resize, RESIZES)
    constants = {"classes": tf.constant(list(class_names))}
    if thresholds is not None:
        constants["thresholds"] = tf.constant(thresholds, tf.float32)

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = tf.cast(model(images, training=False), tf.float32)
        repeated = {
            name: tf.tile(row[tf.newaxis], [tf.shape(outputs)[0], 1]) for name, row in constants.items()
        }
        return {output_name(task): outputs, **repeated}

    def from_pixels(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(resized(images, image_size, resize=resize))

    def from_bytes(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        def one(data: tf.Tensor) -> tf.Tensor:
            return resized(decoded(data, pixel_range)[tf.newaxis], image_size, resize=resize)[0]

        # Decode one image at a time, since each may have another size.
        image = tf.TensorSpec((*image_size, 3), tf.float32)
        return answer(tf.map_fn(one, encoded, fn_output_signature=image))

    pixels = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
    strings = tf.TensorSpec((None,), tf.string, name="encoded")
    module = tf.Module()
    # Keras' own export would write each variable twice.
    module.weights = [variable.value for variable in model.variables]
    signatures = {
        "serving_default": tf.function(from_pixels, [pixels], autograph=False),
        "encoded": tf.function(from_bytes, [strings], autograph=False),
    }
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # it is for inference only
    tf.saved_model.save(module, str(place), signatures, options)


def resized(images: tf.Tensor, size: tuple[int, int], *, resize: str = RESIZES[0]) -> tf.Tensor:
    """Resize images in a graph like `images.decoding`; pixels differ by at most about 1 of 255 levels."""
    images = tf.cast(images, tf.float32)
    if resize == "crop":
        images = _cropped(images, size)
    elif resize == "pad":
        images = _padded(images, size)
    else:
        images = tf.image.resize(images, size, antialias=True)
    return tf.ensure_shape(tf.clip_by_value(tf.round(images), 0, 255), (None, *size, 3))


def _cropped(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Return the center at the smallest scale that covers the size; it may begin between two pixels."""
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


def _padded(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Return the whole images, centered on black."""
    sides = tf.cast(tf.shape(images)[1:3], tf.float64)  # float32 would round some halves unlike Python
    scale = tf.reduce_min(size / sides)
    inner = tf.maximum(1, tf.cast(tf.round(sides * scale), tf.int32))
    top, left = tf.unstack((tf.constant(size) - inner) // 2)
    small = tf.image.resize(images, inner, antialias=True)
    return tf.image.pad_to_bounding_box(small, top, left, *size)


def decoded(data: tf.Tensor, pixel_range: PixelRange | None = None) -> tf.Tensor:
    """Decode one image in a graph, as `images.decoding` does, but without EXIF rotation and newer formats."""
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 8) == b"\x89PNG\r\n\x1a\n"
    pixels = tf.cond(
        is_jpeg,
        # Use the exact transform, as Pillow does; TensorFlow's default is faster and less exact.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.cond(
            is_png,
            lambda: _decoded_png(data, pixel_range),
            lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
        ),
    )
    return tf.ensure_shape(pixels, (None, None, 3))


def _decoded_png(data: tf.Tensor, pixel_range: PixelRange | None) -> tf.Tensor:
    """Decode a PNG of 8 or 16 bits per channel, which its 25th byte tells."""

    def of_16_bits() -> tf.Tensor:
        values = tf.cast(tf.io.decode_png(data, channels=4, dtype=tf.uint16), tf.float32)
        colors, opacity = values[..., :3], values[..., 3:]
        low, high = _range_in_graph(tf.reduce_max(colors), pixel_range)
        shown = tf.round(tf.clip_by_value((colors - low) * 255 / (high - low), 0, 255))
        return _on_white(tf.concat([shown, opacity * 255 / 65535], axis=-1))

    return tf.cond(
        tf.strings.substr(data, 24, 1) == b"\x10",
        of_16_bits,
        lambda: _on_white(tf.io.decode_png(data, channels=4)),
    )


def _range_in_graph(highest: tf.Tensor, pixel_range: PixelRange | None) -> tuple[float, tf.Tensor]:
    """Return the lowest and the highest value of the range, as `images.pixel_range` finds it."""
    if pixel_range is not None:
        tops = [255.0, pixel_range.high] if pixel_range.dark_as_8_bit else [pixel_range.high]
    else:
        tops = sorted({range_of(Extent(0.0, 2.0**bits - 1, True)).high for bits in range(1, 17)})
    tops = tf.constant(tops, tf.float32)
    fitting = tf.where(tops >= highest, tops, tops[-1])
    return (pixel_range.low if pixel_range else 0.0), tf.reduce_min(fitting)


def _on_white(pixels: tf.Tensor) -> tf.Tensor:
    """Blend transparent pixels with white."""
    values = tf.cast(pixels, tf.float32)
    opacity = values[..., 3:] / 255
    return tf.cast(tf.round(values[..., :3] * opacity + 255 * (1 - opacity)), tf.uint8)
