"""One forward pass in shards: images laid out on a disk that all workers see, and what a worker does with a shard.

A pass is a folder beside the stores: the network, what to do with it, and a file for each shard. A worker needs to be
told nothing but the folder and the number of a shard, and answers with a file. Nothing here knows who starts workers.
"""

from __future__ import annotations

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
from typing import Any

import numpy as np

from transfer.common.errors import InputError, one_line
from transfer.common.files import replacing, write_text
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.decoding import to_rgb_array
from transfer.images.splitting import Split

FORGOTTEN = 7 * 24 * 3600.0
"""Seconds after which what a killed pass left is removed; no shard takes so long."""

_PATH, _ENCODED = -2, -1  # instead of a height, for images that are no pixels yet
_PREFIX = "pass-"


@dataclass(frozen=True)
class PassSettings:
    """What every worker of a pass does."""

    # Name of the store's folder, beside that of the pass.
    store: str
    # Height and width in pixels.
    image_size: tuple[int, int]
    # How images get that shape.
    resize: str
    dtype: str
    engine: str
    precision: str
    batch_size: int
    # Of the cache, in bytes.
    limit: int
    # Of a worker, where several share a machine.
    threads: int = 0


@dataclass(frozen=True)
class Done:
    """What a worker says of a shard."""

    worker: str
    images: int
    # When it took the shard, in seconds since 1970.
    began: float
    first: float
    first_batch: int
    ended: float
    # Seconds that the worker needed before its first shard, imports included.
    setup: float


@contextmanager
def pass_folder(cache: Path) -> Iterator[Path]:
    """Make the folder of a pass, and remove it afterwards."""
    for old in cache.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(old, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=cache))
        folder.chmod(0o755)  # workers may be other users
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"Cannot write to {str(cache)!r}: {reason}. Set the environment variable TRANSFER_CACHE to a folder on a "
            "disk with room that all workers see."
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with _lock:
            _workers.pop(str(folder), None)


def lay_out(folder: Path, extractor: Any, plan: PassSettings, split: Split, *, count: int) -> None:
    """Write all that workers need."""
    _save(extractor, folder / "trunk.keras")
    write_text(folder / "plan.json", json.dumps(asdict(plan)))
    order = np.random.default_rng(0).permutation(len(split))
    for number, positions in enumerate(np.array_split(order, count)):
        write_shard(folder / f"{number}.shard", split.take(positions))


def _save(extractor: Any, path: Path) -> None:
    try:
        extractor.save(path)
    except OSError as error:
        raise InputError(f"Cannot write {str(path)!r}: {(error.strerror or str(error)).lower()}.") from None
    except Exception as error:  # the layers' own code runs, and may raise anything
        raise InputError(
            f"{extractor.name!r} cannot be saved for the workers: {one_line(error, most=200)}. Let each of its "
            "layers give all arguments of __init__ in get_config()."
        ) from error


def write_shard(path: Path, images: Split) -> None:
    """Write which images are in a shard: the paths of files, and the content of others."""
    parts = [_written(image) for image in images.images]
    content = np.frombuffer(b"".join(part for part, _ in parts), "uint8")
    sizes, shapes = [len(part) for part, _ in parts], [shape for _, shape in parts]
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(
            file,
            content=content,
            sizes=np.array(sizes, "int64"),
            shapes=np.array(shapes, "int32").reshape(-1, 2),
            digests=np.array(list(images.digests), "S"),
        )


def _written(image: Any) -> tuple[bytes, tuple[int, int]]:
    if isinstance(image, bytes):
        return image, (_ENCODED, 0)
    if isinstance(image, np.ndarray):
        pixels = to_rgb_array(image)
        return pixels.tobytes(), pixels.shape[:2]
    return os.fsencode(os.path.abspath(image)), (_PATH, 0)  # a worker may be in another folder


def read_shard(path: Path, resize: str) -> Split:
    """Read which images are in a shard."""
    with np.load(path, allow_pickle=False) as found:
        content, sizes, shapes = (found[name] for name in ("content", "sizes", "shapes"))
        digests = [digest.decode() for digest in found["digests"].tolist()]
    parts = np.split(content, np.cumsum(sizes)[:-1])
    images: list[Any] = []
    for part, (height, width) in zip(parts, shapes.tolist(), strict=True):
        if height in (_PATH, _ENCODED):
            images.append(os.fsdecode(part.tobytes()) if height == _PATH else part.tobytes())
        else:
            images.append(part.reshape(height, width, 3))
    return Split(images, np.zeros(len(images), "int64"), digests, digests=digests, resize=resize)


