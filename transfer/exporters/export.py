"""`python -m transfer.export`: a trained run in the file formats of other runtimes, each checked in its own."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.common.errors import InputError, unknown
from transfer.exporters.output_folder import (
    LABELS,
    NOTES,
    SUFFIXES,
    notes_of,
    own_folder,
    refuse_other,
    replacing_folder,
)
from transfer.exporters.verification import Exported, compare

if TYPE_CHECKING:  # TensorFlow is loaded when there is something to export, so that --help answers at once
    import numpy as np

    from transfer.images.splitting import Split
    from transfer.results.finished_runs import FinishedRun

log = logging.getLogger(__name__)

KINDS: dict[str, tuple[str | None, ...]] = {
    "saved-model": (None,),
    "litert": (None, "float16", "int8"),
    "onnx": (None, "float16", "int8"),
    "openvino": (None, "float16", "int8"),
}
"""File formats, and how each can be quantized. A SavedModel is for servers, which have room."""

MAX_IMAGES = 500
"""Held-out images to check a file on at most: enough to tell 99% of agreement from 97%."""

MAX_CALIBRATION = 200
"""Training images that set the ranges of int8, at most: more change them little."""


def export(
    run: str | Path | FinishedRun,
    *,
    to: str,
    quantize: str | None = None,
    output: str | Path | None = None,
    data: Any = None,
    max_images: int = MAX_IMAGES,
) -> Exported:
    """Write a trained run for another runtime, and run the file there, beside Keras, on images of the test.

    A file that does not say what Keras says is not kept, and an earlier one stays. Every file takes raw RGB, 0 to 255,
    as `float32`, of the run's size, any number of images at once; a SavedModel takes any size, as `uint8`, and
    encoded images too (see `export_saved_model.write_saved_model`).

    Args:
        run: the folder of a run, a `.keras` file that `python -m transfer.train` wrote, or of `load_run`.
        to: one of `KINDS`.
        quantize: None, `"float16"` or `"int8"`, which is set by training images.
        output: folder to write; None is a folder of that kind under `exported` in the run's own. An earlier export of
            the same kind in it is replaced.
        data: images to check on where the run's own are gone, as for `load_test`. Where its training images are
            gone too, int8 is set by half of these and checked on the others.
        max_images: images to check on, at most, 1 or more; int8 is set by as many at most, or `MAX_CALIBRATION`.

    Returns:
        What was written, and what the check found.

    Raises:
        InputError: an unknown format, a package that is not installed, no images, an output that is something else,
            or a file that does not say what Keras says.

    Example:
        print(export("runs/emoji-small-similar-1", to="onnx", quantize="int8").to_text())
    """
    _check_arguments(to, quantize, output, max_images)
    import numpy as np

    from transfer.distributed import strategies

    if not strategies.on_tensorflow():
        raise InputError("Export reads TensorFlow's graphs. Run it with KERAS_BACKEND=tensorflow.")
    from transfer.exporters import formats
    from transfer.networks import surgery
    from transfer.results.finished_runs import load_run

    formats.load_packages(to, quantize)
    run = load_run(run) if isinstance(run, str | Path) else run
    final = Path(output) if output is not None else own_folder(run.folder, to, quantize)
    refuse_other(final, to, quantize)
    test, train = _images(run, data, max_images, quantize)
    calibration = None if train is None else _pixels(train, run.image_size, MAX_CALIBRATION)
    # What a file computes: in float32, at one size. A run in bfloat16 differs from itself by more than a file may.
    model = surgery.clone(run.model, image_size=run.image_size, precision="float32")
    what = f"{to} {quantize}" if quantize else to
    log.info("Converting %s to %s", run.name, what)
    with replacing_folder(final) as partial:
        notes = notes_of(run, to, quantize)
        with _told(what):
            path = _convert(model, run, notes, partial, calibration)
        log.info("Running it beside Keras on %s held-out images", f"{len(test):,}")
        images = _pixels(test, run.image_size, max_images)
        with _told(what):
            exported = _checked(model, path, notes, images, np.asarray(test.labels))
        if exported.problem:
            raise InputError(_refusal(exported, final))
        (partial / LABELS).write_text("".join(f"{name}\n" for name in run.class_names), encoding="utf-8")
        notes["check"] = {key: value for key, value in exported.to_dict().items() if key not in notes}
        text = json.dumps(notes, indent=2, ensure_ascii=False)
        (partial / NOTES).write_text(text + "\n", encoding="utf-8")
    return Exported(**{**vars(exported), "path": final / path.relative_to(partial)})


def _check_arguments(to: str, quantize: str | None, output: Any, max_images: int) -> None:
    if to not in KINDS:
        raise unknown("format", to, KINDS)
    every = ("float16", "int8")
    if quantize is not None and quantize not in every:
        raise unknown("way to quantize", quantize, every)
    if quantize not in KINDS[to]:
        able = ", ".join(kind for kind, ways in KINDS.items() if quantize in ways)
        raise InputError(f"Expected quantize={quantize!r} with one of {able}. Received it with {to}.")
    if isinstance(max_images, bool) or not isinstance(max_images, int) or max_images < 1:
        raise InputError(f"Expected max_images of 1 or more. Received: {max_images!r}.")
    suffix = Path(output).suffix if output is not None else ""
    if suffix in (*SUFFIXES.values(), ".pb", ".keras", ".bin"):
        raise InputError(
            f"Expected a folder as output: class names and notes lie beside the file. Received: {output}. Such as "
            f"{Path(output).with_suffix('')}."
        )


def _images(run: FinishedRun, data: Any, most: int, quantize: str | None) -> tuple[Split, Split | None]:
    """Give held-out images, and those to set int8 by."""
    train = None
    if data is None:
        try:
            loaded = run.data()
        except InputError as error:
            raise InputError(f"{error} Name images to check the file on: --data DIR.") from None
        test = next(part for part in (loaded.test, loaded.val, loaded.train) if len(part))
        train = loaded.train
        if test is train:
            log.warning("The run held no images out: the file is checked on those that it was trained on.")
    else:
        test = run.data(data).test
        if quantize == "int8":
            with contextlib.suppress(InputError):
                train = run.data().train
    if quantize == "int8" and train is None:
        if len(test) < 2:
            raise InputError("int8 needs images to set its ranges by and others to check it on. Received 1.")
        half = _some(test, 2 * most)
        train, test = half.take(range(0, len(half), 2)), half.take(range(1, len(half), 2))
    calibration = None if quantize != "int8" or train is None else _some(train, min(most, MAX_CALIBRATION))
    return _some(test, most), calibration


def _some(split: Split, most: int) -> Split:
    """Draw some images, the same each time."""
    import numpy as np

    return split.take(np.random.default_rng(0).permutation(len(split))[:most])


def _pixels(split: Split, size: tuple[int, int], most: int) -> np.ndarray:
    import numpy as np

    return np.stack([split.image(i, size) for i in range(min(len(split), most))])


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Keep converters and runtimes quiet, and say in a sentence why one cannot: they throw whatever they
    like."""
    from transfer.exporters.formats import quiet

    try:
        with quiet():
            yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"This network does not go as {what}: {reason[0][:300]}. Nothing was written. Try another way to quantize, "
            f"or another format: {', '.join(KINDS)}."
        ) from error


