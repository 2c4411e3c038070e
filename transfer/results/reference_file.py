"""Write and read the file with which a run recognizes unknown images and makes prediction sets."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from transfer.common.errors import InputError, one_line
from transfer.common.files import replacing
from transfer.evaluation.reference import Reference

_MAX_BYTES = 2**24  # of the arrays; those of a run have at most two megabytes
_NAMES = ("directions", "distances", "held_out", "scores")


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference; `read_reference` reads it."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            directions=reference.directions,
            distances=reference.distances,
            held_out=np.array(reference.held_out),
            scores=reference.scores,
        )


def read_reference(path: Path) -> Reference | None:
    """Read the file of `write_reference`; None if there is none, as in runs of earlier versions."""
    if not path.is_file():
        return None
    try:
        if path.resolve().parent != path.parent.resolve():
            raise ValueError("it is a link to another folder")
        with zipfile.ZipFile(path) as archive:  # a small archive could fill the memory
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            directions, distances, held_out, scores = (arrays[name] for name in _NAMES)
        fits = directions.dtype == "int8" and directions.ndim == 2 and directions.size > 0
        fits = fits and distances.ndim == scores.ndim == 1 and distances.size > 0
        if not fits or not (np.isfinite(distances).all() and np.isfinite(scores).all()):
            raise ValueError("expected int8 directions, and finite distances and scores")
        return Reference(directions, np.sort(distances), str(held_out), np.sort(scores))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"Cannot read {path}: {one_line(error)}. Restore the file. Or delete it, to use the run without --abstain "
            "and --coverage."
        ) from None