class Worker:
    """A network, ready to run over the shards of a pass; made once in each process."""

    def __init__(self, folder: Path) -> None:
        began = time.time()
        self.folder = folder
        try:
            self.plan = PassSettings(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(
                f"Expected a worker on {socket.gethostname()} to see {str(folder)!r}. Set the environment variable "
                "TRANSFER_CACHE to a folder on a disk that all workers see under one name."
            ) from None
        if self.plan.threads:  # TensorFlow looks when it computes for the first time
            for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
                os.environ.setdefault(name, str(self.plan.threads))
        if "tensorflow" not in sys.modules:
            from transfer.distributed import strategies

            strategies.start_quietly()
        self._make()
        self._lock = threading.Lock()
        self.setup = time.time() - began

    def _make(self) -> None:
        import keras

        from transfer.frozen.engines import make_engine
        from transfer.frozen.store_keys import open_store

        plan = self.plan
        try:
            extractor = keras.models.load_model(self.folder / "trunk.keras", compile=False)
        except Exception as error:  # the layers' own code runs, if it may
            raise InputError(
                f"The network cannot be loaded by the worker on {socket.gethostname()}: "
                f"{one_line(error, most=200)}. Use layers of Keras alone, without Lambda, or "
                "features.extract."
            ) from None
        self.run = make_engine(
            extractor, engine=plan.engine, precision=plan.precision, batch_size=plan.batch_size
        )
        self.size = (plan.image_size[0], plan.image_size[1])
        self.store = open_store(
            self.run,
            image_size=self.size,
            resize=plan.resize,
            dtype=plan.dtype,
            cache=FeatureCache(self.folder.parent, limit=plan.limit),
        )
        if self.store.folder.name != plan.store:
            raise InputError(
                f"A worker on {socket.gethostname()} runs the network as {self.run.name}, which gives other numbers "
                f"than were asked for. Say engine='keras', or precision='float32', which all workers can."
            )

    def work(self, number: int) -> Done | None:
        """Run the network over a shard and write what it gives, all of it at once."""
        with self._lock:  # an engine is for one thread
            shard = read_shard(self.folder / f"{number}.shard", self.plan.resize)
            left = np.flatnonzero(self.store.find(shard.digests) < 0)  # it may have been begun before
            if not len(left):
                return None
            with suppress(OSError):  # disks without locks see by this that the store is in use
                os.utime(self.store.folder / "used")
            return self._computed(shard.take(left))

    def _computed(self, shard: Split) -> Done:
        from transfer.images.pipeline import make_dataset

        began = time.time()
        first, held = began, []
        for images, _ in make_dataset(shard, image_size=self.size, batch_size=self.run.batch_size):
            held.append(self.run(np.asarray(images)))
            first = first if len(held) > 1 else time.time()
        self.store.append(list(shard.digests), np.concatenate(held))
        me = f"{socket.gethostname()} {os.getpid()}"
        return Done(me, len(shard), began, first, len(held[0]), time.time(), self.setup)


_workers: dict[str, Worker] = {}
_lock = threading.Lock()


def run_shards(number: int, folder: str) -> None:
    """Do what a worker does with a shard; the process's first makes the worker."""
    place = Path(folder)
    if failure(place) is not None:
        return
    try:
        with _lock:
            if folder not in _workers:
                _workers[folder] = Worker(place)
        done = _workers[folder].work(number)
    except Exception as error:
        problem = problem_in(error)
        if problem is None or not place.is_dir():
            raise
        write_text(place / "failure", problem)
        return
    if done is not None:
        write_text(place / f"{number}.done", json.dumps(asdict(done)))


def failure(folder: Path) -> str | None:
    """Say what went wrong in a pass."""
    with suppress(FileNotFoundError):
        return (folder / "failure").read_text(encoding="utf-8")
    return None


def problem_in(error: BaseException) -> str | None:
    """Find the message for the user in an error, however it was wrapped."""
    if isinstance(error, InputError):
        return str(error)
    found = re.search(r"InputError: (.+?)(?: ?\[while running|\\n|$)", str(error), flags=re.MULTILINE)
    return found.group(1).strip() if found else None


def reports(folder: Path) -> list[Done]:
    """Read what workers have said."""
    return [Done(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.done"))]


def per_image(done: Sequence[Done]) -> float | None:
    """Say what an image took, workers side by side, from when the first batches of all were there."""
    rates = []
    for worker in {report.worker for report in done}:
        own = sorted((report for report in done if report.worker == worker), key=lambda report: report.began)
        images = sum(report.images for report in own) - own[0].first_batch
        if images and own[-1].ended > own[0].first:
            rates.append(images / (own[-1].ended - own[0].first))
    return 1 / sum(rates) if rates else None
