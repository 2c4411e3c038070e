"""Predict the classes of images with a trained run."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.common.streams import progress_bar
from transfer.images.decoding import BadImageError, inspect_image, to_rgb_array
from transfer.images.formats import EXTENSIONS, READABLE
from transfer.images.pixel_range import PixelRange

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # Keras is imported only when there are images to predict, so that --help is fast
    from transfer.results.finished_runs import FinishedRun

BATCH = 128
"""Images per batch; the next batches are decoded at the same time. 64 was 4% slower, 256 was no faster."""

FEW = BATCH
"""Up to this number of images, plain Keras runs the model: building a faster engine would take longer."""

Image = str | Path | bytes | np.ndarray
"""One image: a file, the bytes of an encoded image, or an RGB array of shape (H, W, 3), 0 to 255."""

_Forward = Callable[[np.ndarray], np.ndarray]
_Decoded = tuple[str, np.ndarray | None, str]  # name, pixels, and the problem if there are no pixels


@dataclass(frozen=True)
class Prediction:
    """The class probabilities of one image.

    Attributes:
        name: Path of the image, or its position in the input if it has no path.
        class_names: Class names in the order of the probabilities.
        probabilities: Probability of each class, shape (classes,); zeros if there is a problem.
        problem: Why the image could not be read; empty for a readable image.

    Example:
        >>> prediction = Prediction("photo.jpg", ("cat", "dog"), np.array([0.25, 0.75]))
        >>> prediction.label, prediction.top(1)
        ('dog', [('dog', 0.75)])
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    problem: str = ""

    @property
    def label(self) -> str:
        """The most probable class; empty if the image could not be read."""
        return "" if self.problem else self.class_names[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Probability of the most probable class, 0 to 1."""
        return 0.0 if self.problem else float(self.probabilities.max())

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, in descending order."""
        order = [] if self.problem else np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


def predict(
    run: str | Path | FinishedRun,
    images: Image | Iterable[Image],
    *,
    engine: str = "auto",
    progress: bool = True,
) -> list[Prediction]:
    """Predict the classes of images.

    Images are decoded, resized and scaled by the same code as in training.

    Args:
        run: The folder of a run, a `.keras` file that `python -m transfer.train` wrote, or a run from `load_run`.
        images: A file, a folder (searched with its sub-folders), or a sequence of files, encoded images (bytes) or
            RGB arrays of shape (H, W, 3), 0 to 255.
        engine: Engine for many images: `"auto"`, `"keras"` or `"openvino"`.
        progress: Show a progress bar for many images.

    Returns:
        One prediction per image, in the order of the images. An image that cannot be read has a `problem`.

    Raises:
        InputError: The run does not exist, or there are no images.

    Example:
        predict("runs/emoji-small-similar-1", "photos")[0].label
    """
    items = list(find_images(images))
    return list(predictions(run, items, engine=engine, progress=progress))


def predictions(
    run: str | Path | FinishedRun, items: Iterable[Image], *, engine: str = "auto", progress: bool = False
) -> Iterator[Prediction]:
    """Yield the predictions of `predict` one by one, so that any number of images fits into memory."""

    from transfer.frozen.engines import ENGINES, make_engine
    from transfer.results.finished_runs import load_run

    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    loaded = load_run(run) if isinstance(run, str | Path) else run
    total = len(items) if isinstance(items, Sequence) else None
    hidden = not progress or (total is not None and total < FEW)

    def plain(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(loaded.model.predict_on_batch(pixels.astype("float32")))

    forward: _Forward = plain
    with (
        ThreadPoolExecutor() as pool,
        progress_bar(total=total, desc="predicting", unit=" images", disable=hidden) as bar,
    ):
        for number, batch in enumerate(_decode_ahead(items, loaded, pool)):
            good = [pixels for _, pixels, _ in batch if pixels is not None]
            if good and forward is plain and (number * BATCH >= FEW or (total or 0) > FEW):
                # Use float32, as in the evaluation of the saved model.
                forward = make_engine(loaded.model, engine=engine, precision="float32", batch_size=BATCH)
            rows = iter(forward(np.stack(good)) if good else ())
            for name, pixels, problem in batch:
                row = next(rows) if pixels is not None else np.zeros(len(loaded.class_names))
                yield Prediction(name, loaded.class_names, np.asarray(row, "float64"), problem)
            bar.update(len(batch))


def _decode_ahead(
    items: Iterable[Image], run: FinishedRun, pool: ThreadPoolExecutor
) -> Iterator[list[_Decoded]]:
    """Yield decoded batches in order, while threads decode the next two."""
    size, resize, pixel_range = run.image_size, run.resize, run.pixel_range
    waiting: list[list[Future[_Decoded]]] = []
    numbered = enumerate(items)
    while True:
        while len(waiting) < 3 and (some := list(itertools.islice(numbered, BATCH))):
            waiting.append([pool.submit(_decode, i, item, size, resize, pixel_range) for i, item in some])
        if not waiting:
            return
        yield [one.result() for one in waiting.pop(0)]


def _decode(
    number: int, item: Image, size: tuple[int, int], resize: str, pixel_range: PixelRange | None
) -> _Decoded:
    name = str(item) if isinstance(item, str | Path) else str(number)
    try:
        if isinstance(item, np.ndarray):
            if item.ndim not in (2, 3) or (item.ndim == 3 and item.shape[2] not in (1, 3)) or not item.size:
                return name, None, f"an array of shape {item.shape}, not (height, width, 3)"
            return name, to_rgb_array(item, size, resize=resize, pixel_range=pixel_range), ""
        if isinstance(item, str | Path) and not Path(item).is_file():
            return name, None, "no such file" if not Path(item).exists() else "not a file"
        decoded = inspect_image(item, size, resize=resize, pixel_range=pixel_range)
        if pixel_range and decoded.extent and (why := pixel_range.mismatch(decoded.extent)):
            log.warning("%s: %s. The model expects images like its training images.", name, why)
        return name, decoded.pixels, ""
    except BadImageError as error:
        return name, None, str(error)


def find_images(source: Image | Iterable[Image]) -> Iterator[Image]:
    """Yield the images of a source: a file, a folder, one image, or several."""
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
            raise InputError(f"Expected images ({READABLE}) in {place}. Found none.")
        yield from files
    elif place.exists():
        yield place
    else:
        raise InputError(
            f"Expected an image or a folder of images. Received a path that does not exist: {place}"
        )
