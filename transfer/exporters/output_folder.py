"""The folder of an exported file, which appears only when it is complete, with notes that describe the file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.common.errors import InputError
from transfer.common.tasks import REGRESSION, output_name
from transfer.exporters.verification import format_name
from transfer.images.pixel_range import PixelRange
from transfer.results.file_names import EXPORTED

if TYPE_CHECKING:
    import numpy as np

    from transfer.results.finished_runs import FinishedRun
    from transfer.training.trained import TrainedModel

SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}

NOTES = "model.json"
"""Notes beside each file: its inputs, outputs, class names and verification."""

_PACKAGES = (
    "transfer",
    "tensorflow",
    "keras",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "openvino",
    "ai-edge-litert",
)


def default_folder(run_folder: Path, kind: str, quantize: str | None) -> Path:
    """Return the folder for a format inside the run's folder."""
    place = run_folder / EXPORTED
    if place.is_symlink():  # a run may come from anywhere: a link could lead out of its folder
        raise InputError(
            f"Expected a folder in the run. Received a link: {place}. Choose another with --output."
        )
    return place / (f"{kind}-{quantize}" if quantize else kind)


def check_replaceable(final: Path, kind: str, quantize: str | None) -> None:
    """Raise an error if the folder holds anything but an earlier export of the same format."""
    if not final.is_symlink() and (not final.exists() or (final.is_dir() and not any(final.iterdir()))):
        return
    try:
        earlier = json.loads((final / NOTES).read_text(encoding="utf-8"))
        same = not final.is_symlink() and (earlier["kind"], earlier["quantize"]) == (kind, quantize)
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(
            f"{final} is in use, and not by an earlier export to {format_name(kind, quantize)}. Choose another folder "
            "with --output, or remove it."
        )


@contextlib.contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """Yield a hidden folder to write to; rename it to its final name on success, and remove it on an error."""
    partial, old = (final.with_name(f".{final.name}.{os.getpid()}.{state}") for state in ("partial", "old"))
    made_parent = not final.parent.exists()
    try:
        partial.mkdir(parents=True)
        yield partial
        if final.exists():
            os.replace(final, old)
        try:
            os.replace(partial, final)
        except OSError:
            if old.exists():
                os.replace(old, final)
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"Cannot write {final}: {reason}. Choose another folder with --output.") from None
    finally:
        for rest in (partial, old):
            shutil.rmtree(rest, ignore_errors=True)
        if made_parent:
            with contextlib.suppress(OSError):  # after a success it is not empty
                final.parent.rmdir()


def _range_note(pixel_range: PixelRange) -> str:
    return f"in images with more than 8 bits per channel, the values {pixel_range} become 0 to 255, clipped"


def file_notes(
    run: FinishedRun | TrainedModel, kind: str, quantize: str | None, thresholds: np.ndarray | None = None
) -> dict[str, Any]:
    """Return notes that describe a file to users who do not have the run."""
    (height, width), classes = run.image_size, len(run.class_names)
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    pixels = "raw RGB, 0 to 255; scaling is part of the model"
    inputs = {"images": f"float32 (batch, {height}, {width}, 3), {pixels}; resize images to this size first"}
    outputs = {output_name(run.task): f"float32 (batch, {classes}), in the order of the class names"}
    if run.task == REGRESSION:
        outputs = {output_name(run.task): f"float32 (batch, 1), the number {run.class_names[0]}"}
    if kind == "saved-model":
        inputs = {
            "serving_default: images": f"uint8 (batch, any height, any width, 3), {pixels}, and so is resizing",
            "encoded: encoded": "string (batch,), bytes of JPEG, PNG, GIF or BMP files; EXIF rotation is ignored",
        }
        outputs["classes"] = f"string (batch, {classes}), the class names"
        if thresholds is not None:
            outputs["thresholds"] = f"float32 (batch, {classes}), of the labels"
    stem = f"model-{quantize}" if quantize else "model"
    return {
        "kind": kind,
        "quantize": quantize,
        "file": "saved_model.pb" if kind == "saved-model" else stem + SUFFIXES[kind],
        "run": run.name,
        "inputs": inputs,
        "outputs": outputs,
        "image_size": [height, width],
        "resize": f"{run.resize}, bilinear with antialiasing",
        **({"pixel_range": _range_note(run.pixel_range)} if run.pixel_range else {}),
        "task": run.task,
        "class_names": list(run.class_names),
        **({"thresholds": thresholds.tolist()} if thresholds is not None else {}),
        "versions": versions,
    }
