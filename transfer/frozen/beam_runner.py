"""The use of Apache Beam: read its flags, count its workers, and run the shards of a pass."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transfer.common.errors import InputError
from transfer.frozen import feature_shards

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

_LOCAL = ("DirectRunner", "FnApiRunner")


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
        return values.get("direct_num_workers") or os.cpu_count() or 1  # 0: one per core
    return values.get("num_workers") or 1


def threads_per_worker(flags: PipelineOptions) -> int:
    """Return the threads of each worker if several share this machine, else 0."""
    return max(1, (os.cpu_count() or 1) // count_workers(flags)) if _has_processes(flags) else 0


def run_shards(folder: Path, count: int, flags: PipelineOptions) -> None:
    """Run all shards of a pass on Beam's workers."""
    beam = _beam()
    try:
        with _quiet("apache_beam"):
            pipeline = beam.Pipeline(runner=_runner(flags, folder), options=flags)
            numbers = pipeline | beam.Create(range(count), reshuffle=False) | beam.Reshuffle()
            _ = numbers | beam.Map(feature_shards.run_shard, str(folder))
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
            'Apache Beam is not installed. Install it with pip install "transfer[beam]", or train without it: '
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
