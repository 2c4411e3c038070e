"""Load a finished run: its model, class names, options and metrics.

Run folders may come from anywhere: no code in them is executed, and links out of them are refused.
"""

from __future__ import annotations

import functools
import json
import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.common import display
from transfer.common.arguments import explain_arguments
from transfer.common.decision_rules import RULES
from transfer.common.errors import InputError, nearest, one_line, unknown
from transfer.common.old_names import renamed
from transfer.common.tasks import REGRESSION, SINGLE, TASK, outputs_text, score_text
from transfer.config import TrainConfig, load_config
from transfer.evaluation.reference import Reference, with_features
from transfer.images.datasets import ImageData, load_data, load_test, with_pixel_range
from transfer.images.decoding import RESIZES
from transfer.images.formats import EXTENSIONS
from transfer.images.image_inputs import Image
from transfer.images.pixel_range import BEFORE_0_3, PixelRange
from transfer.images.split_file import training_digests
from transfer.networks.arguments import check_classifier
from transfer.networks.model_files import CustomObjects, saved_model
from transfer.results.file_names import CONFIG, LABELS, METRICS, MODEL, REFERENCE, SPLIT
from transfer.results.predict import Prediction, predict
from transfer.results.reference_file import read_reference
from transfer.results.stored_task import read_task, task_in, thresholds_in
from transfer.training.trained import TrainedModel, check_same_names, checked_names, record

_PIXEL_RANGE = "pixel_range.json"  # an entry of the model's file, so that the range travels with the weights
_MAX_BYTES = 2**26  # limit of a text file; those of a run have at most a few hundred kilobytes


_COLUMNS = (
    "path_column",
    "label_column",
    "split_column",
)  # other lists have the same columns, or usual names


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A trained classifier with its class names, options and metrics.

    Attributes:
        folder: The run's folder. For a single `.keras` file, the folder that holds it.
        model: Takes raw RGB images (0 to 255) and returns class probabilities, or the number of a regression. Not
            compiled.
        class_names: Class names in the order of the probabilities, or the name of the number.
        config: Options of the training; None if there is no `config.yaml`.
        metrics: Contents of `metrics.json`; empty if there is no such file.
        pixel_range: Values of images with more than 8 bits per channel that become 0 and 255, found in the training
            images. None if these have 8 bits; such an image is then scaled by its own values.
        reference: Features and scores with which `predict` marks unknown images, and makes prediction sets and
            intervals. None for runs before version 0.3 and for single files.
        task: What the labels are: `"single"`, `"multi"`, `"ordinal"` or `"regression"`.
        thresholds: Probability of each label above which it is predicted, for the task `"multi"`; None for the others.

    Example:
        load_run("runs/emoji-small-similar-1").metrics["test_accuracy"]
    """

    folder: Path
    model: keras.Model
    class_names: tuple[str, ...]
    config: TrainConfig | None
    metrics: dict[str, Any]
    pixel_range: PixelRange | None = None
    reference: Reference | None = None
    task: str = SINGLE
    thresholds: np.ndarray | None = None

    def __repr__(self) -> str:
        metric = TASK[self.task]
        score, kind = self.metrics.get(f"test_{metric.metric}"), f"test {metric.metric_name}"
        if score is None:
            score = self.metrics.get(f"cross_validated_{metric.metric}")
            kind = f"cross-validated {metric.metric_name}"
        text = f", {kind} {score_text(metric.metric, score)}" if isinstance(score, int | float) else ""
        outputs = outputs_text(self.task, self.class_names)
        return display.one_line(self, f"{display.quoted(self.name)}: {outputs}{text}")

    @functools.cached_property
    def model_with_features(self) -> keras.Model:
        """The model with two outputs: the features before the head, of an average its last one, and probabilities."""
        return with_features(self.model)  # kept, because Keras compiles it at the first prediction

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's input, in pixels.

        Raises:
            InputError: The model takes any size, and the options do not set one.
        """
        height, width = self.model.input_shape[1:3]
        if height is None or width is None:
            side = self.config.image_size if self.config else None
            if side is None:
                raise InputError(
                    f"Expected a model with a fixed image size. Received: {self.model.name!r}, which takes any size. "
                    "Build it with image_size=..."
                )
            return side, side
        return height, width

    @property
    def resize(self) -> str:
        """How images are resized: `"stretch"`, `"crop"` or `"pad"`."""
        return self.config.resize if self.config else RESIZES[0]

    @property
    def rule(self) -> str | None:
        """Rule that decides ordered classes: `"most-probable"`, `"median"` or `"expected"`. None without an order.

        Raises:
            InputError: `metrics.json` has an unknown rule.
        """
        rule = self.metrics.get("decision_rule")
        if rule is not None and (not isinstance(rule, str) or rule not in RULES):
            raise unknown("rule", rule, RULES, hint=f"It is in {self.folder / METRICS}.")
        return rule

    def predict(self, images: Image | Iterable[Image], **options: Any) -> list[Prediction]:
        """Predict the classes of images.

        Args:
            images: One image or several, as `predict` takes them.
            **options: `engine`, `coverage` and `progress`, as in `predict`.

        Returns:
            One prediction per image, in the order of the images.

        Raises:
            InputError: There are no images, or their values are not pixels from 0 to 255.
        """
        return predict(self, images, **options)

    def data(self, source: Any = None) -> ImageData:
        """Load the run's own images in its three splits, or other images as a test set.

        Args:
            source: Other labeled images, in any form that `load_data` takes. All of them become the test set. None
                loads the run's own images.

        Returns:
            The data, with the run's class names.

        Raises:
            InputError: The images are missing, or have classes that the model does not know.
        """
        if source is not None:
            columns = {name: getattr(self.config, name) for name in _COLUMNS} if self.config else {}
            if self.task == REGRESSION and self.config and self.config.label_column is None:
                columns["label_column"] = self.class_names[0]  # the column that training found by its name
            form: dict[str, Any] = {"resize": self.resize, "pixel_range": self.pixel_range, "task": self.task}
            return load_test(source, self.class_names, **form, **columns)
        if self.config is None:
            raise InputError(f"{self.folder} has no {CONFIG}, which says where the images of the run are.")
        data = load_run_data(self.folder, self.config)
        splits = with_pixel_range(data.splits, self.pixel_range)
        return replace(data, train=splits["train"], val=splits["val"], test=splits["test"])


