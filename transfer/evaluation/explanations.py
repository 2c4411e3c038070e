"""What a model looks at: Grad-CAM, occlusion as a check of it, and what its layers see."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from transfer.common.errors import InputError
from transfer.networks.gradients import (
    ClassifierHead,
    find_maps,
    gradient_at,
    head_of,
    receptive_fields,
    run,
    shown_layers,
    unnested,
)
from transfer.networks.graphs import Node

_SMALLEST_CROP = 8  # pixels along a side; less shows no more than a color


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    *,
    classes: int | Sequence[int] | np.ndarray | None = None,
    layer: str | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Map where a model sees what speaks for a class, by Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391).

    Each channel of a layer's maps counts by the gradient of the class's logit with respect to it, averaged over
    places; what is positive of the weighted sum is the heat map. The logit, and not the probability, whose
    gradient vanishes where the model is sure.

    Args:
        model: raw RGB in, a number for each class out, or one number for the second of two classes. It may hold its
            base as one layer. It is not changed.
        images: RGB from 0 to 255, shape (N, height, width, 3), uint8 or float.
        classes: for each image, or one for all; None is what the model predicts.
        layer: whose maps count, also one inside a model in the model; None is the last that gives maps.
        batch_size: images at once.

    Returns:
        float32 array of shape (N, height, width); each map's largest value is 1, or all are 0 where nothing there
        speaks for the class.

    Raises:
        InputError: no such layer, class or maps, or images that the model does not take.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(64, 64, 3))
        >>> grad_cam(base, np.zeros((2, 64, 64, 3))).shape
        (2, 64, 64)
    """
    nodes = unnested(model)
    head, images = head_of(nodes), _checked(model, nodes, images)
    place = find_maps(nodes, layer)
    wanted = _checked_classes(classes, len(images), head.classes)
    heat = np.zeros(images.shape[:3], "float32")
    for part in _parts(len(images), batch_size):
        known = run(nodes, {0: _tensor(images[part])}, last=place)

        def score(maps: Any, known: dict[int, Any] = known, part: slice = part) -> tuple[Any, Any]:
            logits = head.logits(run(nodes, {**known, place: maps}, last=head.place)[head.place])
            chosen = keras.ops.argmax(logits, axis=-1) if wanted is None else wanted[part]
            return keras.ops.sum(logits * keras.ops.one_hot(chosen, head.classes)), logits

        slope, logits = gradient_at(score, known[place])
        _require_finite(model, logits)
        weights = keras.ops.mean(keras.ops.cast(slope, "float32"), axis=(1, 2), keepdims=True)
        sums = keras.ops.sum(keras.ops.cast(known[place], "float32") * weights, axis=-1)
        for row, small in zip(heat[part], _numpy(keras.ops.relu(sums)), strict=True):
            row[:] = Image.fromarray(small).resize(row.shape[::-1], Image.Resampling.BILINEAR)
    top = heat.max(axis=(1, 2), keepdims=True, initial=0)
    return np.divide(heat, top, out=np.zeros_like(heat), where=top > 0)


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
    """Map how much a class's probability falls when a patch hides each place (Zeiler & Fergus 2014, arXiv:1311.2901).

    It asks the model itself, some fifty times per image, and so tells whether Grad-CAM is right.

    Args:
        model: as `grad_cam` takes it.
        images: RGB from 0 to 255, shape (N, height, width, 3), uint8 or float.
        classes: for each image, or one for all; None is what the model predicts.
        patch: side of the square in pixels; None is a quarter of the image's shorter side.
        stride: pixels between one patch and the next, at most `patch`; None is half of it.
        fill: the patch's color, a grey value or RGB, 0 to 255; None is each image's own mean color.
        batch_size: images at once.

    Returns:
        float32 array of shape (N, height, width), -1 to 1: the fall, averaged over the patches that cover a place;
        below 0 where the class is more probable without what is there.

    Raises:
        InputError: no such class, a patch, stride or color that cannot be, or images that the model does not take.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> occlusion(base, np.zeros((1, 32, 32, 3)), patch=16).shape
        (1, 32, 32)
    """
    nodes = unnested(model)
    head, images = head_of(nodes), _checked(model, nodes, images)
    size = images.shape[1:3]
    patch = max(1, min(size) // 4) if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if not 1 <= stride <= patch <= min(size):
        raise InputError(
            f"Expected 1 <= stride <= patch <= {min(size)}, the image's shorter side, so that each place is "
            f"covered. Received: patch={patch!r}, stride={stride!r}."
        )
    colors = _fill(images, fill)
    wanted = _checked_classes(classes, len(images), head.classes)
    whole = _probabilities(model, nodes, head, images, batch_size)
    chosen = whole.argmax(axis=1) if wanted is None else wanted
    starts = [[*range(0, side - patch, stride), side - patch] for side in size]  # the last ends at the edge
    pairs = list(itertools.product(range(len(images)), *starts))
    falls, covered = np.zeros((2, *images.shape[:3]), "float32")
    for part in _parts(len(pairs), batch_size):
        hidden = images[[image for image, _, _ in pairs[part]]].astype("float32")
        for one, (image, y, x) in zip(hidden, pairs[part], strict=True):
            one[y : y + patch, x : x + patch] = colors[image]
        left = _probabilities(model, nodes, head, hidden, batch_size)
        for one, (image, y, x) in zip(left, pairs[part], strict=True):
            area = (image, slice(y, y + patch), slice(x, x + patch))
            falls[area] += whole[image, chosen[image]] - one[chosen[image]]
            covered[area] += 1
    return falls / np.maximum(covered, 1)


def agreement(first: np.ndarray, second: np.ndarray, *, grid: int = 7) -> float:
    """Say how far two maps of an image rank its places alike: Spearman's rank correlation over a coarse
    grid."""
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if first.ndim != 2 or first.shape != second.shape or not first.size:
        raise InputError(
            f"Expected two maps of one image, of the same shape (height, width). Received: {first.shape} and "
            f"{second.shape}."
        )
    one, two = _coarse(first, grid), _coarse(second, grid)
    if np.ptp(one) <= 1e-12 * np.abs(one).max() or np.ptp(two) <= 1e-12 * np.abs(two).max():
        return 0.0
    return round(float(np.nan_to_num(spearmanr(one, two).statistic)), 12)


@dataclass(frozen=True, eq=False)
class Response:
    """What one filter of a layer responds to most."""

    layer: str
    # Number of the channel.
    filter: int
    # Side in pixels of what one place of the layer's maps depends on (see `receptive_field`).
    field: float
    images: tuple[int, ...]
    strengths: tuple[float, ...]
    # (row, column) in pixels of the image, at the middle of what the filter looked at.
    places: tuple[tuple[int, int], ...]
    # Uint8 arrays (side, side, 3) around these places.
    crops: tuple[np.ndarray, ...]


def strongest_responses(
    model: keras.Model,
    images: np.ndarray,
    *,
    layers: Sequence[str] | None = None,
    filters: int = 6,
    count: int = 5,
    batch_size: int = 32,
) -> list[Response]:
    """Show what layers see: for some filters the parts of images that they respond to most.

    As Zeiler & Fergus (2014, arXiv:1311.2901) show them, without the way back to pixels. The filters are those whose
    strongest images stand out most from the others, in standard deviations: they look for something in
    particular, and their crops look alike. One that barely responds at all, whose deviations mean nothing, is left
    out: one whose standard deviation is below half the layer's median. So is one whose strongest images are
    mostly those of filters chosen before, while there are others.

    Args:
        model: as `grad_cam` takes it.
        images: RGB from 0 to 255, shape (N, height, width, 3); some hundreds show more than a few.
        layers: names; None is `shown_layers(model)`.
        filters: how many of each layer, at most.
        count: images for each filter, at most; of each image its strongest place.
        batch_size: images at once; of the maps only the maxima are kept.

    Returns:
        For each layer in turn its filters, the one that stands out most first.

    Raises:
        InputError: no such layer, or images that the model does not take.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> noise = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3))
        >>> [found] = strongest_responses(base, noise, layers=["Conv1_relu"], filters=1, count=3)
        >>> found.layer, len(found.crops), found.crops[0].shape
        ('Conv1_relu', 3, (8, 8, 3))
    """
    nodes = unnested(model)
    images, fields = _checked(model, nodes, images), receptive_fields(nodes)
    names = shown_layers(model) if layers is None else list(layers)
    places = [find_maps(nodes, name) for name in names]
    if not len(images) or not places:
        return []
    found = {place: _Maxima(nodes[place].op.name, fields[place].side) for place in places}
    for part in _parts(len(images), batch_size):
        values = run(nodes, {0: _tensor(images[part])}, last=max(places), keep=places)
        for place, maxima in found.items():
            maxima.add(_numpy(values[place]))
    return [one for maxima in found.values() for one in maxima.responses(images, filters, count)]


class _Maxima:
    """The strongest response of each filter of a layer to each image, and where it was."""

    def __init__(self, layer: str, field: float) -> None:
        self.layer, self.field, self.size = layer, field, (1, 1)
        self.values: list[np.ndarray] = []
        self.spots: list[np.ndarray] = []

    def add(self, maps: np.ndarray) -> None:
        """Take in the maps of a batch, shape (batch, height, width, filters)."""
        self.size = maps.shape[1:3]
        flat = maps.reshape(len(maps), -1, maps.shape[-1])
        self.spots.append(flat.argmax(axis=1).astype("int32"))
        self.values.append(np.take_along_axis(flat, self.spots[-1][:, None], axis=1)[:, 0])

    def responses(self, images: np.ndarray, filters: int, count: int) -> list[Response]:
        """Choose filters and cut out what they responded to."""
        values, spots = np.concatenate(self.values), np.concatenate(self.spots)
        best = np.argsort(-values, axis=0, kind="stable")[:count]
        return [
            self._response(one, best[:, one], values, spots, images)
            for one in _standing_out(values, best)[:filters]
        ]

    def _response(
        self, one: int, rows: np.ndarray, values: np.ndarray, spots: np.ndarray, images: np.ndarray
    ) -> Response:
        places = tuple(self._pixel(spots[row, one], images.shape[1:3]) for row in rows)
        return Response(
            layer=self.layer,
            filter=one,
            field=self.field,
            images=tuple(rows.tolist()),
            strengths=tuple(values[rows, one].tolist()),
            places=places,
            crops=tuple(_crop(images[row], at, self.field) for row, at in zip(rows, places, strict=True)),
        )

    def _pixel(self, spot: int, size: tuple[int, ...]) -> tuple[int, int]:
        """The middle of what a place of the maps looks at, as if they covered the image evenly."""
        row, column = (np.array(np.unravel_index(spot, self.size)) + 0.5) * size / self.size
        return int(row), int(column)


def _standing_out(values: np.ndarray, best: np.ndarray) -> list[int]:
    """Rank filters by how far their best images stand out; those that look at the same images come
    last."""
    spread = values.std(axis=0)
    alive = (spread >= np.median(spread) / 2) & (spread > 0)
    above = np.take_along_axis(values, best, axis=0).mean(axis=0) - values.mean(axis=0)
    score = np.where(alive, above / np.where(alive, spread, 1), -1)
    order = [one for one in np.argsort(-score, kind="stable").tolist() if alive[one]]
    first: list[int] = []
    taken: set[int] = set()
    for one in order:
        rows = set(best[:, one].tolist())
        if 2 * len(rows & taken) <= len(rows):
            first.append(one)
            taken |= rows
    return first + [one for one in order if one not in set(first)]


def _crop(image: np.ndarray, place: tuple[int, int], field: float) -> np.ndarray:
    """Cut out a square around a place, moved into the image where it would reach beyond its edge."""
    shorter = min(image.shape[:2])
    side = int(min(max(_SMALLEST_CROP, min(field, shorter // 2)), shorter))
    row, column = np.clip(np.array(place) - side // 2, 0, np.array(image.shape[:2]) - side)
    return np.clip(np.round(image[row : row + side, column : column + side]), 0, 255).astype("uint8")


def _probabilities(
    model: keras.Model, nodes: Sequence[Node], head: ClassifierHead, images: np.ndarray, batch_size: int
) -> np.ndarray:
    found = [np.zeros((0, head.classes), "float32")]
    for part in _parts(len(images), batch_size):
        logits = head.logits(run(nodes, {0: _tensor(images[part])}, last=head.place)[head.place])
        _require_finite(model, logits)
        found.append(_numpy(keras.ops.sigmoid(logits) if head.several else keras.ops.softmax(logits)))
    return np.concatenate(found)


def _require_finite(model: keras.Model, logits: Any) -> None:
    if not np.isfinite(_numpy(logits)).all():
        raise InputError(
            f"The network {model.name!r} gives NaN or infinity on these images. Its weights may be broken, or it "
            "expects other images than raw RGB from 0 to 255."
        )


def _checked(model: keras.Model, nodes: Sequence[Node], images: Any) -> np.ndarray:
    images, expected = np.asarray(images), tuple(nodes[0].tensor.shape[1:])
    fits = images.ndim == 4 == len(expected) + 1 and images.dtype.kind in "uif"
    if not fits or any(want not in (None, got) for want, got in zip(expected, images.shape[1:], strict=True)):
        raise InputError(
            f"Expected images of shape (N, {', '.join(map(str, expected))}), as {model.name!r} takes them, as uint8 "
            f"or float32. Received: shape {images.shape}, {images.dtype}. Resize them, or add a first axis to one."
        )
    return images


def _checked_classes(classes: Any, count: int, most: int) -> np.ndarray | None:
    if classes is None:
        return None
    given = np.asarray(classes)
    if given.shape not in ((), (count,)) or (given.size and given.dtype.kind not in "iu"):
        raise InputError(
            f"Expected classes as one whole number, or one for each of {count} images. Received: {classes!r}."
        )
    if given.size and (given.min() < 0 or given.max() >= most):
        raise InputError(f"Expected classes of 0 to {most - 1}. Received: {given.min()} to {given.max()}.")
    return np.broadcast_to(given.astype("int64"), (count,))


def _fill(images: np.ndarray, fill: Any) -> np.ndarray:
    """A color for each image, shape (N, channels)."""
    if fill is None:
        return images.mean(axis=(1, 2), dtype="float64").astype("float32")
    color = np.asarray(fill, "float32")
    if color.shape not in ((), images.shape[3:]) or color.min() < 0 or color.max() > 255:
        raise InputError(f"Expected a grey value or an RGB color, 0 to 255. Received: fill={fill!r}.")
    return np.broadcast_to(color, (len(images), images.shape[3]))


def _coarse(values: np.ndarray, grid: int) -> np.ndarray:
    """Average a map over the fields of a grid."""
    rows = [part.mean(axis=0) for part in np.array_split(values, min(grid, len(values)))]
    columns = np.array_split(np.stack(rows), min(grid, values.shape[1]), axis=1)
    return np.concatenate([part.mean(axis=1) for part in columns])


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _tensor(images: np.ndarray) -> Any:
    return keras.ops.convert_to_tensor(np.ascontiguousarray(images, "float32"))


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")))
