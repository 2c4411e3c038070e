"""Predict the classes of images with a trained run."""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common import display
from transfer.common.arguments import explain_arguments
from transfer.common.decision_rules import decide, expected_ranks
from transfer.common.errors import InputError
from transfer.common.streams import progress_bar
from transfer.common.text import plural
from transfer.common.whole_numbers import at_least
from transfer.images.decoding import BadImageError
from transfer.images.image_inputs import Image, decode_image, find_images, path_of
from transfer.images.pixel_range import PixelRange
from transfer.results.file_names import CONFIG, REFERENCE

if TYPE_CHECKING:  # Keras is imported only when there are images to predict, so that --help is fast
    import keras
    import pandas

    from transfer.evaluation.reference import Reference
    from transfer.results.finished_runs import FinishedRun
    from transfer.training.trained import TrainedModel

BATCH = 128
"""Images per batch; the next batches are decoded at the same time. 64 was 4% slower, 256 was no faster."""

FEW = BATCH
"""Up to this number of images, plain Keras runs the model: building a faster engine would take longer."""

log = logging.getLogger(__name__)

_Forward = Callable[[np.ndarray], np.ndarray]
_Decoded = tuple[str, np.ndarray | None, str]  # name, pixels, and the problem if there are no pixels


@dataclass(frozen=True)
class Prediction:
    """The class probabilities of one image.

    Attributes:
        name: Path of the image, or its position in the input if it has no path.
        class_names: Class names in the order of the probabilities.
        probabilities: Probability of each class, shape (classes,); None if there is a problem.
        problem: Why the image could not be read; empty for a readable image.
        distance: Mean cosine distance of the image's features to the nearest training images, 0 to 2. None if the run
            has no `reference.npz`, or if there is a problem.
        known: Whether the image looks like one of the classes: True, or False if its distance is above that of 95% of
            held-out images. None if there is no distance.
        prediction_set: Class names that contain the true one with the probability `coverage` of `predict`, the most
            probable class first. None without `coverage`, or if there is a problem.
        rule: Rule that decides the label of ordered classes: `"most-probable"`, `"median"` or `"expected"` (the rounded
            expected rank). None for classes without an order.

    Example:
        >>> prediction = Prediction("photo.jpg", ("cat", "dog"), np.array([0.25, 0.75]))
        >>> prediction.label, prediction.top(1)
        ('dog', [('dog', 0.75)])
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: np.ndarray | None
    problem: str = ""
    distance: float | None = None
    known: bool | None = None
    prediction_set: tuple[str, ...] | None = None
    rule: str | None = None

    def __repr__(self) -> str:
        text = self.problem if self.label is None else f"{display.quoted(self.label)} {self.probability:.1%}"
        return display.one_line(self, f"{display.quoted(self.name)}: {text}")

    @property
    def label(self) -> str | None:
        """The most probable class, or that of the rule of ordered classes; None if the image could not be read."""
        return None if self.probabilities is None else self.class_names[self._decided]

    @property
    def probability(self) -> float | None:
        """Probability of the label, 0 to 1; None if the image could not be read."""
        return None if self.probabilities is None else float(self.probabilities[self._decided])

    @property
    def expected_rank(self) -> float | None:
        """Expected value of the rank of ordered classes, 1 for the lowest class; None without an order."""
        if self.probabilities is None or self.rule is None:
            return None
        return float(expected_ranks(self.probabilities[None])[0])

    @property
    def _decided(self) -> int:
        return int(decide(np.asarray(self.probabilities)[None], self.rule)[0])

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, in descending order."""
        if not at_least(1, count):
            raise InputError(f"Expected a number of classes of 1 or more in top(count). Received: {count!r}.")
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