@explain_arguments()
def load_run(
    place: str | Path, *, custom_objects: CustomObjects = None, class_names: Sequence[str] | None = None
) -> FinishedRun:
    """Load a run that `python -m transfer.train` or `save_run` wrote, or a single `.keras` file.

    Keras' safe mode is on: a model with code of its own, such as a Lambda layer, is refused.

    Args:
        place: The run's folder, or a `.keras` file.
        custom_objects: Custom layers of the model: a dictionary of classes by name, or the name or path of a Python
            module that defines them. Importing a module runs its code.
        class_names: Class names in the order of the outputs, for a file of another program. Such a model must take raw
            RGB images, 0 to 255: see `predict`.

    Returns:
        The run.

    Raises:
        InputError: There is no such run, its files are damaged, or its class names are unknown or not those of
            `class_names`.

    Example:
        load_run("runs/emoji-small-similar-1").class_names
    """
    if not isinstance(place, str | os.PathLike):
        raise InputError(
            f"Expected a run's folder or a .keras file. Received: {'None' if place is None else type(place).__name__}."
        )
    path = Path(place).expanduser()
    if path.is_file() and path.suffix.lower() in EXTENSIONS:
        raise InputError(
            f"Expected a run's folder or a .keras file. Received an image: {path}. The run comes first."
        )
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise missing_run(path)
    folder = file.parent
    config = replace(load_config(folder / CONFIG), output=None) if (folder / CONFIG).is_file() else None
    # A run's options are data: the module that they name is suggested, not imported.
    module = config.custom_objects if config and config.custom_objects else ""
    model = saved_model(file, custom_objects=custom_objects, module=module)
    metrics = read_json(folder / METRICS) or {}
    stored = _stored_names(file, model)
    if stored and class_names is not None:
        check_same_names(class_names, stored)
    names = stored or _given_names(class_names, file, model)
    reference = read_reference(folder / REFERENCE) if file.name == MODEL else None
    stated = read_task(metrics, file) if stored else {}
    decides = task_in(stated, file), thresholds_in(stated, len(names), file)
    run = FinishedRun(
        folder, model, names, config, metrics, _pixel_range(file) if stored else None, reference, *decides
    )
    size = model.input_shape[1:3]
    if len(size) == 2 and (None not in size or (config and config.image_size)):
        form = (run.image_size, run.resize, run.pixel_range)
        record(
            TrainedModel(
                model,
                run.class_names,
                *form,
                lambda: frozenset(training_digests(folder / SPLIT)),
                rule=run.rule,
                task=run.task,
                thresholds=run.thresholds,
            )
        )
    return run


