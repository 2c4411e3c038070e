"""Read folders of images into splits, without decoding an image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from transfer.common.errors import InputError, nearest, unknown
from transfer.images.data_config import IN_MEMORY
from transfer.images.decoding import failure_reason
from transfer.images.folder_layout import find_layout, list_hint
from transfer.images.folder_scan import FolderScan, describe_skipped
from transfer.images.formats import EXTENSIONS, READABLE
from transfer.images.other_files import other_file
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
    if text == IN_MEMORY:
        raise InputError(
            "The run was trained on arrays in memory, and no file holds its images. Pass labeled images: --data DIR, "
            "or run.data((images, labels)) in Python."
        )
    place = Path(text).expanduser()
    wanted = "a folder with a sub-folder of images per class, a CSV or Parquet list, tfds:NAME, or 'emoji'"
    try:
        if place.is_file() and place.suffix.lower() in EXTENSIONS:
            raise InputError(
                f"Expected {wanted}. Received an image: {text}. Pass the folder that contains it."
            )
        if place.is_file() and (other := other_file(place)):
            raise InputError(f"Expected {wanted}. Received {text!r}, {other[0]}. {other[1]}")
        if place.exists():
            return place
        if text == EMBEDDED:
            return embedded_folder()
        if re.match(r"[A-Za-z][\w+.-]+:/", text):
            raise InputError(f"Expected {wanted}. Received a URL: {text!r}. Download the images first.")
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
    roots, folders, notes = find_layout(folder, scan)
    classes = {
        split: {
            name: [file for path in paths for file in scan.images(path)] for name, paths in by_class.items()
        }
        for split, by_class in folders.items()
    }
    names = sorted(classes["train"])
    _refuse_misfits(roots, classes, scan)
    label_of = {name: label for label, name in enumerate(names)}
    parts = {}
    for split, by_class in classes.items():
        files = [file for paths in by_class.values() for file in paths]
        labels = np.array([label_of[name] for name, paths in by_class.items() for _ in paths], "int64")
        parts[split] = Split(files, labels, [scan.relative_name(file) for file in files])
    if len(names) < 2 and (hint := list_hint(folder, scan)):
        notes = [*notes, (hint.strip(), True)]
    return SourceData(parts, names, scan.skipped, scan.ignored, notes)


def _refuse_misfits(
    roots: dict[str, Path], classes: dict[str, dict[str, list[str]]], scan: FolderScan
) -> None:
    """Raise if a class or a split has no images, or a split has a class that train does not have."""
    expected = f"Expected images ({READABLE}) in"
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