def _convert(
    model: Any, run: FinishedRun, notes: dict[str, Any], folder: Path, calibration: np.ndarray | None
) -> Path:
    """Write the file; give what a runtime loads."""
    from transfer.exporters import formats, saved_model

    names, size = run.class_names, run.image_size
    if notes["kind"] == "saved-model":
        saved_model.write_saved_model(model, folder, image_size=size, class_names=names, resize=run.resize)
        return folder
    graph, file = formats.Graph(model, size), folder / notes["file"]
    options: dict[str, Any] = {"quantize": notes["quantize"], "calibration": calibration}
    if notes["kind"] == "litert":
        formats.write_litert(graph, file, class_names=names, **options)
    else:
        write = {"onnx": formats.write_onnx, "openvino": formats.write_openvino}[notes["kind"]]
        inside = ("class_names", "image_size", "resize", "inputs", "outputs")
        write(graph, file, notes={key: notes[key] for key in inside}, **options)
    return file


def _checked(
    model: Any, path: Path, notes: dict[str, Any], images: np.ndarray, labels: np.ndarray
) -> Exported:
    """Load the file again, and run it and Keras."""
    import numpy as np

    from transfer.exporters.runtimes import BATCH, in_full, open_exported, run_all

    with in_full():
        run, batch = open_exported(notes["kind"], path)
        found, speed = run_all(run, images, batch)
        expected, keras_speed = run_all(lambda x: np.asarray(model.predict_on_batch(x)), images, BATCH)
    every = path.rglob("*") if path.is_dir() else path.parent.iterdir()
    return Exported(
        path=path,
        kind=notes["kind"],
        quantize=notes["quantize"],
        size=sum(file.stat().st_size for file in every if file.is_file()),
        images_per_second=round(speed, 1),
        keras_images_per_second=round(keras_speed, 1),
        **compare(found, expected, labels),
    )


def _refusal(exported: Exported, final: Path) -> str:
    what = f"{exported.kind} {exported.quantize}" if exported.quantize else exported.kind
    kept = "The earlier one stays" if final.exists() else "Nothing was kept"
    instead = {
        "int8": "Try --quantize float16, or more training images for its ranges (--max-images)",
        "float16": "Try it without --quantize",
    }.get(exported.quantize or "", "Try another format")
    return (
        f"The {what} file is no good: {exported.problem}, on {exported.num_images:,} held-out images. {kept} at "
        f"{final}. {instead}."
    )
