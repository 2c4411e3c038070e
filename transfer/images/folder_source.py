"""Read folders of images into splits, without decoding an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transfer.common.errors import InputError, nearest, unknown
from transfer.common.text import plural
from transfer.images.decoding import EXTENSIONS, failure_reason
from transfer.images.folder_scan import FolderScan, describe_skipped, printable
from transfer.images.split_words import SPLIT_WORDS
from transfer.images.splitting import SourceData, Split

EMBEDDED = "emoji"
"""The data set that comes with the package: a few drawings, unlike photos."""


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
    scan = FolderScan(folder)
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


def _split_roots(folder: Path, scan: FolderScan) -> dict[str, Path]:
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


def _images_by_class(root: Path, scan: FolderScan) -> dict[str, list[str]]:
    """Return images by class; folders whose names differ only in Unicode's normal form are one class."""
    classes: dict[str, list[str]] = {}
    for folder in scan.entries(root)[0]:
        classes.setdefault(printable(folder.name), []).extend(scan.images(folder))
    return classes


def _refuse_misfits(
    roots: dict[str, Path], classes: dict[str, dict[str, list[str]]], scan: FolderScan
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


def _refuse_wrapper(root: Path, scan: FolderScan) -> None:
    """Raise if the only sub-folder holds the classes, as in many unpacked archives."""
    folders = scan.entries(root)[0]
    if len(folders) == 1 and len(scan.entries(folders[0])[0]) > 1:
        raise InputError(
            f"Expected a sub-folder of images per class in {root}. Received only {folders[0].name!r}, which has "
            f"sub-folders of its own. Did you mean '{folders[0]}'?"
        )
