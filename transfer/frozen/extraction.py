"""One forward pass over the images: what a frozen network makes of them, computed once and kept on disk.

`python -m transfer.features --list` shows what is kept, `--clear` removes it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from tqdm.auto import tqdm

from transfer.common.errors import InputError
from transfer.distributed.process_group import current_group
from transfer.distributed.strategies import scope_of
from transfer.frozen.engines import Engine, make_engine, relative_error
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.shared_pass import (
    BATCH_SIZE,
    CHUNK_BYTES,
    exchange,
    first_of_each,
    local_copy,
    missing_rows,
)
from transfer.frozen.store_keys import digests_of, open_store
from transfer.images.datasets import ImageData, Split
from transfer.images.pipeline import make_dataset
from transfer.networks import surgery

log = logging.getLogger(__name__)

_CHECKED = 4  # images
_SAME = 1e-3  # relative error between engines of full precision, and no more


@dataclass(frozen=True)
class KnownFeatures:
    """Features of some images that were computed before."""

    split: Split
    # Shape (images, *output shape of the network).
    values: np.ndarray


@dataclass(frozen=True)
class Features:
    """What a network makes of the images of a split, on disk."""

    store: FeatureStore
    rows: np.ndarray
    computed: int
    # What ran it, such as `"openvino bfloat16"`.
    engine: str
    shapes: tuple[tuple[int, ...], ...]
    # Of reading and running the network, after the first batch, which waits for what is done once.
    seconds_per_image: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it, images first."""
        return (len(self), *self.store.shape)

    def take(self, positions: np.ndarray | Sequence[int]) -> np.ndarray:
        """Read the rows at positions of the split."""
        return self.store.take(self.rows[np.asarray(positions, "int64")])

    def parts(self, positions: np.ndarray | Sequence[int]) -> list[np.ndarray]:
        """Read the rows at positions, an array for each output of the network, of shape (n, *its shape)."""
        rows = self.take(positions)
        if len(self.shapes) == 1:
            return [rows]
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        split = np.split(rows, ends, axis=1)
        return [part.reshape(len(rows), *shape) for part, shape in zip(split, self.shapes, strict=True)]

    def load(self) -> np.ndarray:
        """Read all rows into memory, as float32."""
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
    name: str = "features",
) -> Features:
    """Run a network once over the images of a split, in inference mode, and keep what it gives."""
    if not len(split):
        raise InputError("Expected images to run the network over. Received: an empty split.")
    check_views(views, augment)
    run = engine
    if not isinstance(run, Engine):
        run = make_engine(local_copy(extractor), engine=run, precision=precision, batch_size=batch_size)
    store = open_store(run, image_size=image_size, resize=split.resize, dtype=dtype, cache=cache)
    images = digests_of(split)
    digests = [*images]
    for view in range(1, views):
        digests += [_changed(image, f"{augment} {flip} {seed} {view}") for image in images]
    if known is not None and split.resize == known.split.resize:
        _store_known(store, extractor, known, images, image_size)
    missing = missing_rows(store, digests)
    parts = np.array_split(missing, current_group().count)
    own = parts[current_group().index]
    own = own[store.find([digests[i] for i in own]) < 0]  # what others miss may be here
    clock: list[tuple[float, int]] = []
    for view in range(views):
        wanted = own[own // len(split) == view]
        if len(wanted):
            keys = None if not view else _keys([digests[i] for i in wanted])
            batches = make_dataset(
                split.take(wanted % len(split)),
                image_size=image_size,
                batch_size=run.batch_size,
                augment=augment,
                flip=flip,
                keys=keys,
            )
            title = f"{name}, view {view + 1} of {views}" if views > 1 else name
            for places, values in _chunks(run, batches, len(wanted), title, clock):
                store.append([digests[i] for i in wanted[places]], values)
    exchange(store, digests, parts)
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in extractor.outputs)
    ran_by = run.name if len(missing) else ""
    return Features(store, store.find(digests), len(missing), ran_by, shapes, _per_image(clock))


