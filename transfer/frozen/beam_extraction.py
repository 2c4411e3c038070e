"""Extract features on Apache Beam, with the cores of this machine or a cluster, into the cache that training reads.

The command is `python -m transfer.beam_features`. It needs `pip install "transfer[beam]"`.
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
from typing import TYPE_CHECKING

from transfer.common.errors import InputError
from transfer.frozen import beam_runner, feature_shards

if TYPE_CHECKING:
    import keras
    from apache_beam.options.pipeline_options import PipelineOptions

    from transfer.frozen.extraction import Features
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.images.datasets import Split

log = logging.getLogger(__name__)

SHARD_SIZE = 4096
"""Images per shard: what a killed worker loses at most. A hundred million images make 24,000 shards."""

SHARD_BYTES = 64 * 2**20
"""Bytes of features per shard."""

BATCH_SIZE = 32
"""Images per batch, as without Beam."""

_INTERVAL = 2.0  # seconds between updates of the progress bar


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
    """Return what `extraction.extract` returns for one view, computed by all workers of Beam."""
    flags = beam_runner.read_options(options)
    from transfer.frozen.engines import make_engine
    from transfer.frozen.extraction import Features
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.frozen.shared_pass import missing_rows
    from transfer.frozen.store_keys import digests_of, open_store

    if not len(split):
        raise InputError("Expected images to compute features of. Received: an empty split.")
    if shard_size < 1:
        raise InputError(f"Expected a shard_size of at least 1 image. Received: {shard_size}.")
    run = make_engine(extractor, engine=engine, precision=precision, batch_size=batch_size)
    store = open_store(run, image_size=image_size, resize=split.resize, dtype=dtype, cache=cache)
    digests = digests_of(split)
    missing = missing_rows(store, digests)
    per_image = None
    if len(missing):
        kind, *_, last = run.name.split()
        settings = feature_shards.PassSettings(
            store=store.folder.name,
            image_size=image_size,
            resize=split.resize,
            dtype=dtype,
            engine=kind,  # the engine of this process: "auto" may choose another one on a worker
            precision=last if kind == "openvino" else "float32",
            batch_size=batch_size,
            limit=(cache or FeatureCache()).limit,
            threads=beam_runner.threads_per_worker(flags),
        )
        wanted = replace(split.take(missing), digests=[digests[i] for i in missing])
        size = min(shard_size, max(1, SHARD_BYTES // (4 * math.prod(store.shape))))
        per_image = _run_pass(store.folder.parent, extractor, settings, wanted, size, flags, name)
        store.refresh()
    rows = store.find(digests)
    if (lost := int((rows < 0).sum())) > 0:
        raise InputError(
            f"The workers have finished, but the features of {lost} images are not in {str(store.folder)!r}. Set the "
            "environment variable TRANSFER_CACHE to a folder that all workers see under one name."
        )
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in extractor.outputs)
    return Features(store, rows, len(missing), run.name if len(missing) else "", shapes, per_image)


def _run_pass(
    cache: Path,
    extractor: keras.Model,
    settings: feature_shards.PassSettings,
    split: Split,
    size: int,
    flags: PipelineOptions,
    name: str,
) -> float | None:
    """Write the shards, run them on Beam, and log the speed; return the seconds per image."""
    began = time.perf_counter()
    with feature_shards.pass_folder(cache) as folder:
        count = _count_shards(len(split), size, beam_runner.count_workers(flags))
        feature_shards.write_pass(folder, extractor, settings, split, count=count)
        with _progress_bar(folder, count, name):
            beam_runner.run_shards(folder, count, flags)
        reports = feature_shards.read_reports(folder)
    seconds = time.perf_counter() - began
    per_image = feature_shards.seconds_per_image(reports)
    log.info(
        "%s: computed %d images in %d shards in %.1f s (%.1f images/s). %d workers started in %.1f s%s.",
        name,
        len(split),
        count,
        seconds,
        len(split) / seconds,
        len({report.worker for report in reports}),
        max((report.setup for report in reports), default=0.0),
        f" and then computed {1 / per_image:.1f} images/s" if per_image else "",
    )
    return per_image


def _count_shards(images: int, size: int, workers: int) -> int:
    """Return a multiple of the number of workers: the local runner gives each worker the same number of shards."""
    count = -(-images // size)
    return min(images, -(-count // workers) * workers)


@contextlib.contextmanager
def _progress_bar(folder: Path, count: int, name: str) -> Iterator[None]:
    """Show how many shards are done while the block runs."""
    from tqdm.auto import tqdm

    over = threading.Event()

    def follow() -> None:
        with tqdm(total=count, desc=name, unit=" shards", leave=False) as bar:
            while not over.wait(_INTERVAL):
                bar.update(len(list(folder.glob("*.done"))) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