class Predictions(list[Prediction]):
    """The predictions of `predict`: a list with one `Prediction` per image.

    Example:
        >>> predictions = Predictions([Prediction("photo.jpg", ("cat", "dog"), np.array([0.25, 0.75]))])
        >>> predictions, predictions[0].label
        (Predictions(1 image), 'dog')
    """

    def __repr__(self) -> str:
        problems = sum(one.label is None for one in self)
        text = f", {problems:,} of them cannot be read" if problems else ""
        return display.one_line(self, plural(len(self), "image") + text)

    def _repr_html_(self) -> str:
        """Return names, labels and probabilities for a notebook; of many images, the first and the last."""
        rows = [
            (one.name, one.problem, "")
            if one.label is None
            else (one.name, one.label, f"{one.probability:.1%}")
            for one in self
        ]
        table = display.Table(("name", "label", "probability"), rows, left=2)
        return display.to_html(repr(self), table.shortened() if rows else "")

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with one row per image.

        Its columns are `name`, `label`, `probability` of the label, `problem`, `known`, `expected_rank` of ordered
        classes, and the probability of each class under the class's name. If a class has the name of another column,
        "(class)" is appended to its name. An image that could not be read has no label and no probabilities.

        Raises:
            InputError: pandas is not installed.
        """
        names = ("name", "label", "probability", "problem", "known")
        columns: dict[str, Any] = {name: [getattr(one, name) for one in self] for name in names}
        if any(one.rule is not None for one in self):
            columns["expected_rank"] = [one.expected_rank for one in self]
        classes = self[0].class_names if self else ()
        unknown_row = np.full(len(classes), np.nan)
        rows = [unknown_row if one.probabilities is None else one.probabilities for one in self]
        values = np.reshape(rows, (len(self), len(classes)))
        return display.data_frame(columns | display.class_columns(classes, values, columns))


@explain_arguments(
    {
        "verbose": "Write progress=False to hide the progress bar.",
        "batch_size": "Leave it out: it does not change the result.",
    }
)
def predict(
    run: str | Path | FinishedRun | keras.Model,
    images: Image | Iterable[Image],
    *,
    class_names: Sequence[str] | None = None,
    engine: str = "auto",
    coverage: float | None = None,
    progress: bool = True,
) -> Predictions:
    """Predict the classes of images.

    Images are decoded, resized and scaled by the same code as in training. A model of another program must take raw RGB
    images, 0 to 255, and return probabilities: a scaling that it needs must be one of its layers, since the file does
    not state any other. Its images are stretched to its input size.

    Args:
        run: The folder of a run, a `.keras` file, a run from `load_run`, or a Keras model. The class names of a model
            are known if `fit` trained it or `load_run` loaded it in this process.
        images: One image or several:

            - files: a path, a folder (searched with its sub-folders), or a pattern such as `"photos/*.jpg"`;
            - arrays or tensors of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), 0 to 255, or a batch of them.
              16-bit arrays are scaled by `FinishedRun.pixel_range`;
            - Pillow images, encoded images as bytes, and open files;
            - a list, a generator, a pandas Series, a `tf.data.Dataset` or a split of `load_data` with any of these.
        class_names: Class names in the order of the probabilities, for a model or a file whose class names are unknown.
        engine: Engine for many images: `"auto"`, `"keras"` or `"openvino"`.
        coverage: Probability, between 0 and 1, with which `Prediction.prediction_set` contains the true class of an
            image of the known classes. None makes no sets. The sets are split-conformal (Angelopoulos and Bates, 2021,
            arXiv:2107.07511).
        progress: Show a progress bar for many images.

    Returns:
        A list with one prediction per image, in the order of the images; its `to_dataframe()` returns a table. An image
        that cannot be read, or whose values are not pixels from 0 to 255, has a `problem` and no probabilities. The
        values of a batch are checked together. An empty list of images gives an empty list, with a warning.

    Raises:
        InputError: The run does not exist, its class names are unknown or not those of `class_names`, the model does
            not return probabilities, a folder has no images, a batch has values that are not pixels from 0 to 255, or
            the run has no `reference.npz` or too few validation images for the coverage.

    Example:
        predict("runs/emoji-small-similar-1", "photos")[0].label
    """
    loaded, found = as_classifier(run, class_names), find_images(images)
    # The images of a generator or a data set may not fit into memory.
    items = found if isinstance(images, Iterator) or hasattr(images, "as_numpy_iterator") else list(found)
    predicted = Predictions(predictions(loaded, items, engine=engine, coverage=coverage, progress=progress))
    if not predicted:
        log.warning("Received no images, so there are no predictions.")
    problems = [one for one in predicted if one.problem]
    if problems:
        log.warning(
            "%s of %d cannot be read. The first is %s: %s.",
            plural(len(problems), "image"),
            len(predicted),
            problems[0].name,
            problems[0].problem,
        )
    return predicted


def as_classifier(
    run: Any, class_names: Sequence[str] | None = None, *, call: str = "predict(run, images"
) -> FinishedRun | TrainedModel:
    """Return a run by its folder, or a model with its class names; raise an error for anything else."""
    if isinstance(run, str | Path):
        from transfer.results.finished_runs import load_run

        return load_run(run, class_names=class_names)
    if hasattr(run, "class_names") and hasattr(run, "model"):
        if class_names is not None:
            from transfer.training.trained import check_same_names

            check_same_names(class_names, run.class_names)
        loaded: FinishedRun | TrainedModel = run
        return loaded
    if hasattr(run, "predict_on_batch"):  # a Keras model
        from transfer.training.trained import trained_model

        return trained_model(run, class_names, call=call.replace("(run", "(model"))
    raise InputError(
        "Expected the folder of a run, a .keras file, a run from load_run, or a Keras model as the first argument of "
        f"{call}). Received: {'None' if run is None else type(run).__name__}. Pass the run first."
    )


def predictions(
    run: str | Path | FinishedRun | TrainedModel,
    items: Iterable[Any],
    *,
    engine: str = "auto",
    coverage: float | None = None,
    progress: bool = False,
) -> Iterator[Prediction]:
    """Yield the predictions of `predict` one by one, so that any number of images fits into memory."""
    import keras

    from transfer.frozen.engines import make_engine
    from transfer.frozen.openvino_engine import check_without_training

    check_without_training(engine)
    loaded = as_classifier(run)
    judge = Judge(loaded, coverage)
    total = len(items) if isinstance(items, Sequence) else None
    hidden = not progress or (total is not None and total < FEW)

    def plain(pixels: np.ndarray) -> np.ndarray:
        outputs = keras.tree.flatten(judge.model.predict_on_batch(pixels.astype("float32")))
        return np.concatenate([np.asarray(output, "float32") for output in outputs], axis=1)

    forward: _Forward = plain
    with (
        ThreadPoolExecutor() as pool,
        progress_bar(total=total, desc="predicting", unit=" images", disable=hidden) as bar,
    ):
        for number, batch in enumerate(_decode_ahead(items, loaded, pool)):
            good = [pixels for _, pixels, _ in batch if pixels is not None]
            if good and forward is plain and (number * BATCH >= FEW or (total or 0) > FEW):
                # Use float32, as in the evaluation of the saved model.
                forward = make_engine(judge.model, engine=engine, precision="float32", batch_size=BATCH)
            names = [name for name, pixels, _ in batch if pixels is not None]
            readable = iter(judge.predictions(names, forward(np.stack(good)))) if good else iter(())
            for name, pixels, problem in batch:
                yield (
                    next(readable)
                    if pixels is not None
                    else Prediction(name, loaded.class_names, None, problem)
                )
            bar.update(len(batch))


class Judge:
    """Turns outputs of a model into predictions, with the reference of its run if there is one."""

    def __init__(self, run: FinishedRun | TrainedModel, coverage: float | None) -> None:
        from transfer.evaluation.evaluate import decision_rule

        self._reference: Reference | None = getattr(run, "reference", None)
        self._run, self.model, self._set_threshold = run, run.model, None
        # A run has its rule; that of a model that `fit` trained depends on its validation images.
        self._rule = run.rule if hasattr(run, "folder") else decision_rule(run.model, None)
        if coverage is not None:
            from transfer.evaluation.prediction_sets import set_threshold

            scores = required_reference(run, "prediction sets").scores
            self._set_threshold = set_threshold(scores, coverage)
        if self._reference is not None:
            self.model = run.model_with_features  # type: ignore[union-attr]

    def predictions(self, names: Sequence[str], outputs: np.ndarray) -> list[Prediction]:
        """Return the predictions of readable images from a row of features, if compared, and probabilities each."""
        from transfer.evaluation.evaluate import check_probabilities
        from transfer.evaluation.prediction_sets import prediction_sets

        count, classes = len(self._run.class_names), self._run.class_names
        values = outputs[:, -count:]
        check_probabilities(self._run.model, values)
        values = values.astype("float64")
        named = zip(names, values, strict=True)
        found = [Prediction(name, classes, row, rule=self._rule) for name, row in named]
        if self._reference is not None:
            distances = self._reference.distances_of(outputs[:, :-count]).tolist()
            most = self._reference.threshold
            found = [
                replace(one, distance=d, known=d <= most) for one, d in zip(found, distances, strict=True)
            ]
        if self._set_threshold is not None:
            sizes = prediction_sets(values, self._set_threshold).sum(axis=1).tolist()
            found = [
                replace(one, prediction_set=tuple(name for name, _ in one.top(size)))
                for one, size in zip(found, sizes, strict=True)
            ]
        return found


def required_reference(run: FinishedRun | TrainedModel, what: str) -> Reference:
    """Return the reference of a run; raise if it has none."""
    reference: Reference | None = getattr(run, "reference", None)
    if reference is not None:
        return reference
    folder = getattr(run, "folder", None)
    again = (
        f"Train it again: python -m transfer.train --config {shlex.quote(str(folder / CONFIG))}"
        if folder is not None and getattr(run, "config", None) is not None
        else "Pass the folder of a run that this version trained"
    )
    raise InputError(
        f"Expected a run with {REFERENCE}, for {what}. Received {folder or 'a model'} without it: runs of versions "
        f"before 0.3 and single files have none, nor do runs whose log says that it was left out. {again}."
    )


def _decode_ahead(
    items: Iterable[Any], run: FinishedRun | TrainedModel, pool: ThreadPoolExecutor
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
    number: int, item: Any, size: tuple[int, int], resize: str, pixel_range: PixelRange | None
) -> _Decoded:
    path = path_of(item)
    name = str(number) if path is None else path
    try:
        pixels, mismatch = decode_image(item, size, resize=resize, pixel_range=pixel_range)
    except BadImageError as error:
        return name, None, str(error)
    if mismatch:
        log.warning("%s: %s. The model expects images like its training images.", name, mismatch)
    return name, pixels, ""
