"""`python -m transfer.predict`: names and probabilities for images, by a trained run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.images.decoding import EXTENSIONS, BadImageError, inspect_image, to_rgb_array

if TYPE_CHECKING:  # Keras is loaded when there is something to predict, so that --help answers at once
    from transfer.results.finished_runs import FinishedRun

BATCH = 128
"""Images that are run at once; the next are decoded meanwhile. With 64 it was 4% slower, with 256 no faster."""

FEW = BATCH
"""Images up to which Keras itself runs them: to make a fast engine would take longer than they do."""


@dataclass(frozen=True)
class Prediction:
    """What a model takes an image for.

    Attributes:
        name: of the image: its path, or its number where it has none.
        class_names: in the order of the probabilities.
        probabilities: of each class, shape (classes,).
        problem: why the image could not be read; then there are no probabilities. Empty for good ones.
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    problem: str = ""

    @property
    def label(self) -> str:
        """The most probable class; empty where the image could not be read."""
        return "" if self.problem else self.class_names[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Of that class, 0 to 1."""
        return 0.0 if self.problem else float(self.probabilities.max())

    def top(self, count: int) -> list[tuple[str, float]]:
        """Give the most probable classes with their probabilities, the best first."""
        order = [] if self.problem else np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


def predict(
    run: str | Path | FinishedRun, images: Any, *, engine: str = "auto", progress: bool = True
) -> list[Prediction]:
    """Say what images show.

    They are read, resized and scaled as in training, since the same code does it.

    Args:
        run: the folder of a run, a `.keras` file that `python -m transfer.train` wrote, or of `load_run`.
        images: a file, a folder (with all that is in it), or any sequence of files, of encoded images (bytes), or
            of RGB arrays of shape (H, W, 3), 0 to 255.
        engine: what runs many images, one of `engines.ENGINES`.
        progress: show a bar when there are many.

    Returns:
        One prediction for each image, in the same order; those that cannot be read say why (`problem`).

    Raises:
        InputError: there is no such run, or no image.

    Example:
        predict("runs/emoji-small-similar-1", "photos")[0].label
    """
    items = list(find_images(images))
    return list(predictions(run, items, engine=engine, progress=progress))


def predictions(
    run: str | Path | FinishedRun, items: Iterable[Any], *, engine: str = "auto", progress: bool = False
) -> Iterator[Prediction]:
    """Do as `predict` does, one after the other, so that any number fits into memory."""
    from tqdm.auto import tqdm

    from transfer.frozen.engines import ENGINES
    from transfer.results.finished_runs import load_run

    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    known = load_run(run) if isinstance(run, str | Path) else run
    total = len(items) if isinstance(items, Sequence) else None
    forward: Callable[[np.ndarray], np.ndarray] | None = None
    hidden = not progress or (total is not None and total < FEW)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=total, desc="predicting", unit=" images", disable=hidden) as bar,
    ):
        for number, batch in enumerate(_read_ahead(items, known, pool)):
            good = (
                np.stack([p for _, p, _ in batch if p is not None]) if any(not b[2] for b in batch) else None
            )
            if forward is None and (number * BATCH >= FEW or (total or 0) > FEW):
                forward = _fast(known, engine)
            shares = iter((forward or _plain(known))(good) if good is not None else ())
            for name, pixels, problem in batch:
                row = next(shares) if pixels is not None else np.zeros(len(known.class_names))
                yield Prediction(name, known.class_names, np.asarray(row, "float64"), problem)
            bar.update(len(batch))


def _plain(run: FinishedRun) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: np.asarray(run.model.predict_on_batch(pixels.astype("float32")))


def _fast(run: FinishedRun, engine: str) -> Callable[[np.ndarray], np.ndarray]:
    from transfer.frozen.engines import make_engine

    # In full precision: the figures of the run are those of the model that is saved.
    return make_engine(run.model, engine=engine, precision="float32", batch_size=BATCH)


Read = tuple[str, np.ndarray | None, str]


def _read_ahead(items: Iterable[Any], run: FinishedRun, pool: ThreadPoolExecutor) -> Iterator[list[Read]]:
    """Decode two batches ahead of the one that is asked for."""
    size, resize = run.image_size, run.resize
    waiting: list[list[Future[Read]]] = []
    numbered = enumerate(items)
    while True:
        while len(waiting) < 3:
            some = list(itertools.islice(numbered, BATCH))
            if not some:
                break
            waiting.append([pool.submit(_read, i, item, size, resize) for i, item in some])
        if not waiting:
            return
        yield [one.result() for one in waiting.pop(0)]


def _read(number: int, item: Any, size: tuple[int, int], resize: str) -> Read:
    name = str(item) if isinstance(item, str | Path) else str(number)
    try:
        if isinstance(item, np.ndarray):
            if item.ndim not in (2, 3) or (item.ndim == 3 and item.shape[2] not in (1, 3)) or not item.size:
                return name, None, f"an array of shape {item.shape}, not (height, width, 3)"
            return name, to_rgb_array(item, size, resize=resize), ""
        if isinstance(item, str | Path) and not Path(item).is_file():
            return name, None, "no such file" if not Path(item).exists() else "not a file"
        return name, inspect_image(item, size, resize=resize).pixels, ""
    except BadImageError as error:
        return name, None, str(error)


def find_images(source: Any) -> Iterator[Any]:
    """List the images that are meant."""
    if isinstance(source, bytes) or (isinstance(source, np.ndarray) and source.ndim in (2, 3)):
        yield source
        return
    if not isinstance(source, str | Path):
        yield from source
        return
    place = Path(source).expanduser()
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not files:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise InputError(f"Expected images ({kinds}) in {place}. There are none.")
        yield from files
    elif place.exists():
        yield place
    else:
        raise InputError(f"Expected an image or a folder of images. There is none at {place}.")
