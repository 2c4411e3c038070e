"""Where pictures come from: folders and arrays, read into splits without opening a file yet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer.errors import InputError, nearest, unknown
from transfer.pictures import EXTENSIONS
from transfer.splitting import Split

log = logging.getLogger(__name__)

EMBEDDED = "emoji"
"""The data set that comes with the package: drawings, few, and unlike photos."""

_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


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


def find_folder(text: str) -> Path:
    """Find the folder that a user named.

    Args:
        text: its path, or `"emoji"` for the pictures that come along, unless there is such a folder here.

    Returns:
        The folder.

    Raises:
        InputError: there is none; the nearest names beside it are listed.

    Example:
        >>> find_folder("emoji").name
        'emoji'
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if text == EMBEDDED:
        return embedded_folder()
    wanted = "a folder with a sub-folder of pictures per class, tfds:NAME, or 'emoji'"
    if folder.exists():
        raise InputError(f"Expected {wanted}. Received a file: {text}. Name the folder that it is in.")
    beside = {p.name: str(p) for p in folder.parent.iterdir() if p.is_dir()} if folder.parent.is_dir() else {}
    near = [repr(beside.get(name, name)) for name in nearest(folder.name, [EMBEDDED, *beside])]
    raise InputError(
        f"Expected {wanted}. Received: {text!r}, which does not exist. "
        + (f"Did you mean {', '.join(near)}?" if near else "Check the path.")
    )


def read_folder(folder: Path) -> tuple[dict[str, Split], list[str]]:
    """Collect the paths of pictures and their labels; nothing is opened yet.

    Args:
        folder: with a sub-folder of pictures per class, with or without folders for splits above them.

    Returns:
        The pictures per split that there is, `"train"` at least; and the class names, sorted.

    Raises:
        InputError: a class or a split without pictures, a class that is not in train, or two folders for
            one split.

    Example:
        >>> parts, names = read_folder(embedded_folder())
        >>> list(parts), names[:2]
        (['train'], ['building', 'clothing'])
    """
    roots = _split_roots(folder)
    found = {split: {p.name: _picture_files(p) for p in _subfolders(root)} for split, root in roots.items()}
    names = sorted(found["train"])
    _refuse_misfits(roots, found)
    label_of = {name: label for label, name in enumerate(names)}
    parts = {}
    for split, classes in found.items():
        files = [(str(f), label_of[c]) for c, fs in classes.items() for f in fs]
        paths = [f for f, _ in files]
        labels = np.array([y for _, y in files], dtype="int64")
        parts[split] = Split(paths, labels, [Path(f).relative_to(folder).as_posix() for f in paths])
    return parts, names


def _split_roots(folder: Path) -> dict[str, Path]:
    """Find the folder of each split; a folder that holds pictures itself is a class, whatever its name."""
    inside = {p.name: p for p in _subfolders(folder)}
    called = {
        name: _SPLIT_FOLDERS[name.lower()]
        for name, path in inside.items()
        if name.lower() in _SPLIT_FOLDERS and _subfolders(path)
    }
    if "train" not in called.values():
        if inside and all(name.lower() in _SPLIT_FOLDERS for name in inside):
            raise InputError(
                f"Expected a folder 'train' in {folder}, with a sub-folder per class. Received: "
                f"{', '.join(inside)}. Sort the pictures into folders by class."
            )
        return {"train": folder}
    if len(set(called.values())) < len(called):
        raise InputError(
            f"Expected one folder per split in {folder}. Received: {', '.join(called)}. Merge or rename one."
        )
    ignored = [name for name in inside if name not in called]
    if ignored:
        log.warning("Ignored in %s: %s. Not a split with sub-folders.", folder, ", ".join(ignored))
    return {split: inside[name] for name, split in called.items()}


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


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_junk(p.name))


def _picture_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in EXTENSIONS
        and not any(_is_junk(part) for part in p.relative_to(folder).parts)
        and p.is_file()
    )


def _is_junk(name: str) -> bool:
    """Hidden, or what macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"


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
