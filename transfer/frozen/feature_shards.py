"""Extract features in shards: a folder with the network and the images of each shard, and the workers' part.

A worker gets the folder, the settings, and the number of a shard. It writes a report.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import feather

from transfer.common.errors import InputError, one_line
from transfer.common.files import replacing, write_text
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.decoding import to_rgb_array
from transfer.images.pixel_range import PixelRange
from transfer.images.splitting import Split

if TYPE_CHECKING:
    import keras

WEEK = 7 * 24 * 3600.0
"""Age in seconds after which the folder of a killed pass is deleted; no shard takes so long."""

_PREFIX = "pass-"
# An image is the path of a file, an encoded file, or an RGB array, which has a height.
_SCHEMA = pa.schema(
    {"path": pa.binary(), "content": pa.large_binary(), "height": pa.int32(), "digest": pa.string()}
)


@dataclass(frozen=True)
class PassSettings:
    """Settings that all workers of a pass share."""

    # Name of the store's folder, which is beside the folder of the pass.
    store: str
    # Height and width in pixels.
    image_size: tuple[int, int]
    # How images are resized.
    resize: str
    dtype: str
    engine: str
    precision: str
    batch_size: int
    # Size limit of the cache in bytes.
    limit: int
    # The range of images with more than 8 bits per channel.
    pixel_range: PixelRange | None = None
    # Threads per worker if several workers share a machine; 0 leaves it to TensorFlow.
    threads: int = 0


@dataclass(frozen=True)
class ShardReport:
    """A worker's report of a shard; times are seconds since 1970."""

    worker: str
    images: int
    # Times at which the first and the last batch were done.
    first: float
    last: float
    # Images of the first batch.
    first_batch: int
    # Seconds that the worker needed to start, imports included.
    setup: float


