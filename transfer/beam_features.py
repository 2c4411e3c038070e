"""The forward pass on Apache Beam: on the cores of this machine, or on a cluster, into the cache that training reads.

`python -m transfer.beam_features --data DIR --model NAME` fills the cache for case 1, `--case small-similar`; flags
that it does not know are Beam's. It needs `pip install "transfer[beam]"`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer import beam_runner, feature_shards
from transfer.cases import POLICIES, Case
from transfer.commands import carried_out
from transfer.config import DataConfig
from transfer.errors import InputError

if TYPE_CHECKING:
    import keras

    from transfer.cache import FeatureCache
    from transfer.datasets import Split
    from transfer.features import Features

log = logging.getLogger("transfer.beam_features")  # __name__ is __main__ where this room is the command

SHARD_SIZE = 4096
"""Pictures: so many are lost at most, for each worker, when a pass is killed. A hundred million are 24,000 files."""

SHARD_BYTES = 64 * 2**20
"""Of rows: what a worker holds of a shard."""

BATCH_SIZE = 32
"""Pictures per step, as in the pass without Beam."""

_LOOKING = 2.0  # seconds between looks at what is done

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PassConfig(DataConfig):
    """Run a frozen network over labelled pictures on Apache Beam, and keep what it gives. Other flags are Beam's."""

    # Pre-trained network: a name from keras.applications, EfficientNetLite0 to 2, or a .keras file of your own.
    model: str = "EfficientNetLite0"
    # 'pretrained', 'none' for random ones, or a weights file.
    weights: str = "pretrained"
    # How your own .keras file wants its input: none, tf, torch, caffe or lite.
    preprocessing: str | None = None
    # The case to train later: small-similar or small-different.
    case: str = "small-similar"
    # The last layer to keep, by name; several, with commas, or 'all'; by default the case's own.
    cut: str | None = None
    # Pixels, height and width; by default those that the network was trained for.
    image_size: int | None = None
    # What runs the network: auto, keras or openvino (pip install ".[fast]").
    engine: str = "auto"
    # What OpenVINO computes in: auto, float32 or bfloat16.
    precision: str = "auto"
    # Pictures per shard, at most.
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        """Check what can be checked without looking at data or networks."""
        super().__post_init__()
        if not POLICIES[Case.parse(self.case)].frozen:
            raise InputError(
                f"Expected a case that freezes the network, small-similar or small-different. Received: {self.case}."
            )


