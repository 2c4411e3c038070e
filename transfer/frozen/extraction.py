"""Extract features: run a frozen network once over images and store its outputs by the images' content."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy.special import expit, softmax

from transfer.cases.decisions import task_of_model
from transfer.common.errors import InputError
from transfer.common.streams import progress_bar
from transfer.common.tasks import TASK
from transfer.distributed.process_group import current_group
from transfer.distributed.strategies import scope_of
from transfer.frozen.engines import Engine, make_engine
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.quantization import Calibration, relative_error
from transfer.frozen.shared_pass import (
    BATCH_SIZE,
    CHUNK_BYTES,
    exchange,
    first_of_each,
    local_copy,
    missing_rows,
)
from transfer.frozen.store_keys import digests_of, open_store
from transfer.images.augmentation import check_views
from transfer.images.datasets import ImageData, Split
from transfer.images.pipeline import make_dataset, plain_errors
from transfer.images.reading import batches_ahead
from transfer.networks import surgery
from transfer.networks.graphs import graph

log = logging.getLogger(__name__)

_CHECKED = 4  # number of images whose known features are computed again, as a check
_SAME = 1e-3  # largest relative error between engines of full precision

_ROWS = 4096  # number of images whose features enter a head at a time

BatchTimes = list[tuple[float, int]]
"""For each batch, the time in seconds at which it was done, and its number of images."""


@dataclass(frozen=True)
class KnownFeatures:
    """Features of some images that were computed before."""

    split: Split
    # Shape (images, *output shape of the network).
    values: np.ndarray


@dataclass(frozen=True)
class Features:
    """The features of the images of a split, on disk."""

    store: FeatureStore
    # The row of each image in the store.
    rows: np.ndarray
    # Number of images whose features were computed now and not read from the cache.
    computed: int
    # The engine that computed them, such as "openvino bfloat16"; "" if all were read.
    engine: str
    # Output shapes of the network, without the batch.
    shapes: tuple[tuple[int, ...], ...]
    # Seconds per image, without the first batch, which includes compilation.
    seconds_per_image: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all features, (images, ...)."""
        return (len(self), *self.store.shape)

    def take(self, positions: np.ndarray | Sequence[int]) -> np.ndarray:
        """Read the features of the images at some positions of the split."""
        return self.store.take(self.rows[np.asarray(positions, "int64")])

    def parts(self, positions: np.ndarray | Sequence[int]) -> list[np.ndarray]:
        """Read features as one array per output of the network, of shape (n, *output shape)."""
        rows = self.take(positions)
        if len(self.shapes) == 1:
            return [rows]
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = np.split(rows, ends, axis=1)
        return [part.reshape(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def load(self) -> np.ndarray:
        """Read all features into memory as float32."""
        return self.store.take(self.rows).astype("float32", copy=False)


def extract(
    extractor: keras.Model,
    split: Split,
    *,
    image_size: tuple[int, int],
    batch_size: int = BATCH_SIZE,
    engine: str | Engine = "auto",
    precision: str = "auto",
    dtype: str = "float32",
    views: int = 1,
    augment: str = "none",
    flip: bool = True,
    seed: int = 0,
    cache: FeatureCache | None = None,
    known: KnownFeatures | None = None,
    calibration: Calibration | None = None,
    name: str = "features",
) -> Features:
    """Return the features of a split: read those in the cache and compute the others in inference mode."""
    if not len(split):
        raise InputError("Expected a split with images. Received: an empty split.")
    check_views(views, augment)
    run = engine
    if not isinstance(run, Engine):
        options: dict[str, Any] = {"engine": run, "precision": precision, "calibration": calibration}
        run = make_engine(local_copy(extractor), batch_size=batch_size, **options)
    store = open_store(
        run,
        image_size=image_size,
        resize=split.resize,
        dtype=dtype,
        cache=cache,
        pixel_range=split.pixel_range,
    )
    images = digests_of(split)
    digests = [*images]
    for view in range(1, views):
        digests += [_augmented(image, f"{augment} {flip} {seed} {view}") for image in images]
    if known is not None and run.precision != "int8" and _same_form(split, known.split):
        _store_known(store, extractor, known, images, image_size)
    missing = missing_rows(store, digests)
    parts = np.array_split(missing, current_group().count)
    own = parts[current_group().index]
    own = own[store.find([digests[i] for i in own]) < 0]  # images that only other workers miss
    times: BatchTimes = []
    for view in range(views):
        positions = own[own // len(split) == view]
        if len(positions):
            of_view = [digests[i] for i in positions]
            times += compute_features(
                run,
                store,
                split.take(positions % len(split)),
                of_view,
                image_size=image_size,
                name=f"{name}, view {view + 1} of {views}" if views > 1 else name,
                augment=augment,
                flip=flip,
                keys=_seeds(of_view) if view else None,
            )
    exchange(store, digests, parts)
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in extractor.outputs)
    engine_name = run.name if len(missing) else ""
    return Features(store, store.find(digests), len(missing), engine_name, shapes, _per_image(times))


@plain_errors()
def compute_features(
    run: Engine,
    store: FeatureStore,
    split: Split,
    digests: Sequence[str],
    *,
    image_size: tuple[int, int],
    name: str | None = None,
    augment: str = "none",
    flip: bool = True,
    keys: np.ndarray | None = None,
) -> BatchTimes:
    """Run the network over images and write its outputs under the digests; show progress under a name."""
    batches: Iterable[np.ndarray]
    if keys is None:
        batches = batches_ahead(split, image_size=image_size, batch_size=run.batch_size)
    else:
        options: dict[str, Any] = {"augment": augment, "flip": flip, "keys": keys}
        augmented = make_dataset(split, image_size=image_size, batch_size=run.batch_size, **options)
        batches = (np.asarray(images) for images, _ in augmented)
    times: BatchTimes = []
    values: list[np.ndarray] = []
    end = 0
    # None hides the progress bar if there is no terminal.
    silent = True if name is None or not current_group().is_chief else None
    with progress_bar(total=len(split), desc=name, unit=" images", leave=False, disable=silent) as bar:
        for images in batches:
            values.append(run(images))
            count = len(values[-1])
            end += count
            times.append((time.perf_counter(), count))
            bar.update(count)
            if end == len(split) or sum(rows.nbytes for rows in values) >= CHUNK_BYTES:
                chunk, values = np.concatenate(values), []
                store.append(digests[end - len(chunk) : end], chunk)
    return times


def _same_form(first: Split, second: Split) -> bool:
    return first.resize == second.resize and first.pixel_range == second.pixel_range


@plain_errors()
def _store_known(
    store: FeatureStore,
    extractor: keras.Model,
    known: KnownFeatures,
    digests: Sequence[str],
    image_size: tuple[int, int],
) -> None:
    """Write known features that the store lacks, if the network returns the same for the first few images."""
    of_known, wanted = digests_of(known.split), set(digests)
    needed = np.array([digest in wanted for digest in of_known], bool) & (store.find(of_known) < 0)
    if not needed.any() or known.values.shape != (len(of_known), *store.shape):
        return
    first = range(min(_CHECKED, len(of_known)))
    images = np.stack([known.split.image(position, image_size) for position in first]).astype("float32")
    expected = keras.ops.convert_to_numpy(local_copy(extractor)(images, training=False))
    if relative_error(known.values[: len(first)], expected) <= _SAME:
        rows = first_of_each(of_known, needed)
        store.append([of_known[i] for i in rows], known.values[rows])


def _per_image(times: BatchTimes) -> float | None:
    """Return the seconds per image, without the first batch."""
    if len(times) < 2:
        return None
    return (times[-1][0] - times[0][0]) / sum(count for _, count in times[1:])


def _seeds(digests: Sequence[str]) -> np.ndarray:
    """Return the seeds of the augmentation, int32 of shape (images, 2)."""
    return np.array([[int(d[:7], 16), int(d[7:14], 16)] for d in digests], "int32")


def _augmented(image: str, how: str) -> str:
    """Return the digest of an augmented view of an image."""
    return hashlib.sha256(f"{image} {how}".encode()).hexdigest()


def frozen_feature_extractor(model: keras.Model) -> keras.Model | None:
    """Return the model without its head if only the head trains, else None."""
    head = model.layers[-1]
    if not len(model.trainable_weights) == len(head.trainable_weights) > 0:
        return None
    nodes = graph(model)
    features = nodes[nodes[-1].parents[0]].tensor
    if nodes[-1].op is not head or len(features.shape) != 2:  # a network without a head
        return None
    with scope_of(model):
        return surgery.feature_extractor_of(model)


def apply_head(model: keras.Model, features: np.ndarray) -> np.ndarray:
    """Return the predictions for features as float64: exactly for the default head of the model's task."""
    head, task = model.layers[-1], task_of_model(model)
    if surgery.is_plain_head(head, task):
        kernel, bias = head.get_weights()
        return activate(features.astype("float64") @ kernel + bias, task)
    parts = (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))
    rows = [keras.ops.convert_to_numpy(head(part.astype("float32"), training=False)) for part in parts]
    return np.concatenate(rows).astype("float64")


def activate(scores: np.ndarray, task: str) -> np.ndarray:
    """Return the outputs of the default head of a task for its scores, shape (images, outputs)."""
    functions = {"sigmoid": expit, "linear": np.asarray}
    activation = TASK[task].activation
    return np.asarray(softmax(scores, axis=1) if activation == "softmax" else functions[activation](scores))


def input_size(model: keras.Model, data: ImageData) -> tuple[int, int]:
    """Return the height and width in pixels at which a model takes the images."""
    height, width = model.input_shape[1:3]
    if height is None or width is None:
        if data.image_size is None:
            raise InputError(
                f"{model.name!r} takes images of any size. Set one: load_data(..., image_size=224)."
            )
        return data.image_size
    if data.image_size not in (None, (height, width)):
        raise InputError(
            f"Expected images of {height}x{width}, the input size of {model.name!r}. Received: data loaded with "
            f"{data.image_size[0]}x{data.image_size[1]}. Omit image_size in load_data, or build the model for it."
        )
    return height, width
