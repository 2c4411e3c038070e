"""Read folders of images into splits, without decoding an image."""

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
from transfer.common.text import plural
from transfer.images.decoding import EXTENSIONS, failure_reason, is_image
from transfer.images.split_words import SPLIT_WORDS
from transfer.images.splitting import SourceData, Split

EMBEDDED = "emoji"
"""The data set that comes with the package: a few drawings, unlike photos."""

# Files of operating systems and archives that are not hidden, in lower case.
_SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
_SYSTEM |= {"system volume information"}

# Image formats that are reported as skipped; other unknown files are ignored.
_OTHER_IMAGES = {".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".ico", ".psd", ".tga"}
_OTHER_IMAGES |= {".ppm", ".pgm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".dcm"}


def embedded_folder() -> Path:
    """Return the folder of images that comes with the package, installed or in a clone."""
    package = Path(__file__).parents[1]
    for folder in (package / "data" / EMBEDDED, package.parent / "data" / EMBEDDED):
        if folder.is_dir():
            return folder
    raise InputError("The emoji images are missing from this installation. Install the package again.")


def find_source(text: str) -> Path:
    """Return the folder or the list of images that a user chose."""
    place = Path(text).expanduser()
    wanted = "a folder with a sub-folder of images per class, a CSV or Parquet list, tfds:NAME, or 'emoji'"
    try:
        if place.is_file() and place.suffix.lower() in EXTENSIONS:
            raise InputError(
                f"Expected {wanted}. Received an image: {text}. Pass the folder that contains it."
            )
        if place.exists():
            return place
        if text == EMBEDDED:
            return embedded_folder()
        siblings = {path.name: str(path) for path in place.parent.iterdir()} if place.parent.is_dir() else {}
        siblings.pop(place.name, None)  # a broken link
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a NUL byte, a name that is too long, no permission
        raise InputError(f"Expected {wanted}. Received: {text!r}: {failure_reason(error)}.") from None
    near = [repr(siblings.get(name, name)) for name in nearest(place.name, [EMBEDDED, *siblings])]
    raise InputError(
        f"Expected {wanted}. Received: {text!r}, which does not exist. "
        + (f"Did you mean {', '.join(near)}?" if near else "Check the path.")
    )


def read_folder(folder: Path) -> SourceData:
    """Return the paths and labels of the images in a folder, by split."""
    scan = _FolderScan(folder)
    roots = _split_roots(folder, scan)
    classes = {split: _images_by_class(root, scan) for split, root in roots.items()}
    names = sorted(classes["train"])
    _refuse_misfits(roots, classes, scan)
    _refuse_wrapper(roots["train"], scan)
    label_of = {name: label for label, name in enumerate(names)}
    parts = {}
    for split, by_class in classes.items():
        files = [file for paths in by_class.values() for file in paths]
        labels = np.array([label_of[name] for name, paths in by_class.items() for _ in paths], "int64")
        parts[split] = Split(files, labels, [scan.relative_name(file) for file in files])
    return SourceData(parts, names, scan.skipped, scan.ignored)


class _FolderScan:
    """Lists folders and records the files that cannot be used."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._prefix_length = len(_prefix(top))
        self.skipped: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self._reported: set[str] = set()
        # Links to folders above the top are not followed: they could lead to the whole disk.
        self._above = set()
        for path in top.resolve().parents:
            with contextlib.suppress(OSError):
                self._above.add(_identity(path))

    def relative_name(self, path: str | Path) -> str:
        return str(path)[self._prefix_length :].replace(os.sep, "/") or "."

    def skip(self, path: str | Path, reason: str) -> None:
        if (name := self.relative_name(path)) not in self._reported:  # the top is listed more than once
            self._reported.add(name)
            self.skipped.append((name, reason))

    def entries(self, folder: Path) -> tuple[list[Path], list[str]]:
        """Return the sub-folders and the files of a folder, each sorted by name."""
        folders, files = [], []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == self.top:
                raise InputError(f"Cannot read the folder {folder}: {failure_reason(error)}.") from None
            self.skip(folder, failure_reason(error))
            return [], []
        inside = [path for path in (folder, *folder.parents) if path.is_relative_to(self.top)]
        above = self._above | {_identity(path) for path in inside}
        prefix = _prefix(folder)
        for entry in entries:
            path = prefix + entry.name
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                continue
            try:
                mode = entry.stat().st_mode
                circular = entry.is_symlink() and _identity(path) in above
            except OSError as error:
                broken_link = entry.is_symlink() and not isinstance(error, PermissionError)
                self.skip(path, "a broken link" if broken_link else failure_reason(error))
                continue
            if circular:
                self.skip(path, "a link to a folder that contains it")
            elif stat.S_ISDIR(mode):
                folders.append(folder / entry.name)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                self.skip(path, "not a file")
        return folders, files

    def images(self, folder: Path) -> list[str]:
        """Return the images at any depth of a folder, sorted; follow links, but visit no folder twice."""
        images: list[str] = []
        visited, pending = set(), [folder]
        while pending:
            current = pending.pop()
            if (identity := _identity(current)) not in visited:
                visited.add(identity)
                folders, files = self.entries(current)
                pending += reversed(folders)
                images += filter(self.accepts, files)
        return sorted(images, key=lambda file: file.split(os.sep))  # folder by folder

    def accepts(self, file: str) -> bool:
        """Return whether a file seems to be a readable image; record it as skipped or ignored if not."""
        extension = os.path.splitext(file)[1].lower()
        if extension in EXTENSIONS:
            return True
        try:
            with open(file, "rb") as stream:
                if is_image(stream.read(16)):
                    return True
        except OSError as error:
            self.skip(file, failure_reason(error))
            return False
        if extension in _OTHER_IMAGES:
            self.skip(file, f"{extension[1:].upper()} is not supported: save it as JPEG or PNG")
        else:
            self.ignored.append(self.relative_name(file))
        return False

    def skip_images(self, files: Sequence[str]) -> None:
        """Record images that lie directly in a folder of classes or splits."""
        for file in filter(self.accepts, files):
            self.skip(file, "not in the folder of a class")


def _prefix(folder: Path) -> str:
    """Return the prefix that `folder / name` puts before the name."""
    return os.path.join("" if folder == Path() else str(folder), "")


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _split_roots(folder: Path, scan: _FolderScan) -> dict[str, Path]:
    """Return the folder of each split; a folder of images is a class, even if it is named like a split."""
    folders, files = scan.entries(folder)
    inside = {path.name: path for path in folders}
    split_of = {
        name: SPLIT_WORDS[name.lower()]
        for name, path in inside.items()
        if name.lower() in SPLIT_WORDS and scan.entries(path)[0]
    }
    if "train" not in split_of.values():
        if inside and all(name.lower() in SPLIT_WORDS for name in inside):
            raise InputError(
                f"Expected a folder 'train' in {folder}, with a sub-folder per class. Received: "
                f"{', '.join(inside)}. Sort the images into folders by class."
            )
        split_of = {}
    scan.skip_images(files)
    if not split_of:
        return {"train": folder}
    if len(set(split_of.values())) < len(split_of):
        raise InputError(
            f"Expected one folder per split in {folder}. Received: {', '.join(split_of)}. Merge or rename one."
        )
    for name, path in inside.items():
        if name in split_of:
            scan.skip_images(scan.entries(path)[1])
        elif count := len(scan.images(path)):
            scan.skip(path, f"{plural(count, 'image')} outside the folders of splits and classes")
    return {split: inside[name] for name, split in split_of.items()}


def _images_by_class(root: Path, scan: _FolderScan) -> dict[str, list[str]]:
    """Return images by class; folders whose names differ only in Unicode's normal form are one class."""
    classes: dict[str, list[str]] = {}
    for folder in scan.entries(root)[0]:
        classes.setdefault(printable(folder.name), []).extend(scan.images(folder))
    return classes


def _refuse_misfits(
    roots: dict[str, Path], classes: dict[str, dict[str, list[str]]], scan: _FolderScan
) -> None:
    """Raise if a class or a split has no images, or a split has a class that train does not have."""
    expected = f"Expected images ({', '.join(sorted(EXTENSIONS))}) in"
    train = roots["train"]
    names = sorted(classes["train"])
    if empty := [name for name in names if not classes["train"][name]]:
        raise InputError(
            f"{expected} every sub-folder of {train}. Received none in: {', '.join(empty)}. Add some, or remove "
            f"the folder.{describe_skipped(scan.skipped)}"
        )
    for split, by_class in classes.items():
        if strange := [name for name, files in by_class.items() if files and name not in names]:
            raise unknown("class", strange[0], names, hint=f"It is in {roots[split]} but not in {train}.")
        if names and not any(by_class.values()):
            raise InputError(
                f"{expected} {roots[split]}. Received none. Add some, or remove the folder: the split is then "
                f"drawn from train.{describe_skipped(scan.skipped)}"
            )


def _refuse_wrapper(root: Path, scan: _FolderScan) -> None:
    """Raise if the only sub-folder holds the classes, as in many unpacked archives."""
    folders = scan.entries(root)[0]
    if len(folders) == 1 and len(scan.entries(folders[0])[0]) > 1:
        raise InputError(
            f"Expected a sub-folder of images per class in {root}. Received only {folders[0].name!r}, which has "
            f"sub-folders of its own. Did you mean '{folders[0]}'?"
        )


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Controls, line ends, direction marks and surrogates. `str.isprintable` is not used: it differs between versions of
Python and refuses the joiners that Persian and emoji need."""


def describe_skipped(skipped: Sequence[tuple[str, str]]) -> str:
    """Return a sentence with the first skipped files and their reasons, to append to a message."""
    shown = "; ".join(f"{printable(name)} ({reason})" for name, reason in skipped[:5])
    more = f"; and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
    return f" Skipped: {shown}{more}." if shown else ""


def printable(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), with control characters and surrogates escaped."""
    return _CONTROLS.sub(_escape, unicodedata.normalize("NFC", name))


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else repr(char)[1:-1]
