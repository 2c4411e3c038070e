"""Where pictures come from: folders, read into splits without decoding a picture yet."""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer.errors import InputError, nearest, unknown
from transfer.pictures import EXTENSIONS, is_picture, reason
from transfer.splitting import Found, Split
from transfer.tables import SPLIT_WORDS

log = logging.getLogger(__name__)

EMBEDDED = "emoji"
"""The data set that comes with the package: drawings, few, and unlike photos."""

_SYSTEM = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
"""What operating systems and their archives leave beside files, beyond hidden ones; in small letters."""

_OTHER_PICTURES = frozenset(
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
"""Pictures that are not read; whoever has some among the others wants to know."""


def embedded_folder() -> Path:
    """Find the pictures that come with the package, installed or in a clone.

    Returns:
        The folder of the emoji, with a sub-folder per class.

    Raises:
        InputError: the package was installed without them.

    Example:
        >>> embedded_folder().name
        'emoji'
    """
    package = Path(__file__).parent
    for folder in (package / "data" / EMBEDDED, package.parent / "data" / EMBEDDED):
        if folder.is_dir():
            return folder
    raise InputError("The emoji pictures are missing from this installation. Install the package again.")


def find_source(text: str) -> Path:
    """Find the folder or the list of pictures that a user named.

    Args:
        text: its path, or `"emoji"` for the pictures that come along, unless there is such a folder here.

    Returns:
        The folder or the file.

    Raises:
        InputError: there is none, and the nearest names beside it are listed; or it is a picture.

    Example:
        >>> find_source("emoji").name
        'emoji'
    """
    place = Path(text).expanduser()
    wanted = "a folder with a sub-folder of pictures per class, a CSV or Parquet list, tfds:NAME, or 'emoji'"
    try:
        if place.is_file() and place.suffix.lower() in EXTENSIONS:
            raise InputError(f"Expected {wanted}. Received a picture: {text}. Name the folder that it is in.")
        if place.exists():
            return place
        if text == EMBEDDED:
            return embedded_folder()
        beside = {path.name: str(path) for path in place.parent.iterdir()} if place.parent.is_dir() else {}
    except (OSError, ValueError) as error:  # a NUL byte, a name too long, no permission
        raise InputError(f"Expected {wanted}. Received: {text!r}: {reason(error)}.") from None
    near = [repr(beside.get(name, name)) for name in nearest(place.name, [EMBEDDED, *beside])]
    raise InputError(
        f"Expected {wanted}. Received: {text!r}, which does not exist. "
        + (f"Did you mean {', '.join(near)}?" if near else "Check the path.")
    )


def read_folder(folder: Path) -> Found:
    """Collect the paths of pictures and their labels; of files with strange names, the first bytes are read.

    Links are followed, each folder once. Hidden files and those of operating systems are passed over.

    Args:
        folder: with a sub-folder of pictures per class, with or without folders for splits above them.

    Returns:
        The pictures per split that there is, `"train"` at least; the class names, sorted, in Unicode's composed form
        (NFC), since some systems store the same name decomposed; what is skipped and what is ignored.

    Raises:
        InputError: the folder cannot be read, a class or a split has no pictures, a class is not in train, or
            two folders are for one split.

    Example:
        >>> found = read_folder(embedded_folder())
        >>> list(found.parts), found.class_names[:2]
        (['train'], ['building', 'clothing'])
    """
    walk = _Walk(folder)
    roots = _split_roots(folder, walk)
    classes = {split: _classes(root, walk) for split, root in roots.items()}
    names = sorted(classes["train"])
    _refuse_misfits(roots, classes)
    _refuse_wrapper(roots["train"], walk)
    label_of = {name: label for label, name in enumerate(names)}
    parts = {}
    for split, of_class in classes.items():
        files = [(file, label_of[c]) for c, files in of_class.items() for file in files]
        paths = [str(file) for file, _ in files]
        labels = np.array([label for _, label in files], "int64")
        parts[split] = Split(paths, labels, [file.relative_to(folder).as_posix() for file, _ in files])
    return Found(parts, names, walk.skipped, walk.ignored)


class _Walk:
    """Lists folders, and notes what lies in them that cannot be used."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.skipped: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self._noted: set[str] = set()

    def name(self, path: Path) -> str:
        return path.relative_to(self.top).as_posix()

    def skip(self, path: Path, why: str) -> None:
        if (name := self.name(path)) not in self._noted:  # the top is listed more than once
            self._noted.add(name)
            self.skipped.append((name, why))

    def listed(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Give the sub-folders and the files, each sorted by name."""
        folders, files = [], []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == self.top:
                raise InputError(f"Cannot read the folder {folder}: {reason(error)}.") from None
            self.skip(folder, reason(error))
            return [], []
        above = {_identity(path) for path in (folder, *folder.parents) if path.is_relative_to(self.top)}
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                continue
            try:
                mode = entry.stat().st_mode
                circular = entry.is_symlink() and _identity(path) in above
            except OSError as error:
                self.skip(path, "a link that leads nowhere" if entry.is_symlink() else reason(error))
                continue
            if circular:
                self.skip(path, "a link to a folder that it lies in")
            elif stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                self.skip(path, "not a file")
        return folders, files

    def pictures(self, folder: Path) -> list[Path]:
        """Give the pictures in a folder, however deep, sorted; links may lead in circles."""
        found, seen, waiting = [], set(), [folder]
        while waiting:
            here = waiting.pop()
            if (identity := _identity(here)) not in seen:
                seen.add(identity)
                folders, files = self.listed(here)
                waiting += reversed(folders)
                found += [file for file in files if self._is_picture(file)]
        return sorted(found)

    def _is_picture(self, file: Path) -> bool:
        kind = file.suffix.lower()
        if kind in EXTENSIONS:
            return True
        try:
            with file.open("rb") as stream:
                if is_picture(stream.read(16)):
                    return True
        except OSError as error:
            self.skip(file, reason(error))
            return False
        if kind in _OTHER_PICTURES:
            self.skip(file, f"{kind[1:].upper()} is not read: save it as JPEG or PNG")
        else:
            self.ignored.append(self.name(file))
        return False


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _split_roots(folder: Path, walk: _Walk) -> dict[str, Path]:
    """Find the folder of each split; a folder that holds pictures itself is a class, whatever its name."""
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
                f"{', '.join(inside)}. Sort the pictures into folders by class."
            )
        _skip_loose(files, walk)
        return {"train": folder}
    if len(set(called.values())) < len(called):
        raise InputError(
            f"Expected one folder per split in {folder}. Received: {', '.join(called)}. Merge or rename one."
        )
    ignored = [name for name in inside if name not in called]
    if ignored:
        log.warning("Ignored in %s: %s. Not a split with sub-folders.", folder, ", ".join(ignored))
    for name in called:
        _skip_loose(walk.listed(inside[name])[1], walk)
    return {split: inside[name] for name, split in called.items()}