def load_run_data(folder: Path, config: TrainConfig) -> ImageData:
    """Load the images of a run in the splits that it was trained with."""
    options = {**config.load_options(), "few_shot": None, "split_file": folder / SPLIT}
    return load_data(config.data, **options)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the contents of a run's JSON file with current key names, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        values = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"Cannot read {path}: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"Expected a JSON object in {path}. Received: {type(values).__name__}.")
    return dict(renamed(values))


def read_text(path: Path) -> str:
    """Return the contents of a run's text file."""
    try:
        if path.resolve().parent != path.parent.resolve():
            raise InputError(f"Expected a file in the run's folder. Received a link out of it: {path}.")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(
                f"Expected at most {_MAX_BYTES:,} bytes in {path}. Received: {path.stat().st_size:,}."
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {one_line(error)}.") from None


def add_labels(path: Path, class_names: tuple[str, ...]) -> None:
    """Add the class names to a zip-based model file; Keras and LiteRT ignore the extra entry."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, "".join(f"{name}\n" for name in class_names))


def add_pixel_range(path: Path, pixel_range: PixelRange | None) -> None:
    """Add the range of images with more than 8 bits per channel to a model file, as JSON; null without such images."""
    values = None if pixel_range is None else [pixel_range.low, pixel_range.high]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_PIXEL_RANGE, json.dumps(values))


def _pixel_range(file: Path) -> PixelRange | None:
    """Read the range of images with more than 8 bits per channel; runs before version 0.3 store none."""
    with zipfile.ZipFile(file) as archive:
        if _PIXEL_RANGE not in archive.namelist():
            return BEFORE_0_3
        small = archive.getinfo(_PIXEL_RANGE).file_size <= _MAX_BYTES
        text = archive.read(_PIXEL_RANGE) if small else b""
    try:
        values = json.loads(text)
        if values is None:
            return None
        low, high = map(float, values)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(
            f"Expected two increasing numbers or null as {_PIXEL_RANGE} in {file}. Received: {text[:80]!r}."
        ) from None
    return PixelRange(low, high)


def _given_names(class_names: Sequence[str] | None, file: Path, model: keras.Model) -> tuple[str, ...]:
    """Return the class names that a user gives for a file without them."""
    if class_names is None:
        raise InputError(
            f"Expected class names in {file}. It has none. Give them in the order of the outputs: predict(file, "
            "images, class_names=[...]) in Python, or --class-names cat,dog. Or pass the folder of a run."
        )
    check_classifier(model, "load_run")
    return checked_names(class_names, model.output_shape[-1])


def _stored_names(file: Path, model: keras.Model) -> tuple[str, ...]:
    """Read the class names from the file beside the model, or from the model's own file; none if there are none."""
    beside = file.parent / LABELS
    if beside.is_file() and file.name == MODEL:
        text, source = read_text(beside), beside
    else:
        if not zipfile.is_zipfile(file):  # HDF5
            return ()
        with zipfile.ZipFile(file) as archive:
            if LABELS not in archive.namelist() or archive.getinfo(LABELS).file_size > _MAX_BYTES:
                return ()
            text, source = archive.read(LABELS).decode("utf-8", errors="replace"), file
    names = tuple(text.splitlines())
    count = model.output_shape[-1]
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"Expected {count} different class names in {source}, one per output of the model. Received: "
            f"{len(names)}, {len(set(names))} of them different."
        )
    return names


def missing_run(path: Path) -> InputError:
    """Return the error for a run that does not exist, with runs of similar names."""
    near = nearest(path.name, [entry.parent.name for entry in path.parent.glob(f"*/{MODEL}")])
    inside = sorted(str(entry.parent) for entry in path.glob(f"*/{MODEL}"))
    runs = inside or sorted(str(entry.parent) for entry in Path("runs").glob(f"*/{MODEL}"))
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    if inside or (runs and not near):
        more = f", and {len(runs) - 5} more" if len(runs) > 5 else ""
        hint = f" Runs in this folder: {', '.join(runs[:5])}{more}."
    return InputError(
        f"Expected a run's folder, with {MODEL} in it, or a .keras file. Received: {path}.{hint}"
    )
