"""The folder of an exported file: whole under its name or not at all, with what is known about the file."""

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

if TYPE_CHECKING:
    from transfer.results.finished_runs import FinishedRun

SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}

NOTES, LABELS = "model.json", "labels.txt"
"""What lies beside each file: all that is known about it, and the class names."""


def own_folder(run_folder: Path, kind: str, quantize: str | None) -> Path:
    """Say where in a run's folder a file goes."""
    place = run_folder / "exported"
    if place.is_symlink():  # a run may come from anywhere, and nothing is written out of it
        raise InputError(
            f"Expected a folder in the run. Received a link: {place}. Choose another with --output."
        )
    return place / (f"{kind}-{quantize}" if quantize else kind)


def refuse_other(final: Path, kind: str, quantize: str | None) -> None:
    """Let nothing be replaced but an earlier export of the same kind."""
    if not final.is_symlink() and (not final.exists() or (final.is_dir() and not any(final.iterdir()))):
        return
    try:
        earlier = json.loads((final / NOTES).read_text(encoding="utf-8"))
        same = not final.is_symlink() and (earlier["kind"], earlier["quantize"]) == (kind, quantize)
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        what = f"{kind} {quantize}" if quantize else kind
        raise InputError(
            f"{final} is in use, and not by an earlier export to {what}. Choose another folder with --output, or "
            "remove it."
        )


@contextlib.contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """Give a hidden folder to write to, which takes its own name when all is well; until then an earlier
    one stays."""
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
            with contextlib.suppress(OSError):  # it is not empty: all went well
                final.parent.rmdir()


def notes_of(run: FinishedRun, kind: str, quantize: str | None) -> dict[str, Any]:
    """Say all that is known about a file to whoever has it without the run."""
    height, width = run.image_size
    names = (
        "transfer",
        "tensorflow",
        "keras",
        "tf2onnx",
        "onnx",
        "onnxruntime",
        "openvino",
        "ai-edge-litert",
    )
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    pixels = "RGB from 0 to 255 as it is: scaling is inside"
    inputs = {"images": f"float32 (batch, {height}, {width}, 3), {pixels}; resize to this size before"}
    if kind == "saved-model":
        inputs = {
            "serving_default: images": f"uint8 (batch, any height, any width, 3), {pixels}, and resizing too",
            "encoded: encoded": "string (batch,), the bytes of JPEG, PNG, GIF or BMP files; EXIF rotation is not done",
        }
    outputs = {"probabilities": f"float32 (batch, {len(run.class_names)}), in the order of the class names"}
    if kind == "saved-model":
        outputs["classes"] = f"string (batch, {len(run.class_names)}), the class names"
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
        "class_names": list(run.class_names),
        "versions": versions,
    }
