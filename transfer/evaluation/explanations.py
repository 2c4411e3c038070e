"""Explanations of a model: Grad-CAM, occlusion maps, and the strongest responses of filters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from PIL import Image

from transfer.common.arguments import explain_arguments
from transfer.common.display import one_line
from transfer.common.errors import InputError
from transfer.common.text import plural
from transfer.networks.gradients import (
    ClassifierHead,
    find_feature_map,
    gradient_at,
    head_of,
    receptive_fields,
    run,
    shown_layers,
    unnested,
)
from transfer.networks.graphs import Node
from transfer.networks.tokens import as_maps

MIN_CELLS = 5
"""Height or width in cells below which a Grad-CAM map is coarse: it cannot show which part of an object matters."""

_MIN_CROP = 8  # pixels; a smaller crop shows only a color


@explain_arguments()
def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    *,
    classes: int | Sequence[int] | np.ndarray | None = None,
    layer: str | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Compute heat maps of the image regions that support a class (Grad-CAM).

    Following Selvaraju et al. (2017), arXiv:1610.02391, each channel of a layer is weighted by the gradient of the
    class's logit, averaged over positions. The heat map is the positive part of the weighted sum, resized to the image.
    The logit is used because the gradient of the probability vanishes where the model is confident.

    Args:
        model: takes raw RGB images and returns a value for each class or label, one value for the second of two
            classes, or the number of a regression. A nested base model is supported. The model is not changed.
        images: RGB images, shape (N, height, width, 3), 0 to 255, uint8 or float.
        classes: class index of each image, or one for all. None is the predicted class, or the most probable of several
            labels. For a regression, 1 explains what raises the number, and 0 what lowers it.
        layer: name of the layer to explain, also inside a nested model. None is the last layer with feature maps.
        batch_size: images per batch.

    Returns:
        Heat maps, float32 array of shape (N, height, width). The maximum of each map is 1; a map is all 0 if nothing
        supports the class.

    Raises:
        InputError: the layer or class is unknown, the layer has no feature maps, the images have the wrong shape or
            type, or the model returns NaN.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(64, 64, 3))
        >>> grad_cam(base, np.zeros((2, 64, 64, 3))).shape
        (2, 64, 64)
    """
    nodes = unnested(model)
    head, images = head_of(nodes), _check_images(model, nodes, images)
    index = find_feature_map(nodes, layer)
    wanted = _check_classes(classes, len(images), head.classes)
    heat = np.zeros(images.shape[:3], "float32")
    for part in _batches(len(images), batch_size):
        values = run(nodes, {0: _tensor(images[part])}, last=index)
        chosen = None if wanted is None else wanted[part]
        _draw_heat(heat[part], model, nodes, values, index, chosen)
    return _scaled(heat)


def _draw_heat(
    heat: np.ndarray,
    model: keras.Model,
    nodes: Sequence[Node],
    values: dict[int, Any],
    index: int,
    wanted: np.ndarray | None,
) -> None:
    """Fill in the heat maps of a batch from its feature maps."""
    head = head_of(nodes)

    def score(maps: Any) -> tuple[Any, Any]:
        logits = head.logits(run(nodes, {**values, index: maps}, last=head.position)[head.position])
        chosen = keras.ops.argmax(logits, axis=-1) if wanted is None else wanted
        return keras.ops.sum(logits * keras.ops.one_hot(chosen, head.classes, dtype="float32")), logits

    gradient, logits = gradient_at(score, values[index])
    _require_finite(model, logits)
    slopes, maps = (as_maps(nodes, keras.ops.cast(x, "float32")) for x in (gradient, values[index]))
    sums = keras.ops.sum(maps * keras.ops.mean(slopes, axis=(1, 2), keepdims=True), axis=-1)
    for row, small in zip(heat, _numpy(keras.ops.relu(sums)), strict=True):
        row[:] = Image.fromarray(small).resize(row.shape[::-1], Image.Resampling.BILINEAR)


def _scaled(heat: np.ndarray) -> np.ndarray:
    """Divide each heat map by its maximum."""
    highest = heat.max(axis=(1, 2), keepdims=True, initial=0)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


def map_note(model: keras.Model, size: tuple[int, int]) -> str:
    """Describe the feature map behind Grad-CAM for images of a height and width, with a caveat for a coarse one."""
    nodes = unnested(model)
    index, joined = find_feature_map(nodes), nodes[head_of(nodes).position]
    shape = nodes[index].tensor.shape
    if None in shape[1:3] or len(shape) == 3:
        shape = as_maps(nodes, run(nodes, {0: _tensor(np.zeros((1, *size, 3)))}, last=index)[index]).shape
    text = f"Grad-CAM map of {shape[1]} x {shape[2]} cells"
    if isinstance(joined.op, keras.layers.Concatenate):
        text += f", of the last of {len(joined.parents)} layers that the head sees"
    if isinstance(joined.op, keras.layers.Average):
        text += f", of one of {len(joined.parents)} averaged models"
    return text + (": coarse, do not interpret its details" if min(shape[1:3]) < MIN_CELLS else "")