@contextmanager
def pass_folder(cache: Path) -> Iterator[Path]:
    """Make the folder of a pass, and delete it afterwards."""
    for old in cache.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > WEEK:
                shutil.rmtree(old, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=cache))
        folder.chmod(0o755)  # workers may be other users
    except OSError as error:
        raise InputError(
            f"Cannot write to {str(cache)!r}: {(error.strerror or str(error)).lower()}. Set the environment variable "
            "TRANSFER_CACHE to a folder that all workers see, on a disk with enough room."
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _worker.cache_clear()


def write_pass(folder: Path, extractor: keras.Model, split: Split, *, count: int) -> None:
    """Write the network, and the images as a number of shards."""
    path = folder / "extractor.keras"
    try:
        from transfer.networks.model_files import save_model

        save_model(extractor, path)  # workers may have an older version of Keras
    except OSError as error:
        raise InputError(f"Cannot write {str(path)!r}: {(error.strerror or str(error)).lower()}.") from None
    except Exception as error:  # custom layers may raise anything
        raise InputError(
            f"{extractor.name!r} cannot be saved for the workers: {one_line(error, most=200)}. get_config() of each "
            "layer must return all arguments of __init__."
        ) from error
    order = np.random.default_rng(0).permutation(len(split))
    for number, positions in enumerate(np.array_split(order, count)):
        write_shard(folder / f"{number}.shard", split.take(positions))


def write_shard(path: Path, shard: Split) -> None:
    """Write the paths of image files and the content of other images."""
    rows = [
        {**_row(image, shard.pixel_range), "digest": digest}
        for image, digest in zip(shard.images, shard.digests, strict=True)
    ]
    with replacing(path) as partial, open(partial, "wb") as file:
        feather.write_feather(pa.Table.from_pylist(rows, _SCHEMA), file, "uncompressed")


def _row(image: str | Path | bytes | np.ndarray, pixel_range: PixelRange | None) -> dict[str, bytes | int]:
    if isinstance(image, bytes):
        return {"content": image}
    if isinstance(image, np.ndarray):
        pixels = to_rgb_array(image, pixel_range=pixel_range)
        return {"content": pixels.tobytes(), "height": len(pixels)}
    return {"path": os.fsencode(os.path.abspath(image))}  # a worker may run in another folder


def read_shard(path: Path, resize: str, pixel_range: PixelRange | None = None) -> Split:
    """Read the images of a shard."""
    *columns, digests = feather.read_table(path, memory_map=False).to_pydict().values()
    images = [_image(*values) for values in zip(*columns, strict=True)]
    labels = np.zeros(len(images), "int64")
    return Split(images, labels, digests, digests=digests, resize=resize, pixel_range=pixel_range)


def _image(path: bytes | None, content: bytes, height: int | None) -> str | bytes | np.ndarray:
    if path is not None:
        return os.fsdecode(path)
    return content if height is None else np.frombuffer(content, "uint8").reshape(height, -1, 3)


class Worker:
    """The network and the store of a pass in one worker process."""

    def __init__(self, folder: Path, settings: PassSettings) -> None:
        began = time.time()
        host = socket.gethostname()
        if not folder.is_dir():
            raise InputError(
                f"The worker on {host} does not see {str(folder)!r}. Set the environment variable TRANSFER_CACHE to a "
                "folder that all workers see under one name."
            )
        if settings.threads:  # TensorFlow reads them when it first computes
            for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
                os.environ.setdefault(name, str(settings.threads))
        if "tensorflow" not in sys.modules:
            from transfer.distributed import strategies

            strategies.start_quietly()
        import keras

        from transfer.frozen.engines import make_engine
        from transfer.frozen.store_keys import open_store

        try:
            extractor = keras.models.load_model(folder / "extractor.keras", compile=False)
        except Exception as error:  # custom layers may raise anything
            raise InputError(
                f"The network cannot be loaded by the worker on {host}: {one_line(error, most=200)}. Use a network of "
                "Keras' own layers without Lambda, or extract its features without Beam."
            ) from None
        self.run = make_engine(
            extractor, engine=settings.engine, precision=settings.precision, batch_size=settings.batch_size
        )
        cache = FeatureCache(folder.parent, limit=settings.limit)
        self.store = open_store(
            self.run,
            image_size=settings.image_size,
            resize=settings.resize,
            dtype=settings.dtype,
            cache=cache,
            pixel_range=settings.pixel_range,
        )
        if self.store.folder.name != settings.store:
            raise InputError(
                f"The worker on {host} uses the engine {self.run.name}, which computes other features than requested. "
                "Set engine='keras' or precision='float32', which work on all machines."
            )
        self.folder, self.settings, self.name = folder, settings, f"{host} {os.getpid()}"
        self._lock = threading.Lock()
        self.setup = time.time() - began

    def work(self, number: int) -> ShardReport | None:
        """Compute the features of a shard that the store lacks."""
        from transfer.frozen.extraction import compute_features

        with self._lock:  # an engine serves one thread
            settings = self.settings
            shard = read_shard(self.folder / f"{number}.shard", settings.resize, settings.pixel_range)
            # Another worker may have begun the shard.
            missing = np.flatnonzero(self.store.find(shard.digests) < 0)
            if not len(missing):
                return None
            with suppress(OSError):  # on a disk without locks, the time shows that the store is in use
                os.utime(self.store.folder / "used")
            shard = shard.take(missing)
            times = compute_features(
                self.run, self.store, shard, shard.digests, image_size=self.settings.image_size
            )
        (first, first_batch), (last, _) = times[0], times[-1]
        return ShardReport(self.name, len(shard), first, last, first_batch, self.setup)


_worker = functools.lru_cache(maxsize=1)(Worker)  # loading the network takes seconds
_lock = threading.Lock()


def run_shard(number: int, folder: Path, settings: PassSettings) -> None:
    """Run a shard in this worker process, and write a report or the problem."""
    if failure(folder) is not None:
        return
    try:
        with _lock:
            worker = _worker(folder, settings)
        report = worker.work(number)
    except Exception as error:
        problem = problem_in(error)
        if problem is None or not folder.is_dir():
            raise
        write_text(folder / "failure", problem)
        return
    if report is not None:
        write_text(folder / f"{number}.done", json.dumps(asdict(report)))


def failure(folder: Path) -> str | None:
    """Return the problem that a worker of a pass has written."""
    with suppress(FileNotFoundError):
        return (folder / "failure").read_text(encoding="utf-8")
    return None


def problem_in(error: BaseException) -> str | None:
    """Return the message of an InputError that Beam or TensorFlow may have wrapped in another error."""
    if isinstance(error, InputError):
        return str(error)
    match = re.search(r"InputError: (.+?)(?: ?\[while running|\\n|$)", str(error), flags=re.MULTILINE)
    return match.group(1).strip() if match else None


def read_reports(folder: Path) -> list[ShardReport]:
    """Read the reports of all workers."""
    return [
        ShardReport(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.done"))
    ]


def seconds_per_image(reports: Sequence[ShardReport]) -> float | None:
    """Return the seconds per image of all workers together, without each worker's first batch."""
    rates = []
    for worker in {report.worker for report in reports}:
        own = sorted((r for r in reports if r.worker == worker), key=lambda report: report.first)
        images, seconds = sum(r.images for r in own) - own[0].first_batch, own[-1].last - own[0].first
        if images and seconds > 0:
            rates.append(images / seconds)
    return 1 / sum(rates) if rates else None
