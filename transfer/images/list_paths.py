"""Find the files that a list of images names: as written, without extension, or from another machine."""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Sequence
from itertools import islice
from unicodedata import normalize

from transfer.images.decoding import EXTENSIONS
from transfer.images.folder_layout import ANNOTATIONS
from transfer.images.split_words import split_of

_MAX_INDEXED = 5_000_000
"""Largest number of files below a folder that are searched for."""


def plain_path(folder: str, written: str) -> str:
    """Return an image's path: as written if that exists, else with slashes or Unicode's other normal form."""
    if (
        written.isascii()
        and "\\" not in written
        and not written.startswith("file:")
        and written == written.strip()
    ):
        return os.path.join(folder, os.path.expanduser(written))
    local = re.sub("^file:(//)?(?=/)", "", written.strip())
    slashed = local.replace("\\", "/")
    forms = [
        written,
        local,
        slashed,
        *(normalize(f, text) for text in (written, slashed) for f in ("NFC", "NFD")),
    ]
    paths = [os.path.join(folder, os.path.expanduser(form)) for form in dict.fromkeys(forms)]
    return next(filter(os.path.exists, paths), paths[0])


class PathFinder:
    """Finds the file of each path; it looks into a folder once, and only if a file is not where the list says."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        # The beginning of the paths on another machine, and the folder here that replaces it.
        self.prefix: tuple[str, ...] = ()
        self.base = folder
        self._files: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, str] = {}
        self._below: dict[str, list[str]] | None = None

    def find(self, written: str, label: str = "", split: str | None = None) -> tuple[str, str]:
        """Return the path of a file, or "" and the problem, which is "" if there is no such file."""
        plain = plain_path(self.folder, written)
        if os.path.isfile(plain):
            return plain, ""
        parts = _parts(written)
        if parts[: len(self.prefix)] == self.prefix and (self.prefix or self.base != self.folder):
            moved = os.path.join(self.base, *parts[len(self.prefix) :])
            if os.path.isfile(moved):
                return moved, ""
        else:
            moved = plain.replace("\\", "/") if len(parts) > 1 else plain
        found = self._in_folder(moved)
        if not found and len(parts) == 1:  # only a name: with a folder, a file elsewhere may be another image
            found = self._anywhere(parts[0])
        if len(found) > 1:
            found = self._narrowed(found, label, split)
        if len(found) > 1 and all(filecmp.cmp(found[0], file) for file in found[1:]):
            found = found[:1]
        if len(found) > 1:
            names = " and ".join(os.path.relpath(file, self.folder) for file in found[:2])
            return "", f"{len(found)} files have this name: {names}"
        return (found[0] if found else ""), ""

    def _narrowed(self, files: list[str], label: str, split: str | None) -> list[str]:
        """Return the files in folders of the class or of the split, and not in folders of masks, if there are any."""
        folders = {file: os.path.relpath(os.path.dirname(file), self.folder).split(os.sep) for file in files}
        for fits in (
            lambda parts: not ANNOTATIONS.intersection(map(str.lower, parts)),
            lambda parts: parts[-1] == label,
            lambda parts: split is not None and split in map(split_of, parts),
        ):
            files = [file for file in files if fits(folders[file])] or files
        return files

    def examples(self) -> list[str]:
        """Return the names of a few images below the list's folder."""
        self._anywhere("")
        files = (file for own in (self._below or {}).values() for file in own)
        return list(dict.fromkeys(os.path.relpath(file, self.folder) for file in islice(files, 6)))[:3]

    def move(self, sample: Sequence[str]) -> bool:
        """Set the prefix of another machine, if the rest of the sample's paths exist here; return whether it did."""
        paths = [*map(_parts, sample)]
        # The name alone identifies a file only if all files are in one folder.
        least = 1 if len({parts[:-1] for parts in paths}) == 1 else 2
        for base in dict.fromkeys((self.folder, os.path.dirname(os.path.abspath(self.folder)), os.getcwd())):
            for parts in paths[:50]:
                for start in range(len(parts) - least + 1):
                    rest = parts[start:]
                    if _is_local(rest) and self._is_there(base, rest):
                        self.base, self.prefix = base, parts[:start]
                        return True
        return False

    def _is_there(self, base: str, parts: Sequence[str]) -> bool:
        path = os.path.join(base, *parts)
        return os.path.isfile(path) or bool(self._in_folder(path))

    def _in_folder(self, path: str) -> list[str]:
        """Return the files of a folder with a name, without regard to letter case, or with an extension added."""
        folder, name = os.path.split(path)
        folder = self._in_any_case(folder)
        if folder not in self._files:
            self._files[folder] = {}
            try:
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_file())
            except OSError:
                names = []
            _add(self._files[folder], folder, names)
        return self._files[folder].get(_form(name), [])

    def _in_any_case(self, folder: str) -> str:
        """Return a folder that exists, without regard to letter case; the folder as it is if there is none."""
        if folder not in self._folders:
            self._folders[folder] = folder
            parent, name = os.path.split(folder)
            if name and folder != self.folder and not os.path.isdir(folder):
                parent = self._in_any_case(parent)
                names = os.listdir(parent) if os.path.isdir(parent) else []
                same = [one for one in names if _form(one) == _form(name)]
                if len(same) == 1:
                    self._folders[folder] = os.path.join(parent, same[0])
        return self._folders[folder]

    def _anywhere(self, name: str) -> list[str]:
        """Return the files below the list's folder with a name, at any depth."""
        if self._below is None:
            self._below = {}
            count = 0
            for folder, folders, names in os.walk(self.folder):
                folders[:] = sorted(one for one in folders if not one.startswith((".", "__MACOSX")))
                _add(self._below, folder, sorted(names))
                count += len(names)
                if count > _MAX_INDEXED:
                    break
        return self._below.get(_form(name), [])


def _add(index: dict[str, list[str]], folder: str, names: Sequence[str]) -> None:
    """Add files to an index, under their names with and without the extension of an image."""
    for name in names:
        stem, extension = os.path.splitext(_form(name))
        if extension in EXTENSIONS and not name.startswith("."):
            for key in (_form(name), stem):
                index.setdefault(key, []).append(os.path.join(folder, name))


def _form(name: str) -> str:
    return normalize("NFC", name).casefold()


def _parts(written: str) -> tuple[str, ...]:
    """Return the folders and the name of a path, written on any system; a drive such as C: is one, too."""
    written = re.sub("^file:/*", "/", written.strip()).replace("\\", "/")
    return tuple(
        part
        for part in ("/" if written.startswith("/") else "", *written.split("/"))
        if part not in ("", ".")
    )


def _is_local(parts: Sequence[str]) -> bool:
    return not {"..", "/", "~"} & set(parts) and not re.fullmatch("[A-Za-z]:", parts[0])
