"""Keep a trained model when its output folder cannot be written, such as on a full disk."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras

from transfer.common.cache_folder import default_cache_folder
from transfer.common.errors import InputError, one_line
from transfer.common.files import disk_advice, disk_reason
from transfer.results.run_folders import final_folder, has_checkpoint
from transfer.training.checkpoints import NUM_KEPT

log = logging.getLogger(__name__)

Write = Callable[[Path], None]
"""Writes the files of a run into a folder."""


def write_somewhere(folder: Path, write: Write, *, final: Path | None = None) -> None:
    """Write a run; if that fails, write it to another disk and raise an `InputError` that says where it is."""
    try:
        write(folder)
        return
    except (OSError, InputError) as error:
        failed = error if isinstance(error, OSError) else error.__cause__
        advice = "Free space there"
        reason = one_line(error).rstrip(".")
        if isinstance(failed, OSError):
            reason, advice = disk_reason(failed), disk_advice(failed, "Make the folder writable")
    final = final or final_folder(folder)
    kept, resumable = _write_elsewhere(final.name, write), has_checkpoint(folder)
    parts = [f"Cannot write the run to {final}: {reason}."]
    if kept is not None:
        size = sum(file.stat().st_size for file in kept.iterdir()) / 2**20
        parts.append(
            f"The complete run, without figures and pages, is in {kept} ({size:.1f} MB). Move it to a safe place."
        )
    elif not resumable:
        parts.append(
            "No other folder has enough space, and no checkpoint could be written: the trained model is lost."
        )
    if resumable:
        parts.append(f"{advice}. Then the same command resumes from the last checkpoint.")
    elif kept is None:
        parts.append(f"{advice}. Then run the same command again.")
    raise InputError(" ".join(parts)) from None


def _write_elsewhere(name: str, write: Write) -> Path | None:
    """Write a run to the temporary folder or to the cache folder; return its place, or None if both fail."""
    for find in (lambda: Path(tempfile.gettempdir()), default_cache_folder):
        with (
            contextlib.suppress(OSError, InputError),
            _removed_on_error(Path(tempfile.mkdtemp("", f"{name}-", find()))) as place,
        ):
            write(place)
            return place
    return None


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def warn_if_full(folder: Path, model: keras.Model) -> None:
    """Warn before the training if the disk has less space than a run is expected to need."""
    needed, free = expected_bytes(model), shutil.disk_usage(folder).free
    if free < needed:
        log.warning(
            "The disk of %s has %.1f MB free; the model and its checkpoints need about %.1f MB. Free some space, or "
            "choose another --output.",
            folder.parent, free / 2**20, needed / 2**20,
        )  # fmt: skip


def expected_bytes(model: keras.Model) -> int:
    """Return the expected size of a run: the model, two checkpoints with the optimizer, figures and pages."""
    weights = 4 * model.count_params()
    # Model and checkpoints also hold two values of Adam per trained weight; checkpoints, the best weights so far.
    state = weights + 8 * sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return state + NUM_KEPT * (state + weights) + 3 * 2**20
