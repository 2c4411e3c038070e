"""What is asked of Apache Beam: to hand out the numbers of shards, each to a worker. It is imported when it is used."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError
from transfer.frozen import feature_shards

_LOCAL = ("DirectRunner", "FnApiRunner")


def read_options(options: Sequence[str]) -> Any:
    """Read Beam's own flags; Beam would ignore those that it does not know."""
    _beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    with _quiet("apache_beam"):
        known = PipelineOptions(list(options))
        strange = set(known.get_all_options(retain_unknown_options=True)) - set(known.get_all_options())
    if strange and _is_local(known):  # those of a cluster's runner are known there alone
        words = [o for o in options if o.lstrip("-").partition("=")[0].replace("-", "_") in strange]
        raise InputError(
            f"Unknown flag: {' '.join(words or strange)}. It is neither one of transfer.beam_features, see --help, nor "
            "one of Beam's local runner."
        )
    return known


def count_workers(flags: Any) -> int:
    """Say how many workers there are at least."""
    found = _values(flags)
    if _is_local(flags):
        return found.get("direct_num_workers") or os.cpu_count() or 1  # 0 is as many as there are cores
    return found.get("num_workers") or 1


def threads_of_each(flags: Any) -> int:
    """Say how many threads each worker is to have."""
    return max(1, (os.cpu_count() or 1) // count_workers(flags)) if _several(flags) else 0


def run_shards(folder: Path, count: int, flags: Any) -> None:
    """Let workers run the network over all shards of a pass."""
    beam = _beam()
    try:
        with _quiet("apache_beam"):
            pipeline = beam.Pipeline(runner=_runner(flags, folder), options=flags)
            numbers = pipeline | beam.Create(range(count), reshuffle=False) | beam.Reshuffle()
            _ = numbers | beam.Map(feature_shards.run_shards, str(folder))
            pipeline.run().wait_until_finish()
    except Exception as error:  # whatever a runner makes of it
        problem = feature_shards.failure(folder) or feature_shards.problem_in(error)
        if problem is None:
            raise
        raise InputError(problem) from None
    problem = feature_shards.failure(folder)
    if problem is not None:
        raise InputError(problem)


def _beam() -> Any:
    try:
        with _quiet("root"):  # it warns of what is not installed and not needed
            import apache_beam
    except ImportError:
        raise InputError(
            'Expected Apache Beam, which is not installed. Install it with pip install "transfer[beam]", or leave the '
            "pass to training itself, which needs no Beam."
        ) from None
    return apache_beam


def _values(flags: Any) -> dict[str, Any]:
    """All flags by name; Beam would warn each time of those that are for the cluster."""
    with _quiet("apache_beam"):
        return flags.get_all_options()


def _is_local(flags: Any) -> bool:
    return (_values(flags)["runner"] or _LOCAL[0]) in _LOCAL


def _several(flags: Any) -> bool:
    """Whether workers are processes that share this machine."""
    return _is_local(flags) and _values(flags)["direct_running_mode"] == "multi_processing"


def _runner(flags: Any, folder: Path) -> Any:
    """The runner: of the local ones that which knows several processes, since what Beam itself would take
    by default is a program in Go that it downloads first."""
    if not _is_local(flags):
        return None
    from apache_beam.options.pipeline_options import DirectOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    if not _several(flags):
        return FnApiRunner()
    flags.view_as(DirectOptions).direct_running_mode = "in_memory"  # or the runner would take its own command
    program = f"{shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    command = f"exec {program} 2>>{shlex.quote(str(folder / 'log'))}"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep Beam's own log to itself: an error is pages there, and a sentence here."""
    logger, root, nobody = logging.getLogger(name), logging.getLogger(), logging.NullHandler()
    level = logger.level
    root.addHandler(nobody)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        root.removeHandler(nobody)