def _skip_loose(files: Sequence[Path], walk: _Walk) -> None:
    for file in files:
        if file.suffix.lower() in EXTENSIONS:
            walk.skip(file, "lies in no folder of a class")


def _classes(root: Path, walk: _Walk) -> dict[str, list[Path]]:
    """Give the pictures by class; two folders that are called the same but for Unicode's form are one class."""
    found: dict[str, list[Path]] = {}
    for folder in walk.listed(root)[0]:
        found.setdefault(printable(folder.name), []).extend(walk.pictures(folder))
    return found


def _refuse_misfits(roots: dict[str, Path], found: dict[str, dict[str, list[Path]]]) -> None:
    names = sorted(found["train"])
    kinds = ", ".join(sorted(EXTENSIONS))
    empty = [name for name in names if not found["train"][name]]
    if empty:
        raise InputError(
            f"Expected pictures ({kinds}) in every sub-folder of {roots['train']}. Received none in: "
            f"{', '.join(empty)}. Add some, or take the folder away."
        )
    for split, classes in found.items():
        strange = [name for name, files in classes.items() if files and name not in names]
        if strange:
            raise unknown(
                "class", strange[0], names, hint=f"It is in {roots[split]} but not in {roots['train']}."
            )
        if names and not any(classes.values()):
            raise InputError(
                f"Expected pictures ({kinds}) in {roots[split]}. Received none. Add some, or take the folder "
                "away, and they are drawn from train."
            )


