"""Where images come from: folders, read into splits without decoding an image yet."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transfer.common.errors import InputError, nearest, unknown
from transfer.images.decoding import EXTENSIONS, is_image, reason
from transfer.images.splitting import SourceData, Split
from transfer.images.tables import SPLIT_WORDS

EMBEDDED = "emoji"
"""The data set that comes with the package: drawings, few, and unlike photos."""

_SYSTEM = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
"""What operating systems and their archives leave beside files, beyond hidden ones; in small letters."""

_OTHER_IMAGES = frozenset(
    {
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jp2",
        ".jxl",
        ".svg",
        ".ico",
        ".psd",
        ".tga",
        ".ppm",
        ".pgm",
    }
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".dcm"}
)
"""Images that are not read; whoever has some among the others wants to know."""


def embedded_folder() -> Path:
    """Find the images that come with the package, installed or in a clone."""
    package = Path(__file__).parents[1]
    for folder in (package / "data" / EMBEDDED, package.parent / "data" / EMBEDDED):
        if folder.is_dir():
            return folder
    raise InputError("The emoji images are missing from this installation. Install the package again.")


def find_source(text: str) -> Path:
    """Find the folder or the list of images that a user named."""
    place = Path(text).expanduser()
    wanted = "a folder with a sub-folder of images per class, a CSV or Parquet list, tfds:NAME, or 'emoji'"
    try:
        if place.is_file() and place.suffix.lower() in EXTENSIONS:
            raise InputError(f"Expected {wanted}. Received an image: {text}. Name the folder that it is in.")
        if place.exists():
            return place
        if text == EMBEDDED:
            return embedded_folder()
        beside = {path.name: str(path) for path in place.parent.iterdir()} if place.parent.is_dir() else {}
        beside.pop(place.name, None)  # a link that leads nowhere
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a NUL byte, a name too long, no permission
        raise InputError(f"Expected {wanted}. Received: {text!r}: {reason(error)}.") from None
    near = [repr(beside.get(name, name)) for name in nearest(place.name, [EMBEDDED, *beside])]
    raise InputError(
        f"Expected {wanted}. Received: {text!r}, which does not exist. "
        + (f"Did you mean {', '.join(near)}?" if near else "Check the path.")
    )


def read_folder(folder: Path) -> SourceData:
    """Collect the paths of images and their labels; of files with strange names, the first bytes are
    read."""
    walk = _Walk(folder)
    roots = _split_roots(folder, walk)
    classes = {split: _classes(root, walk) for split, root in roots.items()}
    names = sorted(classes["train"])
    _refuse_misfits(roots, classes, walk)
    _refuse_wrapper(roots["train"], walk)
    label_of = {name: label for label, name in enumerate(names)}
    parts = {}
    for split, of_class in classes.items():
        files = [(file, label_of[c]) for c, files in of_class.items() for file in files]
        labels = np.array([label for _, label in files], "int64")
        parts[split] = Split([file for file, _ in files], labels, [walk.name(file) for file, _ in files])
    return SourceData(parts, names, walk.skipped, walk.ignored)


class _Walk:
    """Lists folders, and notes what lies in them that cannot be used."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._start = len(_start(top))
        self.skipped: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self._noted: set[str] = set()
        # A link to one of these would lead through everything beside the data, to the whole disk perhaps.
        self._above = set()
        for path in top.resolve().parents:
            with contextlib.suppress(OSError):
                self._above.add(_identity(path))

    def name(self, path: str | Path) -> str:
        return str(path)[self._start :].replace(os.sep, "/") or "."

    def skip(self, path: str | Path, why: str) -> None:
        if (name := self.name(path)) not in self._noted:  # the top is listed more than once
            self._noted.add(name)
            self.skipped.append((name, why))

    def listed(self, folder: Path) -> tuple[list[Path], list[str]]:
        """Give the sub-folders and the files, each sorted by name."""
        folders, files = [], []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == self.top:
                raise InputError(f"Cannot read the folder {folder}: {reason(error)}.") from None
            self.skip(folder, reason(error))
            return [], []
        inside = [path for path in (folder, *folder.parents) if path.is_relative_to(self.top)]
        above = self._above | {_identity(path) for path in inside}
        start = _start(folder)
        for entry in entries:
            path = start + entry.name
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                continue
            try:
                mode = entry.stat().st_mode
                circular = entry.is_symlink() and _identity(path) in above
            except OSError as error:
                astray = entry.is_symlink() and not isinstance(error, PermissionError)
                self.skip(path, "a link that leads nowhere" if astray else reason(error))
                continue
            if circular:
                self.skip(path, "a link to a folder that it lies in")
            elif stat.S_ISDIR(mode):
                folders.append(folder / entry.name)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                self.skip(path, "not a file")
        return folders, files

    def images(self, folder: Path) -> list[str]:
        """Give the images in a folder, however deep, sorted; links may lead in circles."""
        found: list[str] = []
        seen, waiting = set(), [folder]
        while waiting:
            here = waiting.pop()
            if (identity := _identity(here)) not in seen:
                seen.add(identity)
                folders, files = self.listed(here)
                waiting += reversed(folders)
                found += [file for file in files if self.is_image(file)]
        return sorted(found, key=lambda file: file.split(os.sep))  # folder by folder

    def is_image(self, file: str) -> bool:
        """Tell whether a file is meant to be an image that can be read; note what else it is."""
        kind = os.path.splitext(file)[1].lower()
        if kind in EXTENSIONS:
            return True
        try:
            with open(file, "rb") as stream:
                if is_image(stream.read(16)):
                    return True
        except OSError as error:
            self.skip(file, reason(error))
            return False
        if kind in _OTHER_IMAGES:
            self.skip(file, f"{kind[1:].upper()} is not read: save it as JPEG or PNG")
        else:
            self.ignored.append(self.name(file))
        return False


