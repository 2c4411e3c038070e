"""List folders of images, and record the files that cannot be used."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from transfer.common.errors import InputError
from transfer.images.decoding import failure_reason
from transfer.images.formats import EXTENSIONS, HEAD_BYTES, is_image

# Files of operating systems and archives that are not hidden, in lower case.
_SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
_SYSTEM |= {"system volume information", "dicomdir"}

# Image formats that are reported as skipped; other unknown files are ignored.
_OTHER_IMAGES = {".jxl", ".jls", ".svg", ".ico", ".psd", ".tga", ".dds", ".exr", ".hdr", ".eps"}
_OTHER_IMAGES |= {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".raw"}


class FolderScan:
    """Lists folders and records the files that cannot be used."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._prefix_length = len(_prefix(top))
        self.skipped: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self._reported: set[str] = set()
        self._entries: dict[Path, tuple[list[Path], list[str]]] = {}
        # Links to folders above the top are not followed: they could lead to the whole disk.
        self._above = set()
        for path in top.resolve().parents:
            with contextlib.suppress(OSError):
                self._above.add(_identity(path))

    def relative_name(self, path: str | Path) -> str:
        """Return a path relative to the top, with slashes."""
        return str(path)[self._prefix_length :].replace(os.sep, "/") or "."

    def skip(self, path: str | Path, reason: str) -> None:
        """Record a file or folder that cannot be used, once."""
        if (name := self.relative_name(path)) not in self._reported:  # a file may be checked more than once
            self._reported.add(name)
            self.skipped.append((name, reason))

    def entries(self, folder: Path) -> tuple[list[Path], list[str]]:
        """Return the sub-folders and the files of a folder, each sorted by name; each folder is listed once."""
        if folder not in self._entries:
            self._entries[folder] = self._listed(folder)
        return self._entries[folder]

    def _listed(self, folder: Path) -> tuple[list[Path], list[str]]:
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
            elif stat.S_ISDIR(mode) and _is_run(path):
                self.skip(path, "the folder of a run, whose figures are not data")
            elif stat.S_ISDIR(mode):
                folders.append(folder / entry.name)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                self.skip(path, "not a file")
        return folders, files

    def image_folders(self, folder: Path) -> list[Path]:
        """Return the sub-folders with an image at any depth, also of a format that cannot be read."""
        return [path for path in self.entries(folder)[0] if any(map(_seems_image, self._files(path)))]

    def has_images(self, folder: Path) -> bool:
        """Return whether images lie directly in a folder."""
        return any(map(_seems_image, self.entries(folder)[1]))

    def images(self, folder: Path) -> list[str]:
        """Return the images at any depth of a folder, sorted."""
        images = filter(self.accepts, self._files(folder))
        return sorted(images, key=lambda file: file.split(os.sep))  # folder by folder

    def _files(self, folder: Path) -> Iterator[str]:
        """Yield the files at any depth of a folder; follow links, but visit no folder twice."""
        visited, pending = set(), [folder]
        while pending:
            current = pending.pop()
            if (identity := _identity(current)) not in visited:
                visited.add(identity)
                folders, files = self.entries(current)
                pending += reversed(folders)
                yield from files

    def accepts(self, file: str) -> bool:
        """Return whether a file seems to be a readable image; record it as skipped or ignored if not."""
        extension = _extension(file)
        try:
            if extension in EXTENSIONS or _starts_as_image(file):
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


def _extension(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _starts_as_image(file: str) -> bool:
    with open(file, "rb") as stream:
        return is_image(stream.read(HEAD_BYTES))


def _seems_image(file: str) -> bool:
    """Return whether a file is an image by its name or its first bytes, readable or not."""
    if _extension(file) in EXTENSIONS | _OTHER_IMAGES:
        return True
    with contextlib.suppress(OSError):
        return _starts_as_image(file)
    return False


def _is_run(folder: str) -> bool:
    """Return whether a folder is a run of `transfer train`, or the folder `runs` with some."""
    if os.path.basename(folder) == "runs" and any(Path(folder).glob("*/metrics.json")):
        return True
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("config.yaml", "metrics.json"))


def _prefix(folder: Path) -> str:
    """Return the prefix that `folder / name` puts before the name."""
    return os.path.join("" if folder == Path() else str(folder), "")


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Controls, line ends, direction marks and surrogates. `str.isprintable` is not used: it differs between versions of
Python and refuses the joiners that Persian and emoji need."""


def describe_skipped(skipped: Sequence[tuple[str, str]]) -> str:
    """Return a sentence with the most frequent reasons and a file for each, to append to a message."""
    groups = names_by_reason(skipped)
    shown = [
        f"{printable(names[0])}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''} ({reason})"
        for reason, names in groups.items()
    ]
    hidden = sum(len(names) for names in [*groups.values()][5:])
    more = f"; and {hidden:,} more" if hidden else ""
    return f" Skipped: {'; '.join(shown[:5])}{more}." if shown else ""


def names_by_reason(skipped: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the names of skipped files by reason, the most frequent reason first."""
    groups: dict[str, list[str]] = {}
    for name, reason in skipped:
        groups.setdefault(reason, []).append(name)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def printable(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), with control characters and surrogates escaped."""
    return _CONTROLS.sub(_escape, unicodedata.normalize("NFC", name))


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else repr(char)[1:-1]