def _refuse_wrapper(root: Path, walk: _Walk) -> None:
    """Archives often unpack to a folder in a folder: then the inner one is meant."""
    folders = walk.listed(root)[0]
    if len(folders) == 1 and len(walk.listed(folders[0])[0]) > 1:
        raise InputError(
            f"Expected a sub-folder of pictures per class in {root}. Received one alone, {folders[0].name!r}, with "
            f"sub-folders of its own. Did you mean '{folders[0]}'?"
        )


def printable(name: str) -> str:
    """Spell a name so that it is the same on every system and can be written anywhere.

    Args:
        name: of a file or a class; may hold bytes that are not UTF-8, as Python reads them (surrogates).

    Returns:
        The name in Unicode's composed form (NFC); what cannot be printed is written as an escape.

    Example:
        >>> printable("Cafe\u0301"), printable("caf\udce9\n")
        ('Café', 'caf\\\\xe9\\\\n')
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = unicodedata.normalize("NFC", text)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def read_arrays(source: Any, class_names: Sequence[str] | None = None) -> tuple[dict[str, Split], list[str]]:
    """Check arrays of pictures and labels.

    Args:
        source: `(images, labels)` or `((x_train, y_train), (x_test, y_test))`.
        class_names: one per label; otherwise numbers are the names.

    Returns:
        The pictures per split that there is, and the class names.

    Raises:
        InputError: shapes, types or values are not those of pictures and labels; each with its remedy.

    Example:
        >>> parts, names = read_arrays((np.full((4, 8, 8), 99), [0, 1, 0, 1]))
        >>> len(parts["train"]), names
        (4, ['0', '1'])
    """
    try:
        first, second = source
        # ((x, y), (x, y)) holds arrays where (images, labels) holds numbers.
        nested = isinstance(second, (tuple, list)) and len(second) == 2 and np.ndim(second[0]) > 0
        pairs = {"train": first, "test": second} if nested else {"train": source}
        arrays = {name: (np.asarray(x), np.asarray(y)) for name, (x, y) in pairs.items()}
    except (TypeError, ValueError):
        raise InputError(
            "Expected a folder, 'tfds:NAME', (images, labels) or ((x_train, y_train), (x_test, y_test)). "
            f"Received: {type(source).__name__}. Pictures of different sizes fit into no array: use a folder."
        ) from None
    parts = {name: _array_split(x, y) for name, (x, y) in arrays.items()}
    highest = max(int(part.labels.max()) for part in parts.values())
    if class_names is not None:
        names = [str(n) for n in class_names]
    else:  # no more than there are pictures, since a stray label may be huge
        names = [str(n) for n in range(min(highest + 1, len(parts["train"])))]
    if len(set(names)) < len(names):
        raise InputError(f"Expected a different name for each class. Received: {', '.join(names)}.")
    if highest >= len(names):
        raise InputError(
            f"Expected labels from 0 to {len(names) - 1}, each with pictures to train on. Received a label "
            f"{highest}. Number the classes from 0 on, without gaps."
        )
    return parts, names


def _array_split(x: np.ndarray, y: np.ndarray) -> Split:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # as keras.datasets.cifar10 gives them
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)) or not x.size:
        raise InputError(
            "Expected images of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), at least one. "
            f"Received: {x.shape}."
        )
    if y.ndim != 1 or len(y) != len(x):
        raise InputError(
            f"Expected one label per image, shape ({len(x)},). Received: {y.shape}. Turn one-hot labels into "
            "numbers by argmax(axis=1)."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        least = "" if not np.issubdtype(y.dtype, np.number) else f", the least of them {y.min()}"
        raise InputError(
            f"Expected labels as whole numbers (int64) from 0. Received: {y.dtype}{least}. Number the classes "
            "from 0 on."
        )
    if not (np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating) or x.dtype == bool):
        raise InputError(f"Expected pixels as numbers from 0 to 255. Received: {x.dtype}.")
    low, high = x.min(), x.max()
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise InputError(
            f"Expected pixels from 0 to 255, all finite. Received: {low} to {high}. Rescale them."
        )
    if high <= 1:
        raise InputError(
            f"Expected pixels from 0 to 255. Received values up to {high} at most: multiply by 255 first."
        )
    return Split(x, y.astype("int64"), [str(i) for i in range(len(x))])