def _start(folder: Path) -> str:
    """Give what the paths of a folder's files start with, as `folder / name` writes them."""
    return os.path.join("" if folder == Path() else str(folder), "")


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _split_roots(folder: Path, walk: _Walk) -> dict[str, Path]:
    """Find the folder of each split; a folder that holds images itself is a class, whatever its name."""
    folders, files = walk.listed(folder)
    inside = {path.name: path for path in folders}
    called = {
        name: SPLIT_WORDS[name.lower()]
        for name, path in inside.items()
        if name.lower() in SPLIT_WORDS and walk.listed(path)[0]
    }
    if "train" not in called.values():
        if inside and all(name.lower() in SPLIT_WORDS for name in inside):
            raise InputError(
                f"Expected a folder 'train' in {folder}, with a sub-folder per class. Received: "
                f"{', '.join(inside)}. Sort the images into folders by class."
            )
        _skip_loose(files, walk)
        return {"train": folder}
    _skip_loose(files, walk)
    if len(set(called.values())) < len(called):
        raise InputError(
            f"Expected one folder per split in {folder}. Received: {', '.join(called)}. Merge or rename one."
        )
    for name in [name for name in inside if name not in called]:
        if count := len(walk.images(inside[name])):
            what = "1 image" if count == 1 else f"{count:,} images"
            walk.skip(inside[name], f"{what} in no folder of a split and a class")
    for name in called:
        _skip_loose(walk.listed(inside[name])[1], walk)
    return {split: inside[name] for name, split in called.items()}


def _skip_loose(files: Sequence[str], walk: _Walk) -> None:
    for file in files:
        if walk.is_image(file):
            walk.skip(file, "lies in no folder of a class")


def _classes(root: Path, walk: _Walk) -> dict[str, list[str]]:
    """Give the images by class; two folders that are called the same but for Unicode's form are one
    class."""
    found: dict[str, list[str]] = {}
    for folder in walk.listed(root)[0]:
        found.setdefault(printable(folder.name), []).extend(walk.images(folder))
    return found


def _refuse_misfits(roots: dict[str, Path], found: dict[str, dict[str, list[str]]], walk: _Walk) -> None:
    names = sorted(found["train"])
    kinds = ", ".join(sorted(EXTENSIONS))
    empty = [name for name in names if not found["train"][name]]
    if empty:
        raise InputError(
            f"Expected images ({kinds}) in every sub-folder of {roots['train']}. Received none in: "
            f"{', '.join(empty)}. Add some, or take the folder away.{skipped_in_words(walk.skipped)}"
        )
    for split, classes in found.items():
        strange = [name for name, files in classes.items() if files and name not in names]
        if strange:
            raise unknown(
                "class", strange[0], names, hint=f"It is in {roots[split]} but not in {roots['train']}."
            )
        if names and not any(classes.values()):
            raise InputError(
                f"Expected images ({kinds}) in {roots[split]}. Received none. Add some, or take the folder "
                f"away, and they are drawn from train.{skipped_in_words(walk.skipped)}"
            )


def _refuse_wrapper(root: Path, walk: _Walk) -> None:
    """Archives often unpack to a folder in a folder: then the inner one is meant."""
    folders = walk.listed(root)[0]
    if len(folders) == 1 and len(walk.listed(folders[0])[0]) > 1:
        raise InputError(
            f"Expected a sub-folder of images per class in {root}. Received one alone, {folders[0].name!r}, with "
            f"sub-folders of its own. Did you mean '{folders[0]}'?"
        )


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What spoils lines, terminals and files: controls, ends of lines, turns of direction, halves of characters. A list of
our own, since what Python calls printable differs between its versions, and joiners, which Persian and emoji need, are
not."""


def skipped_in_words(skipped: Sequence[tuple[str, str]]) -> str:
    """Say what was skipped and why, as more sentences of a message."""
    shown = "; ".join(f"{printable(name)} ({why})" for name, why in skipped[:5])
    more = f"; and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
    return f" Skipped were: {shown}{more}." if shown else ""


def printable(name: str) -> str:
    """Spell a name so that it is the same on every system and can be written anywhere."""
    return _CONTROLS.sub(_escape, unicodedata.normalize("NFC", name))


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else repr(char)[1:-1]