def _store_known(
    store: FeatureStore,
    extractor: keras.Model,
    known: KnownFeatures,
    digests: Sequence[str],
    image_size: tuple[int, int],
) -> None:
    """Write known rows of images that the store lacks, if the network gives the same for the first few."""
    of_known, wanted = digests_of(known.split), set(digests)
    needed = np.array([digest in wanted for digest in of_known], bool) & (store.find(of_known) < 0)
    if not needed.any() or known.values.shape != (len(of_known), *store.shape):
        return
    first = known.split.take(range(min(_CHECKED, len(of_known))))
    images, _ = next(iter(make_dataset(first, image_size=image_size, batch_size=_CHECKED)))
    expected = np.asarray(local_copy(extractor)(images, training=False))
    if relative_error(known.values[: len(first)], expected) <= _SAME:
        rows = first_of_each(of_known, needed)
        store.append([of_known[i] for i in rows], known.values[rows])


def keep(
    extractor: keras.Model,
    split: Split,
    values: np.ndarray,
    *,
    image_size: tuple[int, int],
    engine: str = "auto",
    cache: FeatureCache | None = None,
) -> bool:
    """Keep what is known already of what a network gives, so that `extract` need not compute it again."""
    if tuple(extractor.output_shape[1:]) != values.shape[1:] or not len(split):
        return False
    extractor = local_copy(extractor)
    some = split.take(range(min(_CHECKED, len(split))))
    images, _ = next(iter(make_dataset(some, image_size=image_size, batch_size=_CHECKED)))
    if relative_error(values[: len(some)], np.asarray(extractor(images, training=False))) > _SAME:
        return False
    run = make_engine(extractor, engine=engine)
    store = open_store(run, image_size=image_size, resize=split.resize, dtype="float32", cache=cache)
    digests = digests_of(split)
    missing = first_of_each(digests, store.find(digests) < 0)
    store.append([digests[i] for i in missing], values[missing].astype("float32"))
    return True


def _per_image(clock: Sequence[tuple[float, int]]) -> float | None:
    if len(clock) < 2:
        return None
    return (clock[-1][0] - clock[0][0]) / sum(count for _, count in clock[1:])


def check_views(views: int, augment: str) -> None:
    """Refuse a number of views that makes no sense."""
    if views < 1 or (views > 1 and augment == "none"):
        raise InputError(
            f"Expected views of 1 or more, and an augmentation where there are several. Received: views={views}, "
            f"augment={augment!r}."
        )


def _changed(image: str, how: str) -> str:
    """The digest of an image that is changed in a certain way."""
    return hashlib.sha256(f"{image} {how}".encode()).hexdigest()


def _keys(digests: Sequence[str]) -> np.ndarray:
    """Seeds of augmentation, two int32 for each image."""
    return np.array([[int(d[:7], 16), int(d[7:14], 16)] for d in digests], "int32")


def _chunks(
    run: Engine, batches: Any, count: int, name: str, clock: list[tuple[float, int]]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Run the network; give the values of some images at a time, with their places."""
    held: list[np.ndarray] = []
    start, size = 0, 0
    quiet = None if current_group().is_chief else True
    with tqdm(total=count, desc=name, unit=" images", leave=False, disable=quiet) as bar:
        for images, _ in batches:
            held.append(run(np.asarray(images)))
            size += held[-1].nbytes
            bar.update(len(held[-1]))
            clock.append((time.perf_counter(), len(held[-1])))
            if size >= CHUNK_BYTES:
                yield _joined(held, start)
                start, size, held = start + sum(map(len, held)), 0, []
        if held:
            yield _joined(held, start)


def _joined(held: Sequence[np.ndarray], start: int) -> tuple[slice, np.ndarray]:
    values = np.concatenate(held)
    return slice(start, start + len(values)), values


def frozen_feature_extractor(model: keras.Model) -> keras.Model | None:
    """Give a model without its head where the head alone trains, so that the rest need run but once."""
    head = model.layers[-1]
    alone = (
        isinstance(head, keras.layers.Dense)
        and head.use_bias
        and len(head.input.shape) == 2
        and len(model.trainable_weights) == len(head.trainable_weights) > 0
    )
    if not alone:
        return None
    with scope_of(model):
        return surgery.feature_extractor_of(model)


def input_size(model: keras.Model, data: ImageData) -> tuple[int, int]:
    """Say at what size a model is to see the images."""
    height, width = model.input_shape[1:3]
    if height is None or width is None:
        if data.image_size is None:
            raise InputError(f"{model.name!r} takes any size. Say which: load_data(..., image_size=224).")
        return data.image_size
    if data.image_size not in (None, (height, width)):
        raise InputError(
            f"The model takes images of {height}x{width}, the data were asked for at "
            f"{data.image_size[0]}x{data.image_size[1]}. Leave image_size out of load_data, or build the model "
            "for that size."
        )
    return height, width
