"""Create a run's folder: partial until it is complete, then renamed; find runs with the same options."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer.common.commands import interrupts_held
from transfer.common.errors import InputError, LostImageError
from transfer.common.files import write_text
from transfer.config import TrainConfig, load_config
from transfer.results.file_names import ADVICE, CONFIG, MODEL, RUN_FILES, SPLIT, STEPS
from transfer.training.settings import describe_differences, read_settings, require_same_settings

CHECKPOINTS = "checkpoints"
"""Folder of the training's checkpoints in the partial folder of an unfinished run."""

COMPLETE = "This run is complete. To start another, choose another --output, or delete this one."
"""Message of a command whose run is there already."""

IMPROVED = (
    "This run is complete. To improve it, choose a larger --time-budget; to start another, choose another --output, or "
    "delete this one."
)
"""Message of a command whose run had this time budget already."""

_OPTIONS, _DECISION, _LOCK = "options.json", "decision.json", "lock"
_CHOSEN = ("case", "cut", "init")  # the options that the advice sets


@contextlib.contextmanager
def run_folder(
    output: str | None,
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    resume_from: Path | None = None,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Yield a partial folder to write a run into; rename it to its final name when the run is complete."""
    place = final_folder(resume_from) if resume_from is not None else output
    with _locked(place, name, overwrite=overwrite) as (partial, final):
        with _removed_unless_useful(partial):
            if resume_from is None:
                _clear(partial)
                write_text(partial / _OPTIONS, json.dumps(dict(options or {}), indent=2))
            yield partial
        _complete(partial, final)


@dataclass(frozen=True)
class ImprovedFolder:
    """The folder of a run that is written again each time its model improves."""

    final: Path
    partial: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints of all steps."""
        return self.partial / CHECKPOINTS

    @property
    def written(self) -> bool:
        """Whether the folder holds a run."""
        return (self.final / MODEL).is_file()

    def replace(self, write: Callable[[Path], None], *, then: Callable[[], None]) -> None:
        """Write a complete run beside the folder, then put it in its place and call `then`, without interruption."""
        new = self.partial / self.final.name
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            write(new)
            with interrupts_held():
                _swap(new, self.final)
                then()
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def improved_folder(
    output: str | None, name: str, *, continued: Path | None = None
) -> Iterator[ImprovedFolder]:
    """Yield the folder of a run that is written several times; while it is open, no other run writes to it."""
    with _locked(continued or output, name, overwrite=continued is not None) as (partial, final):
        if continued is None:
            _clear(partial)
        folder = ImprovedFolder(final, partial)
        try:
            yield folder
        except BaseException:
            if not (folder.written and any(folder.checkpoints.glob("*/*.npz"))):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(place: Path | str | None, name: str, *, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Lock a folder, or a new one with a name and a number; yield its partial and its final path."""
    numbered = (Path("runs") / f"{name}-{number}" for number in itertools.count(1) if _is_free(name, number))
    finals: Iterable[Path] = numbered if place is None else [Path(place)]
    final, lock, made_parent = _lock_first(finals, overwrite=overwrite)
    partial = _partial_folder(final)
    try:
        yield partial, final
    finally:
        os.close(lock)
        if made_parent and not final.exists() and not partial.exists():
            with contextlib.suppress(OSError):
                final.parent.rmdir()


def _lock_first(finals: Iterable[Path], *, overwrite: bool) -> tuple[Path, int, bool]:
    """Lock the first folder that no other run writes to; return it, its lock, and whether its parent is new."""
    for final in finals:
        if not overwrite:
            check_unused(final)
        made_parent = not final.parent.exists()
        try:
            _partial_folder(final).mkdir(parents=True, exist_ok=True)
            lock = os.open(_partial_folder(final) / _LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(
                f"Cannot make the output folder {final}: {reason}. Choose another --output."
            ) from None
        if _try_lock(lock):
            return final, lock, made_parent
        os.close(lock)  # another run took the folder just now
    raise _in_use(final)


def _complete(partial: Path, final: Path) -> None:
    """Rename the folder of a complete run; if its name is taken, leave it where it is and say so."""
    for file in (_OPTIONS, _DECISION, _LOCK):
        (partial / file).unlink(missing_ok=True)
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    try:
        _swap(partial, final)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"The run is complete in {partial}. It cannot be renamed to {final}: {reason}."
        ) from None


def _swap(new: Path, final: Path) -> None:
    """Rename a folder to its final name; an earlier run under that name is removed, and files of the user stay."""
    old = final.with_name(f".{final.name}.old")
    if old.exists() and final.exists():  # a command was killed here
        _remove_old(old, final)
    try:
        if final.is_dir() and any(final.iterdir()):
            os.replace(final, old)
        os.replace(new, final)  # replaces an empty folder
    except BaseException:
        if old.exists() and not final.exists():
            os.replace(old, final)
        raise
    if old.exists():
        _remove_old(old, final)


def _remove_old(old: Path, final: Path) -> None:
    """Remove an earlier run after the files of the user have moved from it to the new one."""
    for path in old.iterdir():
        if path.name not in RUN_FILES and not (final / path.name).exists():
            os.replace(path, final / path.name)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _removed_unless_useful(partial: Path) -> Iterator[None]:
    """Remove the partial folder of a run that fails before its first checkpoint, unless an image was lost."""
    try:
        yield
    except LostImageError:
        raise  # the same command compares the split with the images that are left
    except BaseException:
        if not has_checkpoint(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def has_checkpoint(partial: Path) -> bool:
    """Return whether a partial folder holds a checkpoint."""
    return any((partial / CHECKPOINTS).rglob("*.npz"))


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
    """Return the partial folder of a run with the same options that stopped, or None; refuse other options."""
    defaults = _plain(TrainConfig().result_options)  # runs of earlier versions lack newer options
    options = defaults | _plain(options)
    if output is not None:
        places = [_partial_folder(Path(output))]
        if _is_running(places[0]):
            raise _in_use(Path(output))
    else:
        places = sorted(Path("runs").glob(".*.partial"), key=lambda path: path.stat().st_mtime, reverse=True)
    for place in places:
        started = has_checkpoint(place)
        if not (started or ((place / SPLIT).exists() and not required)) or not (place / _OPTIONS).exists():
            continue
        earlier = defaults | read_settings(place / _OPTIONS)
        if earlier == options and not (output is None and _is_running(place)):
            return place
        if output is not None and started:
            require_same_settings(earlier, options, place)
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


def find_finished(config: TrainConfig) -> Path | None:
    """Return the folder of a finished run with the same options, or None; refuse other options."""
    now = _plain(config.result_options)
    if config.output is None:
        interrupted = find_interrupted(None, now) if config.resume else None
        if not (config.resume or config.case == "auto") or (
            interrupted is not None and has_checkpoint(interrupted)
        ):
            return None
    places = Path("runs").glob("*") if config.output is None else [Path(config.output)]
    for place in sorted(places, key=os.path.getmtime if config.output is None else None, reverse=True):
        if not (os.path.isfile(place / MODEL) and os.path.isfile(place / CONFIG)):
            continue
        improved = (place / STEPS).is_file()
        if config.output is None and not config.resume and not improved:
            continue
        earlier = _plain(load_config(place / CONFIG).result_options)
        if improved:
            earlier["time_budget"] = now["time_budget"]
        elif config.case == "auto" and ((place / ADVICE).is_file() or config.unfreeze_from):
            earlier |= {name: now[name] for name in _CHOSEN}
        differences = describe_differences(earlier, now)
        if not differences:
            return place
        if config.output is not None:
            raise InputError(
                f"{place} holds a finished run with other options: {differences}. Choose another "
                "--output, or delete it."
            )
    return None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they are after JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(options), default=str))
    return plain


def check_unused(output: str | Path | None) -> None:
    """Raise an error, before any work, if the output folder already holds files."""
    final = Path(output) if output is not None else None
    try:
        if final is not None and final.exists() and (not final.is_dir() or any(final.iterdir())):
            what = "not empty" if final.is_dir() else "a file"
            raise InputError(f"The output {final} is {what}. Choose another --output, or remove it.")
        if final is not None:
            _partial_folder(final).exists()  # raises for a name that is too long
            parent = next(folder for folder in final.absolute().parents if folder.exists())
            if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
                what = "read-only" if parent.is_dir() else "a file"
                raise InputError(
                    f"Cannot make the output {final}: {parent} is {what}. Choose another --output."
                )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"Cannot use the output {final}: {reason}. Choose another --output.") from None


def check_free(final: Path, *, overwrite: bool) -> None:
    """Raise unless a run in Python may write a folder: a new or empty one, or an earlier run to replace."""
    if has_checkpoint(_partial_folder(final)):
        raise InputError(
            f"An interrupted training will write {final}. Resume it, choose another folder, or remove "
            f"{_partial_folder(final)}."
        )
    if not final.is_dir() or not any(final.iterdir()):
        check_unused(final)
        return
    if not ((final / MODEL).is_file() and (final / CONFIG).is_file()):
        raise InputError(f"The folder {final} is not empty, and it is not a run. Choose another folder.")
    if not overwrite:
        raise InputError(f"{final} holds a run. Choose another folder, or pass overwrite=True to replace it.")
    others = sorted(path.name for path in final.iterdir() if path.name not in RUN_FILES)
    if others:
        raise InputError(
            f"{final} holds a run and other files, such as {others[0]}. Move them away, or choose another folder."
        )


def check_outside(output: str | None, data: str) -> None:
    """Raise an error if the output folder is inside the folder of the images."""
    folder, final = (
        Path(data).expanduser().resolve(),
        Path(output if output is not None else "runs").resolve(),
    )
    if folder.is_dir() and final.is_relative_to(folder):
        raise InputError(
            f"The output folder {final} is inside the data {folder}: later runs would read its figures as images. "
            "Choose an --output outside."
        )


def _in_use(final: Path) -> InputError:
    return InputError(
        f"The output folder {final} is in use: another run is writing to it. Choose another --output."
    )


def final_folder(folder: Path) -> Path:
    """Return the final path of a partial folder; return a final path as it is."""
    return folder.with_name(folder.name.removeprefix(".").removesuffix(".partial"))


def _partial_folder(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _is_free(name: str, number: int) -> bool:
    """Return whether no run uses a numbered folder under `runs`."""
    final = Path("runs") / f"{name}-{number}"
    return not final.exists() and not _partial_folder(final).exists()
