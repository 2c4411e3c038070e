"""The forward pass on Apache Beam: on the cores of this machine, or on a cluster, into the cache that training reads.

`python -m transfer.beam_features --data DIR --model NAME` fills the cache for case 1, `--case small-similar`; flags
that it does not know are Beam's. It needs `pip install "transfer[beam]"`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.common.errors import InputError
from transfer.frozen import beam_runner, feature_shards

if TYPE_CHECKING:
    import keras

    from transfer.frozen.extraction import Features
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.images.datasets import Split

log = logging.getLogger(__name__)

SHARD_SIZE = 4096
"""Images: so many are lost at most, for each worker, when a pass is killed. A hundred million are 24,000 files."""

SHARD_BYTES = 64 * 2**20
"""Of rows: what a worker holds of a shard."""

BATCH_SIZE = 32
"""Images per step, as in the pass without Beam."""

_LOOKING = 2.0  # seconds between looks at what is done


def extract_with_beam(
    extractor: keras.Model,
    split: Split,
    *,
    image_size: tuple[int, int],
    batch_size: int = BATCH_SIZE,
    engine: str = "auto",
    precision: str = "auto",
    dtype: str = "float32",
    cache: FeatureCache | None = None,
    shard_size: int = SHARD_SIZE,
    options: Sequence[str] = (),
    name: str = "features",
) -> Features:
    """Do what `features.extract` does for one view, with as many workers as Beam has."""
    flags = beam_runner.read_options(options)
    from transfer.frozen.engines import make_engine
    from transfer.frozen.extraction import Features
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.frozen.shared_pass import missing_rows
    from transfer.frozen.store_keys import digests_of, open_store

    if not len(split):
        raise InputError("Expected images to run the network over. Received: an empty split.")
    if shard_size < 1:
        raise InputError(f"Expected a shard_size of 1 image or more. Received: {shard_size}.")
    run = make_engine(extractor, engine=engine, precision=precision, batch_size=batch_size)
    store = open_store(run, image_size=image_size, resize=split.resize, dtype=dtype, cache=cache)
    digests = digests_of(split)
    missing = missing_rows(store, digests)
    per_image = None
    if len(missing):
        plan = feature_shards.PassSettings(
            store=store.folder.name,
            image_size=image_size,
            resize=split.resize,
            dtype=dtype,
            **_same_engine(run.name),
            batch_size=batch_size,
            limit=(cache or FeatureCache()).limit,
            threads=beam_runner.threads_of_each(flags),
        )
        wanted = replace(split.take(missing), digests=[digests[i] for i in missing])
        size = min(shard_size, max(1, SHARD_BYTES // (4 * math.prod(store.shape))))
        per_image = _pass(store.folder.parent, extractor, plan, wanted, size, flags, name)
        store.refresh()
    rows = store.find(digests)
    _refuse_lost(int((rows < 0).sum()), store.folder)
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in extractor.outputs)
    return Features(store, rows, len(missing), run.name if len(missing) else "", shapes, per_image)


def _same_engine(name: str) -> dict[str, str]:
    """What makes a worker choose the engine that was chosen here, whatever `"auto"` would be there."""
    kind, rest = name.split()[0], name.split()[-1]
    return {"engine": kind, "precision": rest if kind == "openvino" else "float32"}


def _refuse_lost(lost: int, folder: Path) -> None:
    if lost:
        raise InputError(
            f"The workers are done, but {lost} images are not in {str(folder)!r} here. Set the environment variable "
            "TRANSFER_CACHE to a folder on a disk that all workers see under one name."
        )


def _pass(
    cache: Path,
    extractor: keras.Model,
    plan: feature_shards.PassSettings,
    wanted: Split,
    size: int,
    flags: Any,
    name: str,
) -> float | None:
    """Lay the shards out, let Beam work them off, and say how it went; give the seconds per image."""
    began = time.perf_counter()
    with feature_shards.pass_folder(cache) as folder:
        count = _shards(len(wanted), size, beam_runner.count_workers(flags))
        feature_shards.lay_out(folder, extractor, plan, wanted, count=count)
        with _bar(folder, count, name):
            beam_runner.run_shards(folder, count, flags)
        done = feature_shards.reports(folder)
    seconds = time.perf_counter() - began
    per_image = feature_shards.per_image(done)
    log.info(
        "%s: %d images in %d shards, %.1f s, %.1f images/s; %.1f s to start each of %d workers, %s afterwards.",
        name,
        len(wanted),
        count,
        seconds,
        len(wanted) / seconds,
        max((report.setup for report in done), default=0.0),
        len({report.worker for report in done}),
        f"{1 / per_image:.1f} images/s" if per_image else "a batch each",
    )
    return per_image


def _shards(images: int, size: int, workers: int) -> int:
    """How many shards there are: as many for each worker, since the local runner gives each as many."""
    count = -(-images // size)
    return min(images, -(-count // workers) * workers)


@contextlib.contextmanager
def _bar(folder: Path, count: int, name: str) -> Iterator[None]:
    """Show how many shards are done, by what the workers say of them."""
    from tqdm.auto import tqdm

    over = threading.Event()

    def follow() -> None:
        with tqdm(total=count, desc=name, unit=" shards", leave=False) as bar:
            while not over.wait(_LOOKING):
                bar.update(len(list(folder.glob("*.done"))) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
