"""What a finished run left, read again: the model, its class names, its options and its figures.

Files may come from anywhere: nothing in them is executed, and no name in them is followed out of the folder.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from transfer.common.errors import InputError, nearest, one_line
from transfer.config import TrainConfig, load_config
from transfer.images.datasets import ImageData, load_data, load_test
from transfer.images.decoding import RESIZES
from transfer.networks.weight_files import saved_model

MODEL, LABELS, CONFIG, METRICS, SPLIT = (
    "model.keras",
    "labels.txt",
    "config.yaml",
    "metrics.json",
    "split.csv",
)

_MOST_BYTES = 2**26  # of a file of text; ours have a few hundred kilobytes at most


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A classifier that a run left, with all that is known about it.

    Attributes:
        folder: of the run; for a `.keras` file by itself the folder that it lies in.
        model: raw RGB images, 0 to 255, in; class probabilities out. Not compiled.
        class_names: in the order of the probabilities.
        config: the options that it was trained with; None where only the model is there.
        metrics: what `metrics.json` says; empty where it is not there.
    """

    folder: Path
    model: keras.Model
    class_names: tuple[str, ...]
    config: TrainConfig | None
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """What to call it: the folder's name."""
        return self.folder.resolve().name

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model takes.

        Raises:
            InputError: it takes any, and the options do not say which.
        """
        height, width = self.model.input_shape[1:3]
        if height is None or width is None:
            side = self.config.image_size if self.config else None
            if side is None:
                raise InputError(f"{self.model.name!r} takes any size. Build it with image_size=...")
            return side, side
        return height, width

    @property
    def resize(self) -> str:
        """How images get that size, one of `images.RESIZES`."""
        return self.config.resize if self.config else RESIZES[0]

    def data(self, source: Any = None) -> ImageData:
        """Load the images of the run again, in its own three splits; or others to measure it on.

        Args:
            source: other labelled images, as for `load_test`, all of which become the test set; None takes the run's
                own.

        Returns:
            The data, with the run's class names.

        Raises:
            InputError: there are no such images, or they have classes that the model does not know.
        """
        if source is not None:
            return load_test(source, self.class_names, resize=self.resize)
        if self.config is None:
            raise InputError(f"{self.folder} does not say what the model was trained on: it has no {CONFIG}.")
        options = {**self.config.load_options(), "few_shot": None, "split_file": self.folder / SPLIT}
        return load_data(self.config.data, **options)


def load_run(place: str | Path) -> FinishedRun:
    """Read what `python -m transfer.train` left, or a `.keras` file of its kind by itself.

    Keras' safe mode is on: a model with code of its own (a Lambda layer) is refused.

    Args:
        place: a run's folder, or a `.keras` file.

    Returns:
        The run.

    Raises:
        InputError: there is no such run, or it is damaged.

    Example:
        load_run("runs/emoji-small-similar-1").class_names
    """
    path = Path(place)
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(missing_run(path))
    folder = file.parent
    model = saved_model(str(file))
    config = replace(load_config(folder / CONFIG), output=None) if (folder / CONFIG).is_file() else None
    names = _class_names(file, model)
    return FinishedRun(folder, model, names, config, read_metrics(folder))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's figures."""
    return read_json(folder / METRICS) or {}


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file of values by name of a run."""
    if not path.is_file():
        return None
    try:
        found = json.loads(text_of(path))
    except ValueError as error:
        raise InputError(f"Cannot read {path}: {error}.") from None
    if not isinstance(found, dict):
        raise InputError(f"Expected values by name in {path}. Received: {type(found).__name__}.")
    return found


def text_of(path: Path) -> str:
    """Read a file of text of a run."""
    try:
        if path.resolve().parent != path.parent.resolve():
            raise InputError(f"Expected a file of the run itself. Received a link out of it: {path}.")
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes, more than such a file can have.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {one_line(error)}.") from None


def add_labels(path: Path, class_names: tuple[str, ...]) -> None:
    """Put the class names into a `.keras` file, which Keras itself does not look at, so that they travel
    with it."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, "".join(f"{name}\n" for name in class_names))


def _class_names(file: Path, model: keras.Model) -> tuple[str, ...]:
    """Read the names beside the model, or else in it."""
    beside = file.parent / LABELS
    if beside.is_file() and file.name == MODEL:
        text, where = text_of(beside), str(beside)
    else:
        with zipfile.ZipFile(file) as archive:
            if LABELS not in archive.namelist() or archive.getinfo(LABELS).file_size > _MOST_BYTES:
                raise InputError(
                    f"{file} holds no class names. Give the folder of a run, or put a {LABELS} and the file, as "
                    f"{MODEL}, into a folder."
                )
            text, where = archive.read(LABELS).decode("utf-8", errors="replace"), str(file)
    names = tuple(text.splitlines())
    count = model.output_shape[-1]
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"Expected {count} different class names, one for each output of the model, in {where}. Received: "
            f"{len(names)}, {len(set(names))} of them different."
        )
    return names


def missing_run(path: Path) -> str:
    """Say that a run is not there, and which are."""
    there = [entry.parent for entry in path.parent.glob(f"*/{MODEL}")] if path.parent.is_dir() else []
    near = nearest(path.name, [entry.name for entry in there])
    runs = sorted(str(entry.parent) for entry in Path("runs").glob(f"*/{MODEL}"))
    hint = (
        f" Did you mean {path.parent / near[0]}?"
        if near
        else f" There are: {', '.join(runs[:5])}."
        if runs
        else ""
    )
    return f"Expected the folder of a run, with {MODEL} in it, or a .keras file. Received: {path}.{hint}"