@explain_arguments()
def occlusion(
    model: keras.Model,
    images: np.ndarray,
    *,
    classes: int | Sequence[int] | np.ndarray | None = None,
    patch: int | None = None,
    stride: int | None = None,
    fill: float | Sequence[float] | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Compute occlusion maps: the drop in the probability of a class when a patch of the image is hidden.

    The method is that of Zeiler and Fergus (2014), arXiv:1311.2901. The model runs on about fifty occluded copies of
    each image. Since the map does not use gradients, it is an independent check of Grad-CAM.

    Args:
        model: model as for `grad_cam`.
        images: RGB images, shape (N, height, width, 3), 0 to 255, uint8 or float.
        classes: class index of each image, or one for all. None is the predicted class.
        patch: side of the square patch in pixels. None is a quarter of the image's shorter side.
        stride: pixels between patches, 1 to `patch`. None is half of `patch`.
        fill: color of the patch, a gray value or RGB, 0 to 255. None is the mean color of each image.
        batch_size: images per batch.

    Returns:
        float32 array of shape (N, height, width), -1 to 1: the drop in the probability, averaged over the patches that
        cover a pixel. It is negative where hiding a region raises the probability.

    Raises:
        InputError: the class is unknown, the patch, stride or color is out of range, the images have the wrong shape
            or type, or the model returns NaN.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> occlusion(base, np.zeros((1, 32, 32, 3)), patch=16).shape
        (1, 32, 32)
    """
    nodes = unnested(model)
    head, images = head_of(nodes), _check_images(model, nodes, images)
    size = images.shape[1:3]
    patch = max(1, min(size) // 4) if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if not 1 <= stride <= patch <= min(size):
        raise InputError(
            f"Expected 1 <= stride <= patch <= {min(size)} (the image's shorter side), so that patches cover every "
            f"pixel. Received: patch={patch!r}, stride={stride!r}."
        )
    colors = _fill_colors(images, fill)
    wanted = _check_classes(classes, len(images), head.classes)
    unhidden = _probabilities(model, nodes, head, images, batch_size)
    chosen = unhidden.argmax(axis=1) if wanted is None else wanted
    starts = [
        [*range(0, side - patch, stride), side - patch] for side in size
    ]  # the last patch ends at the edge
    pairs = list(itertools.product(range(len(images)), *starts))
    falls, covered = np.zeros((2, *images.shape[:3]), "float32")
    for part in _batches(len(pairs), batch_size):
        hidden = images[[image for image, _, _ in pairs[part]]].astype("float32")
        for copy, (image, y, x) in zip(hidden, pairs[part], strict=True):
            copy[y : y + patch, x : x + patch] = colors[image]
        rows = _probabilities(model, nodes, head, hidden, batch_size)
        for row, (image, y, x) in zip(rows, pairs[part], strict=True):
            area = (image, slice(y, y + patch), slice(x, x + patch))
            falls[area] += unhidden[image, chosen[image]] - row[chosen[image]]
            covered[area] += 1
    return falls / np.maximum(covered, 1)


def agreement(first: np.ndarray, second: np.ndarray, *, grid: int = 7) -> float:
    """Return Spearman's rank correlation of two heat maps on a coarse grid; 0 if one of them is constant."""
    from scipy.stats import spearmanr  # takes most of a second to import

    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if first.ndim != 2 or first.shape != second.shape or not first.size:
        raise InputError(
            "Expected two maps of the same image, with the same shape (height, width). Received: "
            f"{first.shape} and {second.shape}."
        )
    one, two = _cell_means(first, grid), _cell_means(second, grid)
    if np.ptp(one) <= 1e-12 * np.abs(one).max() or np.ptp(two) <= 1e-12 * np.abs(two).max():
        return 0.0
    return round(float(np.nan_to_num(spearmanr(one, two).statistic)), 12)


@dataclass(frozen=True, eq=False)
class Response:
    """The image regions to which one filter of a layer responds most."""

    layer: str
    filter: int  # index of the channel
    field: float  # side of the layer's receptive field in pixels
    images: tuple[int, ...]
    strengths: tuple[float, ...]
    places: tuple[tuple[int, int], ...]  # (row, column) in pixels, the center of each region
    crops: tuple[np.ndarray, ...]  # uint8 arrays of shape (side, side, 3) around these centers

    def __repr__(self) -> str:
        return one_line(self, f"filter {self.filter} of {self.layer!r}, {plural(len(self.crops), 'image')}")


@explain_arguments()
def strongest_responses(
    model: keras.Model,
    images: np.ndarray,
    *,
    layers: Sequence[str] | None = None,
    filters: int = 6,
    count: int = 5,
    batch_size: int = 32,
) -> list[Response]:
    """Find the image regions to which filters of some layers respond most.

    The method is that of Zeiler and Fergus (2014), arXiv:1311.2901, without the projection back to pixels. Filters are
    ranked by how many standard deviations their strongest responses are above their mean. Filters with a standard
    deviation below half the layer's median are skipped. Filters that mostly share their images with higher-ranked
    filters come last.

    Args:
        model: model as for `grad_cam`.
        images: RGB images, shape (N, height, width, 3), 0 to 255; some hundreds are better than a few.
        layers: names of layers. None is `shown_layers(model)`.
        filters: maximum number of filters per layer.
        count: maximum number of images per filter; each image contributes its strongest position.
        batch_size: images per batch.

    Returns:
        The responses of each layer in turn, the highest-ranked filter first.

    Raises:
        InputError: a layer is unknown or has no feature maps, or the images have the wrong shape or type.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> noise = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3))
        >>> [response] = strongest_responses(base, noise, layers=["Conv1_relu"], filters=1, count=3)
        >>> response.layer, len(response.crops), response.crops[0].shape
        ('Conv1_relu', 3, (8, 8, 3))
    """
    _, responses = explain(
        model, images, 0, layers=layers, filters=filters, count=count, batch_size=batch_size
    )
    return responses


def explain(
    model: keras.Model,
    images: np.ndarray,
    mapped: int,
    *,
    classes: np.ndarray | None = None,
    layers: Sequence[str] | None = None,
    filters: int = 6,
    count: int = 5,
    batch_size: int = 16,
) -> tuple[np.ndarray, list[Response]]:
    """Return Grad-CAM maps of the first `mapped` images, and the strongest responses to all images, in one pass."""
    nodes = unnested(model)
    images, fields = _check_images(model, nodes, images), receptive_fields(nodes)
    indices = [find_feature_map(nodes, name) for name in (shown_layers(model) if layers is None else layers)]
    heat = np.zeros((mapped, *images.shape[1:3]), "float32")
    if not len(images) or not indices:
        return heat, []
    last = find_feature_map(nodes) if mapped else max(indices)
    maxima = {index: _Maxima(nodes[index].op.name, fields[index].size, count) for index in indices}
    for part in _batches(len(images), batch_size):
        values = run(nodes, {0: _tensor(images[part])}, last=max(last, *indices), keep=[*indices, last])
        for index, of_layer in maxima.items():
            of_layer.add(_numpy(as_maps(nodes, values[index])))
        if part.start < mapped:
            first = {place: value[: mapped - part.start] for place, value in values.items()}
            _draw_heat(heat[part], model, nodes, first, last, None if classes is None else classes[part])
    return _scaled(heat), [
        response for of_layer in maxima.values() for response in of_layer.responses(images, filters)
    ]


class _Maxima:
    """The strongest response of each filter of a layer to each image, and its position in the strongest images."""

    def __init__(self, layer: str, field: float, count: int) -> None:
        self.layer, self.field, self.count, self.size = layer, field, count, (1, 1)
        self.values: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []

    def add(self, maps: np.ndarray) -> None:
        """Add the feature maps of a batch, shape (batch, height, width, filters)."""
        self.size = maps.shape[1:3]
        flat = maps.reshape(len(maps), -1, maps.shape[-1])
        values = flat.max(axis=1)
        # `argmax` over an inner axis is slow: search only in the images that may be shown.
        best = np.argsort(-values, axis=0, kind="stable")[: self.count]
        positions = np.zeros(values.shape, "int64")
        np.put_along_axis(positions, best, flat[best, :, np.arange(flat.shape[-1])].argmax(axis=-1), axis=0)
        self.values.append(values)
        self.positions.append(positions)

    def responses(self, images: np.ndarray, filters: int) -> list[Response]:
        """Rank the filters and crop the image regions of the best ones."""
        values, positions = np.concatenate(self.values), np.concatenate(self.positions)
        best = np.argsort(-values, axis=0, kind="stable")[: self.count]
        responses = []
        for index in _rank_filters(values, best)[:filters]:
            rows = best[:, index]
            places = tuple(self._center(positions[row, index], images.shape[1:3]) for row in rows)
            crops = tuple(_crop(images[row], at, self.field) for row, at in zip(rows, places, strict=True))
            strengths = tuple(values[rows, index].tolist())
            responses.append(
                Response(self.layer, index, self.field, tuple(rows.tolist()), strengths, places, crops)
            )
        return responses

    def _center(self, position: int, size: tuple[int, ...]) -> tuple[int, int]:
        # Assume that the positions of the feature map cover the image evenly.
        row, column = (np.array(np.unravel_index(position, self.size)) + 0.5) * size / self.size
        return int(row), int(column)


def _rank_filters(values: np.ndarray, best: np.ndarray) -> list[int]:
    """Rank active filters by their strongest responses; put filters that share images with better ones last."""
    deviation = values.std(axis=0)
    active = (deviation >= np.median(deviation) / 2) & (deviation > 0)
    above_mean = np.take_along_axis(values, best, axis=0).mean(axis=0) - values.mean(axis=0)
    score = np.where(active, above_mean / np.where(active, deviation, 1), -1)
    order = [index for index in np.argsort(-score, kind="stable").tolist() if active[index]]
    first: list[int] = []
    taken: set[int] = set()
    for index in order:
        rows = set(best[:, index].tolist())
        if 2 * len(rows & taken) <= len(rows):
            first.append(index)
            taken |= rows
    return first + [index for index in order if index not in first]


def _crop(image: np.ndarray, place: tuple[int, int], field: float) -> np.ndarray:
    """Return a square crop around a position, shifted to lie inside the image."""
    shorter = min(image.shape[:2])
    side = int(min(max(_MIN_CROP, min(field, shorter // 2)), shorter))
    row, column = np.clip(np.array(place) - side // 2, 0, np.array(image.shape[:2]) - side)
    return np.clip(np.round(image[row : row + side, column : column + side]), 0, 255).astype("uint8")


def _probabilities(
    model: keras.Model, nodes: Sequence[Node], head: ClassifierHead, images: np.ndarray, batch_size: int
) -> np.ndarray:
    parts = [np.zeros((0, head.classes), "float32")]
    for part in _batches(len(images), batch_size):
        logits = head.logits(run(nodes, {0: _tensor(images[part])}, last=head.position)[head.position])
        _require_finite(model, logits)
        parts.append(_numpy(keras.ops.sigmoid(logits) if head.multi_label else keras.ops.softmax(logits)))
    return np.concatenate(parts)


def _require_finite(model: keras.Model, logits: Any) -> None:
    if not np.isfinite(_numpy(logits)).all():
        raise InputError(
            f"The network {model.name!r} returns NaN or infinity for these images. Check its weights, and that it "
            "takes raw RGB images from 0 to 255."
        )


def _check_images(model: keras.Model, nodes: Sequence[Node], images: np.ndarray) -> np.ndarray:
    images, expected = np.asarray(images), tuple(nodes[0].tensor.shape[1:])
    fits = images.ndim == 4 == len(expected) + 1 and images.dtype.kind in "uif"
    if not fits or any(want not in (None, got) for want, got in zip(expected, images.shape[1:], strict=True)):
        raise InputError(
            f"Expected images of shape (N, {', '.join(map(str, expected))}) for {model.name!r}, uint8 or float32. "
            f"Received: shape {images.shape}, {images.dtype}. Resize the images, or add a first axis to a single one."
        )
    return images


def _check_classes(
    classes: int | Sequence[int] | np.ndarray | None, count: int, num_classes: int
) -> np.ndarray | None:
    if classes is None:
        return None
    given = np.asarray(classes)
    if given.shape not in ((), (count,)) or (given.size and given.dtype.kind not in "iu"):
        raise InputError(
            f"Expected classes as one integer, or one for each of {count} images. Received: {classes!r}."
        )
    if given.size and (given.min() < 0 or given.max() >= num_classes):
        raise InputError(
            f"Expected classes from 0 to {num_classes - 1}. Received: {given.min()} to {given.max()}."
        )
    return np.broadcast_to(given.astype("int64"), (count,))


def _fill_colors(images: np.ndarray, fill: float | Sequence[float] | None) -> np.ndarray:
    """Return the patch color of each image, shape (N, channels)."""
    if fill is None:
        return images.mean(axis=(1, 2), dtype="float64").astype("float32")
    color = np.asarray(fill, "float32")
    if color.shape not in ((), images.shape[3:]) or color.min() < 0 or color.max() > 255:
        raise InputError(f"Expected a gray value or an RGB color, 0 to 255. Received: fill={fill!r}.")
    return np.broadcast_to(color, (len(images), images.shape[3]))


def _cell_means(values: np.ndarray, grid: int) -> np.ndarray:
    """Average a map over the cells of a grid, as a flat array."""
    rows = [part.mean(axis=0) for part in np.array_split(values, min(grid, len(values)))]
    columns = np.array_split(np.stack(rows), min(grid, values.shape[1]), axis=1)
    return np.concatenate([part.mean(axis=1) for part in columns])


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _tensor(images: np.ndarray) -> Any:
    return keras.ops.convert_to_tensor(np.ascontiguousarray(images, "float32"))


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")))
