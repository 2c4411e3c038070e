"""Predict the classes, the labels or the numbers of images with a trained run."""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError
from transfer.common.streams import progress_bar
from transfer.common.tasks import MULTI, REGRESSION
from transfer.common.text import plural
from transfer.images.decoding import BadImageError
from transfer.images.image_inputs import Image, decode_image, find_images, path_of
from transfer.images.pixel_range import PixelRange
from transfer.results.file_names import CONFIG, REFERENCE
from transfer.results.prediction import Prediction, Predictions

if TYPE_CHECKING:  # Keras is imported only when there are images to predict, so that --help is fast
    import keras

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
    """Predict the classes, the labels or the numbers of images, by the task of the run.

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
            image of the known classes, or `Prediction.interval` the true number. None makes no sets. They are
            split-conformal (Angelopoulos and Bates, 2021, arXiv:2107.07511). Not for several labels per image.
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
                    else Prediction(name, loaded.class_names, None, problem, task=loaded.task)
                )
            bar.update(len(batch))


class Judge:
    """Turns outputs of a model into predictions, with the reference of its run if there is one."""

    def __init__(self, run: FinishedRun | TrainedModel, coverage: float | None) -> None:
        self._reference: Reference | None = getattr(run, "reference", None)
        self._run, self.model, self._limit = run, run.model, None
        self._decides = decisions_of(run)
        if coverage is not None:
            from transfer.evaluation.prediction_sets import set_threshold

            self._limit = set_threshold(required_scores(run, "prediction sets"), coverage)
        if self._reference is not None:
            self.model = run.model_with_features  # type: ignore[union-attr]

    def predictions(self, names: Sequence[str], outputs: np.ndarray) -> list[Prediction]:
        """Return the predictions of readable images from a row of features, if compared, and outputs each."""
        from transfer.evaluation.evaluate import check_outputs

        count, classes, task = len(self._run.class_names), self._run.class_names, self._run.task
        values = outputs[:, -count:]
        check_outputs(self._run.model, values, task)
        found = [
            self._prediction(name, classes, row)
            for name, row in zip(names, values.astype("float64"), strict=True)
        ]
        if self._reference is not None:
            distances = self._reference.distances_of(outputs[:, :-count]).tolist()
            most = self._reference.threshold
            found = [
                replace(one, distance=d, known=d <= most) for one, d in zip(found, distances, strict=True)
            ]
        return found

    def _prediction(self, name: str, classes: tuple[str, ...], row: np.ndarray) -> Prediction:
        """Return the prediction of an image from the outputs of the model."""
        from transfer.evaluation.prediction_sets import prediction_sets

        if self._run.task == REGRESSION:
            value, half = float(row[0]), self._limit
            interval = None if half is None else (value - half, value + half)
            return Prediction(name, classes, None, task=REGRESSION, value=value, interval=interval)
        found = Prediction(name, classes, row, task=self._run.task, **self._decides)
        if self._limit is None:
            return found
        size = int(prediction_sets(row[None], self._limit).sum())
        return replace(found, prediction_set=tuple(name for name, _ in found.top(size)))


def decisions_of(run: FinishedRun | TrainedModel) -> dict[str, Any]:
    """Return the rule or the thresholds with which a run or a trained model decides."""
    from transfer.evaluation.evaluate import decision_options

    # A run has its own; those of a model that `fit` trained depend on its validation images.
    if not hasattr(run, "folder"):
        return decision_options(run.model, None)
    return {"rule": run.rule, "thresholds": run.thresholds}


def required_scores(run: FinishedRun | TrainedModel, what: str) -> np.ndarray:
    """Return the scores of the held-out images of a run; raise if its task has none, or if it has no reference."""
    if run.task == MULTI:
        raise InputError(
            "Expected a run with one class or one number per image, for a coverage. Received the task multi. Leave "
            "the coverage out: the thresholds of the labels decide which of them are predicted."
        )
    return required_reference(run, what).scores


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