def extract_with_beam(
    trunk: keras.Model,
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
    """Do what `features.extract` does for one view, with as many workers as Beam has.

    What is on disk already is not computed again, what this computes is found by `features.extract`, and a pass that
    was killed goes on where it was, but for the shards that were being computed. The workers need a disk that all see:
    the cache is plain files, and so are pictures that came as files. Others are copied there while the pass lasts.

    Args:
        trunk: a model that eats raw RGB, 0 to 255, without layers of code that is not installed on the workers.
        split: the pictures.
        image_size: height and width in pixels.
        batch_size: pictures per step.
        engine: one of `engines.ENGINES`.
        precision: one of `engines.PRECISIONS`.
        dtype: in which the features are kept, `"float32"` or `"float16"`.
        cache: where to keep them; None is the user's own cache.
        shard_size: pictures that a worker computes before it writes them, at most.
        options: Beam's own flags, such as `["--direct_running_mode=multi_processing", "--direct_num_workers=2"]`. By
            default all is done in this process.
        name: of the pass, for the progress bar and the log.

    Returns:
        The features, as `features.extract` gives them; `computed` counts what this pass ran the network over.

    Raises:
        InputError: Beam is not installed, a flag is not Beam's, or what `features.extract` refuses, on any worker.

    Example:
        extract_with_beam(trunk, data.train, image_size=(96, 96), options=["--runner=FlinkRunner"])
    """
    flags = beam_runner.read_options(options)
    from transfer.cache import FeatureCache
    from transfer.engines import make_engine
    from transfer.feature_shelf import digests_of, open_shelf
    from transfer.features import Features
    from transfer.shared_pass import missing_rows

    if not len(split):
        raise InputError("Expected pictures to run the network over. Received: an empty split.")
    if shard_size < 1:
        raise InputError(f"Expected a shard_size of 1 picture or more. Received: {shard_size}.")
    run = make_engine(trunk, engine=engine, precision=precision, batch_size=batch_size)
    shelf = open_shelf(run, image_size=image_size, resize=split.resize, dtype=dtype, cache=cache)
    digests = digests_of(split)
    missing = missing_rows(shelf, digests)
    per_picture = None
    if len(missing):
        plan = feature_shards.Plan(
            shelf=shelf.folder.name,
            image_size=image_size,
            resize=split.resize,
            dtype=dtype,
            **_same_engine(run.name),
            batch_size=batch_size,
            limit=(cache or FeatureCache()).limit,
            threads=beam_runner.threads_of_each(flags),
        )
        wanted = replace(split.take(missing), digests=[digests[i] for i in missing])
        size = min(shard_size, max(1, SHARD_BYTES // (4 * math.prod(shelf.shape))))
        per_picture = _pass(shelf.folder.parent, trunk, plan, wanted, size, flags, name)
        shelf.refresh()
    rows = shelf.find(digests)
    _refuse_lost(int((rows < 0).sum()), shelf.folder)
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in trunk.outputs)
    return Features(shelf, rows, len(missing), run.name if len(missing) else "", shapes, per_picture)


def _same_engine(name: str) -> dict[str, str]:
    """What makes a worker choose the engine that was chosen here, whatever `"auto"` would be there."""
    kind, rest = name.split()[0], name.split()[-1]
    return {"engine": kind, "precision": rest if kind == "openvino" else "float32"}


def _refuse_lost(lost: int, folder: Path) -> None:
    if lost:
        raise InputError(
            f"The workers are done, but {lost} pictures are not in {str(folder)!r} here. Set the environment variable "
            "TRANSFER_CACHE to a folder on a disk that all workers see under one name."
        )


def _pass(
    cache: Path,
    trunk: keras.Model,
    plan: feature_shards.Plan,
    wanted: Split,
    size: int,
    flags: Any,
    name: str,
) -> float | None:
    """Lay the shards out, let Beam work them off, and say how it went; give the seconds per picture."""
    began = time.perf_counter()
    with feature_shards.pass_folder(cache) as folder:
        count = _shards(len(wanted), size, beam_runner.count_workers(flags))
        feature_shards.lay_out(folder, trunk, plan, wanted, count=count)
        with _bar(folder, count, name):
            beam_runner.work_off(folder, count, flags)
        done = feature_shards.reports(folder)
    seconds = time.perf_counter() - began
    per_picture = feature_shards.per_picture(done)
    log.info(
        "%s: %d pictures in %d shards, %.1f s, %.1f pictures/s; %.1f s to start each of %d workers, %s afterwards.",
        name,
        len(wanted),
        count,
        seconds,
        len(wanted) / seconds,
        max((report.setup for report in done), default=0.0),
        len({report.worker for report in done}),
        f"{1 / per_picture:.1f} pictures/s" if per_picture else "a batch each",
    )
    return per_picture


def _shards(pictures: int, size: int, workers: int) -> int:
    """How many shards there are: as many for each worker, since the local runner gives each as many."""
    count = -(-pictures // size)
    return min(pictures, -(-count // workers) * workers)


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


def parse_pass_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[PassConfig, tuple[str, ...], list[str]]:
    """Read the flags of `python -m transfer.beam_features`.

    Args:
        arguments: the flags; None takes those of the process.

    Returns:
        The options, the splits, and what is for Beam.

    Raises:
        InputError: a value is out of range.
        SystemExit: with 0 after `--help`, with 2 after flags that do not parse.

    Example:
        >>> options, splits, flags = parse_pass_arguments(["--data", "photos", "--runner=FlinkRunner"])
        >>> options.data, splits, flags
        ('photos', ('train', 'val', 'test'), ['--runner=FlinkRunner'])
    """
    import simple_parsing

    parser = simple_parsing.ArgumentParser(
        prog="python -m transfer.beam_features",
        allow_abbrev=False,
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
        argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
    )
    which = "which pictures to run the network over; by default all"
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help=which)
    parser.add_arguments(PassConfig, dest="options")
    parsed, flags = parser.parse_known_args(arguments)
    return parsed.options, tuple(parsed.splits), flags


def run(config: PassConfig, *, splits: Sequence[str] = SPLITS, flags: Sequence[str] = ()) -> int:
    """Fill the cache with what `fit` and `evaluate` will look for.

    Args:
        config: the options.
        splits: which pictures, of `SPLITS`.
        flags: Beam's own.

    Returns:
        For how many pictures the network ran.

    Raises:
        InputError: an option is wrong, or see `extract_with_beam`.

    Example:
        run(PassConfig(data="photos"), flags=["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    """
    beam_runner.read_options(flags)  # before anything slow
    from transfer import strategy

    strategy.start_quietly()
    from transfer import builders, datasets, features
    from transfer.backbones import load_backbone

    data = datasets.load_data(config.data, **config.load_options())
    base = load_backbone(config.model, weights=config.weights, image_size=config.image_size)
    options: dict[str, Any] = {"image_size": config.image_size, "preprocessing": config.preprocessing}
    model = builders.build(config.case, base, data.num_classes, cut=config.cut, strategy="default", **options)
    trunk = features.frozen_trunk(model)
    size = features.input_size(model, data)
    wanted = [data.splits[name] for name in splits if len(data.splits[name])]
    name = ", ".join(name for name in splits if len(data.splits[name]))
    if not wanted:
        raise InputError(f"Expected pictures in {', '.join(splits)}. Received: none.")
    found = extract_with_beam(
        trunk,
        _together(wanted),
        image_size=size,
        engine=config.engine,
        precision=config.precision,
        shard_size=config.shard_size,
        options=flags,
        name=name,
    )
    log.info("%s: %d of %d pictures computed; %s", name, found.computed, len(found), found.shelf.folder)
    return found.computed


def _together(parts: Sequence[Split]) -> Split:
    """Several splits as one, so that workers start once; no picture is read."""
    return replace(
        parts[0],
        pictures=_Chain([part.pictures for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        names=[name for part in parts for name in part.names],
        groups=(),
        digests=[digest for part in parts for digest in part.digests],
    )


class _Chain(Sequence[Any]):
    """Several sequences of pictures as one."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: Any) -> Any:
        number = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[number][int(i) - (int(self.ends[number - 1]) if number else 0)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: flags; None takes those of the process.

    Returns:
        The exit code: 0; 2 after bad input, of which standard error has one clear message; 130 after Ctrl-C.

    Example:
        main(["--data", "photos", "--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    """

    def work() -> None:
        options, splits, flags = parse_pass_arguments(arguments)
        run(options, splits=splits, flags=flags)

    said = "Stopped. The same command goes on from there."
    return carried_out(work, stream=sys.stdout, stopped=said, level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
