"""Convert a trained run for other runtimes, and verify each file in its own runtime."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, unknown
from transfer.common.files import check_folder
from transfer.common.tasks import MULTI, REGRESSION, output_name
from transfer.exporters.output_folder import (
    NOTES,
    SUFFIXES,
    check_replaceable,
    default_folder,
    file_notes,
    replacing_folder,
)
from transfer.exporters.verification import Exported, compare, format_name
from transfer.images.datasets import ImageData
from transfer.results.file_names import LABELS
from transfer.results.stored_task import add_task

if TYPE_CHECKING:  # TensorFlow is imported only when there is a run to export, so that --help is fast
    import keras

    from transfer.images.splitting import Split
    from transfer.results.finished_runs import FinishedRun
    from transfer.training.trained import TrainedModel

log = logging.getLogger(__name__)

KINDS: dict[str, tuple[str | None, ...]] = {
    "saved-model": (None,),
    "litert": (None, "float16", "int8"),
    "onnx": (None, "float16", "int8"),
    "openvino": (None, "float16", "int8"),
}
"""File formats, each with its quantizations. A SavedModel is for servers, where size matters less."""

_FILES = (*SUFFIXES.values(), ".pb", ".keras", ".bin")

MAX_IMAGES = 500
"""Default number of held-out images for verification: enough to distinguish 99% agreement from 97%."""

MAX_CALIBRATION = 200
"""Maximum number of training images that set the value ranges of int8. More hardly change the ranges."""


@explain_arguments({"format": "Write to=...", "path": "Write output=...", "folder": "Write output=..."})
def export(
    run: str | Path | FinishedRun | keras.Model,
    to: str,
    *,
    quantize: str | None = None,
    output: str | Path | None = None,
    data: Any = None,
    max_images: int = MAX_IMAGES,
    class_names: Sequence[str] | None = None,
) -> Exported:
    """Convert a trained run or model for another runtime, and compare the file with Keras on held-out images.

    A file that disagrees with Keras is discarded, and an earlier export is kept. Every file takes a batch of raw RGB
    images, 0 to 255, as `float32` of the run's image size. A SavedModel instead takes `uint8` images of any size, and
    encoded images with a second signature (see `saved_model.write_saved_model`).

    Args:
        run: The folder of a run, a `.keras` file, a run from `load_run` or `save_run`, or a Keras model, such as one
            that `fit` trained in this process.
        to: Format: `"saved-model"`, `"litert"`, `"onnx"` or `"openvino"`.
        quantize: None, `"float16"` or `"int8"`; not for a SavedModel. Training images set the value ranges of int8.
        output: Folder to write. None is a folder for this format under `exported` in the run; a model needs a folder.
            An earlier export of the same format in it is replaced.
        data: Labeled images for verification: `ImageData`, or any form that `load_data` takes. None is the run's own
            images, or the data that `fit` got if they are still in memory. If the training images are missing, half of
            these images set the quantization ranges of int8.
        max_images: Maximum number of images for verification, 1 or more. It also limits the number of images that set
            the quantization ranges of int8 (at most 200).
        class_names: Class names in the order of the probabilities, for a model or a file whose class names are unknown.

    Returns:
        The file, with the results of its verification.

    Raises:
        InputError: The format is unknown, a package is not installed, images are missing, the output folder holds
            something else, or the file disagrees with Keras.

    Example:
        print(export("runs/emoji-small-similar-1", "onnx", quantize="int8").to_text())
    """
    check_arguments(to, quantize, output, max_images)
    from transfer.distributed import strategies

    if not strategies.on_tensorflow():
        raise InputError("Export needs the TensorFlow backend. Run it with KERAS_BACKEND=tensorflow.")
    from transfer.exporters import formats
    from transfer.networks import surgery
    from transfer.results.predict import as_classifier, decisions_of

    formats.load_packages(to, quantize)
    loaded = as_classifier(run, class_names, call="export(run, to")
    final = _output_of(loaded, to, quantize, output)
    check_replaceable(final, to, quantize)
    test, train = _images(loaded, data, max_images, quantize)
    calibration = None if train is None else _pixels(train, loaded.image_size)
    # Files compute in float32 at one size. A model in bfloat16 would differ by more than the check allows.
    model = surgery.clone(loaded.model, image_size=loaded.image_size, precision="float32")
    name, thresholds = format_name(to, quantize), decisions_of(loaded).get("thresholds")
    log.info("Converting %s to %s", loaded.name, name)
    with replacing_folder(final) as partial:
        notes = file_notes(loaded, to, quantize, thresholds)
        with _converter_errors(name):
            path = _convert(model, loaded, notes, partial, calibration)
        log.info("Comparing the file with Keras on %s held-out images", f"{len(test):,}")
        with _converter_errors(name):
            exported = _verify(model, path, notes, _pixels(test, loaded.image_size), np.asarray(test.labels))
        if exported.problem:
            raise _rejection(exported, final)
        (partial / LABELS).write_text("".join(f"{name}\n" for name in loaded.class_names), encoding="utf-8")
        notes["check"] = {key: value for key, value in exported.to_dict().items() if key not in notes}
        text = json.dumps(notes, indent=2, ensure_ascii=False)
        (partial / NOTES).write_text(text + "\n", encoding="utf-8")
    return replace(exported, path=final / path.relative_to(partial))


def check_arguments(to: str, quantize: str | None, output: str | Path | None, max_images: int) -> None:
    """Raise an error for invalid arguments of `export`, before any work."""
    if Path(str(to)).suffix in _FILES or "/" in str(to):
        raise InputError(
            f"Expected a format as the second argument of export: {', '.join(KINDS)}. Received a path: {str(to)!r}. "
            "The folder to write is the output, such as export(run, 'onnx', output='folder')."
        )
    if to not in KINDS:
        raise unknown("format", to, KINDS)
    quantizations = ("float16", "int8")
    if quantize is not None and quantize not in quantizations:
        raise unknown("quantization", quantize, quantizations)
    if quantize not in KINDS[to]:
        able = ", ".join(kind for kind, ways in KINDS.items() if quantize in ways)
        raise InputError(f"Expected quantize={quantize!r} with one of {able}. Received it with {to}.")
    if isinstance(max_images, bool) or not isinstance(max_images, int) or max_images < 1:
        raise InputError(f"Expected max_images of 1 or more. Received: {max_images!r}.")
    if output is not None and Path(output).suffix in _FILES:
        raise InputError(
            f"Expected a folder as output, for the file, its class names and its notes. Received: {output}. Pass a "
            f"folder, such as {Path(output).with_suffix('')}."
        )
    check_folder(output)


def _output_of(
    run: FinishedRun | TrainedModel, to: str, quantize: str | None, output: str | Path | None
) -> Path:
    """Return the folder to write."""
    if output is not None:
        return Path(output)
    folder = getattr(run, "folder", None)
    if folder is None:
        raise InputError(
            f"Expected output=FOLDER to export a model, which has no folder of its own. Received: the model "
            f"{run.name!r}. Pass a folder, such as output='exported/{to}'."
        )
    return default_folder(folder, to, quantize)


def _images(
    run: FinishedRun | TrainedModel, data: Any, most: int, quantize: str | None
) -> tuple[Split, Split | None]:
    """Return images for verification, and images that set the quantization ranges of int8."""
    train = None
    if data is None or isinstance(data, ImageData):
        loaded = _own_images(run, data)
        test = next(part for part in (loaded.test, loaded.val, loaded.train) if len(part))
        train = loaded.train if len(loaded.train) else None
        if test is train:
            log.warning("The run has no held-out images: the file is verified on its training images.")
    else:
        test = run.data(data).test
        if quantize == "int8":
            with contextlib.suppress(InputError):
                train = run.data().train
    if quantize == "int8" and train is None:
        if len(test) < 2:
            raise InputError(
                "Expected 2 images or more for int8: one to set its ranges, one for verification. Received: 1."
            )
        some = _sample(test, 2 * most)
        train, test = some.take(range(0, len(some), 2)), some.take(range(1, len(some), 2))
    calibration = None if quantize != "int8" or train is None else _sample(train, min(most, MAX_CALIBRATION))
    return _sample(test, most), calibration


def _own_images(run: FinishedRun | TrainedModel, data: ImageData | None) -> ImageData:
    """Return the images of a run, or loaded images of the same classes."""
    if data is None:
        try:
            return run.data()
        except InputError as error:
            raise InputError(
                f"{error} To verify the exported file, pass --data DIR, or data=... in Python."
            ) from None
    if data.task != run.task and {data.task, run.task} & {MULTI, REGRESSION}:
        raise InputError(f"Expected data with the task {run.task}. Received: the task {data.task}.")
    if data.class_names != run.class_names:
        raise InputError(
            f"Expected data with the classes of the model: {', '.join(run.class_names)}. Received: "
            f"{', '.join(data.class_names)}."
        )
    return data


def _sample(split: Split, most: int) -> Split:
    """Return a random sample, which is the same each time."""
    return split.take(np.random.default_rng(0).permutation(len(split))[:most])


def _pixels(split: Split, size: tuple[int, int]) -> np.ndarray:
    return np.stack([split.image(i, size) for i in range(len(split))])


@contextlib.contextmanager
def _converter_errors(name: str) -> Iterator[None]:
    """Silence a converter or a runtime, and raise any of its errors as an `InputError`."""
    from transfer.exporters.formats import quiet

    try:
        with quiet():
            yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"Cannot convert this network to {name}: {reason[0][:300]}. Nothing was written. Try another quantization, "
            f"or another format: {', '.join(KINDS)}."
        ) from error


def _convert(
    model: keras.Model,
    run: FinishedRun | TrainedModel,
    notes: dict[str, Any],
    folder: Path,
    calibration: np.ndarray | None,
) -> Path:
    """Write the file; return the path that its runtime loads."""
    from transfer.exporters import formats, saved_model

    names, size, kind = run.class_names, run.image_size, notes["kind"]
    thresholds = notes.get("thresholds")
    if kind == "saved-model":
        form: dict[str, Any] = {"resize": run.resize, "pixel_range": run.pixel_range, "task": run.task}
        saved_model.write_saved_model(
            model, folder, image_size=size, class_names=names, thresholds=thresholds, **form
        )
        return folder
    graph, file = formats.Graph(model, size, output_name(run.task)), folder / notes["file"]
    quantize = notes["quantize"]
    if kind == "litert":
        formats.write_litert(graph, file, class_names=names, quantize=quantize, calibration=calibration)
        add_task(file, run.task, thresholds)
    else:
        write = {"onnx": formats.write_onnx, "openvino": formats.write_openvino}[kind]
        keys = (
            "task",
            "class_names",
            "thresholds",
            "image_size",
            "resize",
            "pixel_range",
            "inputs",
            "outputs",
        )
        metadata = {key: notes[key] for key in keys if key in notes}
        write(graph, file, notes=metadata, quantize=quantize, calibration=calibration)
    return file


def _verify(
    model: keras.Model, path: Path, notes: dict[str, Any], images: np.ndarray, labels: np.ndarray
) -> Exported:
    """Run the written file and Keras on the same images, and compare them."""
    from transfer.exporters.runtimes import BATCH, open_exported, run_all, without_tf32

    with without_tf32():
        run, batch = open_exported(notes["kind"], path, output_name(notes["task"]))
        outputs, speed = run_all(run, images, batch)
        expected, keras_speed = run_all(lambda x: np.asarray(model.predict_on_batch(x)), images, BATCH)
    limits = np.array(notes["thresholds"]) if "thresholds" in notes else None
    files = path.rglob("*") if path.is_dir() else path.parent.iterdir()
    return Exported(
        path=path,
        kind=notes["kind"],
        quantize=notes["quantize"],
        size=sum(file.stat().st_size for file in files if file.is_file()),
        images_per_second=round(speed, 1),
        keras_images_per_second=round(keras_speed, 1),
        **compare(outputs, expected, labels, task=notes["task"], thresholds=limits),
    )


def _rejection(exported: Exported, final: Path) -> InputError:
    kept = f"The earlier file stays in {final}" if final.exists() else f"Nothing was written to {final}"
    advice = {
        "int8": "Try --quantize float16, or more training images for its ranges (--max-images)",
        "float16": "Try it without --quantize",
    }.get(exported.quantize or "", "Try another format")
    return InputError(
        f"The {format_name(exported.kind, exported.quantize)} file disagrees with Keras: {exported.problem}, on "
        f"{exported.num_images:,} held-out images. {kept}. {advice}."
    )
