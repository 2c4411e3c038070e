"""Extract features on Apache Beam, on this machine or a cluster, into the cache that training reads.

The command is `python -m transfer.beam_features`. It needs `pip install "transfer-cases[beam]"`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transfer.common.errors import InputError, install_hint
from transfer.common.streams import progress_bar
from transfer.frozen import feature_shards

if TYPE_CHECKING:
    import keras
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from transfer.frozen.extraction import Features
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.images.datasets import Split

log = logging.getLogger(__name__)

SHARD_SIZE = 4096
"""Images per shard. A killed worker loses at most one shard. A hundred million images make 24,000 shards."""

SHARD_BYTES = 64 * 2**20
"""Bytes of features per shard."""

BATCH_SIZE = 32
"""Images per batch, as without Beam."""

_INTERVAL = 2.0  # seconds between updates of the progress bar
_LOCAL = ("DirectRunner", "FnApiRunner")


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
    """Extract the features of one view on all workers of Beam; the result is that of `extraction.extract`."""
    flags = read_options(options)
    from transfer.frozen.engines import make_engine
    from transfer.frozen.extraction import Features
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.frozen.shared_pass import missing_rows
    from transfer.frozen.store_keys import digests_of, open_store

    if not len(split):
        raise InputError("Expected a split with images. Received: an empty split.")
    if shard_size < 1:
        raise InputError(f"Expected a shard_size of at least 1 image. Received: {shard_size}.")
    run = make_engine(extractor, engine=engine, precision=precision, batch_size=batch_size)
    store = open_store(
        run,
        image_size=image_size,
        resize=split.resize,
        dtype=dtype,
        cache=cache,
        pixel_range=split.pixel_range,
    )
    digests = digests_of(split)
    missing = missing_rows(store, digests)
    per_image = None
    if len(missing):
        words = run.name.split()  # such as "openvino bfloat16"
        settings = feature_shards.PassSettings(
            store=store.folder.name,
            image_size=image_size,
            resize=split.resize,
            pixel_range=split.pixel_range,
            dtype=dtype,
            engine=words[0],  # the engine of this process: "auto" may choose another one on a worker
            precision=words[-1] if words[0] == "openvino" else "float32",
            batch_size=batch_size,
            limit=(cache or FeatureCache()).limit,
            threads=threads_per_worker(flags),
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
        count = _count_shards(len(split), size, count_workers(flags))
        feature_shards.write_pass(folder, extractor, split, count=count)
        with _progress_bar(folder, count, name):
            run_shards(folder, settings, count, flags)
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
    """Return a multiple of the number of workers, among which the local runner divides the shards evenly."""
    count = -(-images // size)
    return min(images, -(-count // workers) * workers)


@contextlib.contextmanager
def _progress_bar(folder: Path, count: int, name: str) -> Iterator[None]:
    """Show how many shards are done while the block runs."""

    over = threading.Event()

    def follow() -> None:
        with progress_bar(total=count, desc=name, unit=" shards", leave=False) as bar:
            while not over.wait(_INTERVAL):
                bar.update(len(list(folder.glob("*.done"))) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def read_options(options: Sequence[str]) -> PipelineOptions:
    """Read Beam's flags; raise InputError for unknown ones, which Beam would ignore."""
    _beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    with _quiet("apache_beam"):
        flags = PipelineOptions(list(options))
        unknown = set(flags.get_all_options(retain_unknown_options=True)) - set(flags.get_all_options())
    if unknown and _is_local(flags):  # only the runner of a cluster knows its own flags
        words = [o for o in options if o.lstrip("-").partition("=")[0].replace("-", "_") in unknown]
        raise InputError(
            f"Unknown flag: {' '.join(words or unknown)}. Expected a flag of transfer.beam_features (see --help) or of "
            "Beam's local runner."
        )
    return flags


def count_workers(flags: PipelineOptions) -> int:
    """Return the smallest number of workers that the flags ask for."""
    values = _values(flags)
    if _is_local(flags):
        return values.get("direct_num_workers") or os.cpu_count() or 1  # 0 means one per core
    return values.get("num_workers") or 1


def threads_per_worker(flags: PipelineOptions) -> int:
    """Return the threads of each worker if several share this machine, else 0."""
    return max(1, (os.cpu_count() or 1) // count_workers(flags)) if _has_processes(flags) else 0


def run_shards(
    folder: Path, settings: feature_shards.PassSettings, count: int, flags: PipelineOptions
) -> None:
    """Run all shards of a pass on Beam's workers."""
    beam = _beam()
    try:
        with _quiet("apache_beam"):
            pipeline = beam.Pipeline(runner=_runner(flags, folder), options=flags)
            numbers = pipeline | beam.Create(range(count), reshuffle=False) | beam.Reshuffle()
            _ = numbers | beam.Map(feature_shards.run_shard, folder, settings)
            pipeline.run().wait_until_finish()
    except Exception as error:  # each runner wraps errors in its own way
        problem = feature_shards.failure(folder) or feature_shards.problem_in(error)
        if problem is None:
            raise
        raise InputError(problem) from None
    problem = feature_shards.failure(folder)
    if problem is not None:
        raise InputError(problem)


def _beam() -> ModuleType:
    try:
        with _quiet("root"):  # it warns about optional packages
            import apache_beam
    except ImportError:
        raise InputError(
            f"Apache Beam is not installed. Install it with {install_hint('beam')}, or train without it: "
            "training computes the same features."
        ) from None
    return apache_beam


def _values(flags: PipelineOptions) -> dict[str, Any]:
    with _quiet("apache_beam"):  # it warns about each flag of a cluster's runner
        return flags.get_all_options()


def _is_local(flags: PipelineOptions) -> bool:
    return (_values(flags)["runner"] or _LOCAL[0]) in _LOCAL


def _has_processes(flags: PipelineOptions) -> bool:
    """Return whether the workers are several processes on this machine."""
    return _is_local(flags) and _values(flags)["direct_running_mode"] == "multi_processing"


def _runner(flags: PipelineOptions, folder: Path) -> FnApiRunner | None:
    # Beam's default local runner is a Go program that it downloads first. FnApiRunner runs several processes, too.
    if not _is_local(flags):
        return None
    from apache_beam.options.pipeline_options import DirectOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    if not _has_processes(flags):
        return FnApiRunner()
    flags.view_as(
        DirectOptions
    ).direct_running_mode = "in_memory"  # otherwise the runner uses its own command
    program = f"{shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    command = f"exec {program} 2>>{shlex.quote(str(folder / 'log'))}"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger: Beam logs pages for each error that is reported here in one sentence."""
    logger, root, handler = logging.getLogger(name), logging.getLogger(), logging.NullHandler()
    level = logger.level
    root.addHandler(handler)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        root.removeHandler(handler)
