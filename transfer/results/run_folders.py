"""A run's folder: whole under its name or not at all, and found again where a run was interrupted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError
from transfer.training.settings import read_settings, refuse_others

STATE = "state"
"""Where the states of training are, in the folder of a run that is not finished."""

_ASKED, _DECIDED, _LOCK = "asked.json", "decided.json", "lock"


@contextlib.contextmanager
def run_folder(
    output: str | None, name: str, *, asked: Mapping[str, Any] | None = None, going_on: Path | None = None
) -> Iterator[Path]:
    """Give a folder to write a run into, which takes its own name only when the run is complete."""
    if going_on is not None:
        final = going_on.with_name(going_on.name.removeprefix(".").removesuffix(".partial"))
    else:
        final = Path(output) if output is not None else _free_folder(name)
    partial = _partial(final)
    refuse_used(final)
    made_parent = not final.parent.exists()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"Cannot make the output folder {final}: {error.strerror}.") from None
    try:
        _take(lock, final)
        if going_on is None:
            _empty(partial)
            _write(partial / _ASKED, dict(asked or {}))
        yield partial
        refuse_used(final)
        if final.exists():
            final.rmdir()
        for rest in (_ASKED, _DECIDED, _LOCK):
            (partial / rest).unlink(missing_ok=True)
        shutil.rmtree(partial / STATE, ignore_errors=True)
        os.replace(partial, final)
    except _InUseError as error:
        raise InputError(str(error)) from None
    except BaseException:
        if not any((partial / STATE).glob("state-*.npz")):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)
        if made_parent and not final.exists() and not partial.exists():
            with contextlib.suppress(OSError):
                final.parent.rmdir()


class _InUseError(Exception):
    pass


def _take(lock: int, final: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _InUseError(f"Another run is writing to {final}. Choose another output.") from None
    except OSError:
        pass  # a file system without locks


def _empty(partial: Path) -> None:
    """Remove what a run left that was killed before there was anything to go on with."""
    for path in partial.iterdir():
        if path.name == _LOCK:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def unfinished(output: str | None, asked: Mapping[str, Any], *, needed: bool = False) -> Path | None:
    """Find an interrupted run with the same options."""
    asked = json.loads(json.dumps(dict(asked)))
    if output is not None:
        places = [_partial(Path(output))]
    else:
        places = sorted(Path("runs").glob(".*.partial"), key=lambda path: path.stat().st_mtime, reverse=True)
    for place in places:
        if not any((place / STATE).glob("state-*.npz")) or not (place / _ASKED).exists():
            continue
        earlier = read_settings(place / _ASKED)
        if earlier == asked and not (output is None and _is_taken(place)):
            return place
        if output is not None:
            refuse_others(earlier, asked, Path(output))
    if needed:
        raise InputError(
            f"There is no interrupted run with these options in {output or 'runs'}. Leave --resume out to start one."
        )
    return None


def _is_taken(partial: Path) -> bool:
    """Say whether a run is writing there just now."""
    try:
        lock = os.open(partial / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False


def decide(folder: Path, decision: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Keep what was decided at the start of a run, or read it again."""
    if decision is not None:
        _write(folder / _DECIDED, decision)
    try:
        found: dict[str, Any] = json.loads((folder / _DECIDED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(dict(values), indent=2), encoding="utf-8")
    os.replace(temporary, path)


def refuse_used(output: str | Path | None) -> None:
    """Stop before any work where the output folder has something in it already."""
    if output is None:
        return
    final = Path(output)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise InputError(f"The output folder {final} is in use. Choose another with --output, or remove it.")


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _free_folder(name: str) -> Path:
    number = 1
    while (Path("runs") / f"{name}-{number}").exists() or _partial(
        Path("runs") / f"{name}-{number}"
    ).exists():
        number += 1
    return Path("runs") / f"{name}-{number}"
