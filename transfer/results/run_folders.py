"""Create a run's folder: partial until it is complete, then renamed; find the partial folder to resume."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError
from transfer.common.files import write_text
from transfer.training.settings import read_settings, require_same_settings

CHECKPOINTS = "checkpoints"
"""Folder of the training's checkpoints in the partial folder of an unfinished run."""

_OPTIONS, _DECISION, _LOCK = "options.json", "decision.json", "lock"


@contextlib.contextmanager
def run_folder(
    output: str | None,
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    resume_from: Path | None = None,
) -> Iterator[Path]:
    """Yield a partial folder to write a run into; rename it to its final name when the run is complete."""
    if resume_from is not None:
        final = final_folder(resume_from)
    else:
        final = Path(output) if output is not None else _free_folder(name)
    partial = _partial_folder(final)
    check_unused(final)
    made_parent = not final.parent.exists()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"Cannot make the output folder {final}: {error.strerror}.") from None
    try:
        if not _try_lock(lock):
            raise InputError(f"Another run is writing to {final}. Choose another output.")
        with _removed_without_checkpoints(partial):
            if resume_from is None:
                _clear(partial)
                write_text(partial / _OPTIONS, json.dumps(dict(options or {}), indent=2))
            yield partial
            check_unused(final)
            if final.exists():
                final.rmdir()
            for file in (_OPTIONS, _DECISION, _LOCK):
                (partial / file).unlink(missing_ok=True)
            shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
            os.replace(partial, final)
    finally:
        os.close(lock)
        if made_parent and not final.exists() and not partial.exists():
            with contextlib.suppress(OSError):
                final.parent.rmdir()


@contextlib.contextmanager
def _removed_without_checkpoints(partial: Path) -> Iterator[None]:
    """Remove the partial folder of a run that fails before its first checkpoint."""
    try:
        yield
    except BaseException:
        if not _has_checkpoint(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _has_checkpoint(partial: Path) -> bool:
    return any((partial / CHECKPOINTS).glob("*.npz"))


def _try_lock(descriptor: int) -> bool:
    """Lock an open file; return False if another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # this file system has no locks
    return True


def _clear(partial: Path) -> None:
    """Remove the files of a run that was killed before its first checkpoint, except the lock."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def find_interrupted(
    output: str | None, options: Mapping[str, Any], *, required: bool = False
) -> Path | None:
    """Return the partial folder of an interrupted run with the same options, or None; refuse other options."""
    options = json.loads(json.dumps(dict(options)))
    if output is not None:
        places = [_partial_folder(Path(output))]
    else:
        places = sorted(Path("runs").glob(".*.partial"), key=lambda path: path.stat().st_mtime, reverse=True)
    for place in places:
        if not _has_checkpoint(place) or not (place / _OPTIONS).exists():
            continue
        earlier = read_settings(place / _OPTIONS)
        if earlier == options and not (output is None and _is_running(place)):
            return place
        if output is not None:
            require_same_settings(earlier, options, Path(output))
    if required:
        raise InputError(
            f"Found no interrupted run with these options in {output or 'runs'}. To start a new run, leave out "
            "--resume."
        )
    return None


def _is_running(partial: Path) -> bool:
    """Return whether a process is writing to a partial folder."""
    try:
        lock = os.open(partial / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try_lock(lock)
    finally:
        os.close(lock)


def save_decision(folder: Path, decision: Mapping[str, Any]) -> None:
    """Save the case and options chosen at the start of a run, so that a resumed run keeps them."""
    write_text(folder / _DECISION, json.dumps(dict(decision), indent=2))


def read_decision(folder: Path) -> dict[str, Any] | None:
    """Return the saved decision of an interrupted run; None if there is none."""
    try:
        decision: dict[str, Any] = json.loads((folder / _DECISION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return decision


def check_unused(output: str | Path | None) -> None:
    """Raise an error, before any work, if the output folder already holds files."""
    final = Path(output) if output is not None else None
    if final is not None and final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise InputError(f"The output folder {final} is in use. Choose another with --output, or remove it.")


def final_folder(folder: Path) -> Path:
    """Return the final path of a partial folder; return a final path as it is."""
    return folder.with_name(folder.name.removeprefix(".").removesuffix(".partial"))


def _partial_folder(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _free_folder(name: str) -> Path:
    """Return the first numbered folder under `runs` that no run uses."""
    folders = (Path("runs") / f"{name}-{number}" for number in itertools.count(1))
    return next(one for one in folders if not one.exists() and not _partial_folder(one).exists())
