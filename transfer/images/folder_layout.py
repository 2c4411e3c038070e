"""Decide which folders of a data set are splits and which are classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from transfer.common.errors import InputError
from transfer.common.text import plural
from transfer.images.folder_scan import FolderScan, printable
from transfer.images.other_files import other_file
from transfer.images.split_words import SPLIT_WORDS, rest_of, split_of
from transfer.images.tables import quoted_list

MIN_SHARED = 2
"""Number of sub-folders that several folders must have in common before the folders seem to be splits."""

_IMAGES = {"images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "rgb"}
ANNOTATIONS = {
    "labels",
    "label",
    "labeltxt",
    "annotations",
    "annotation",
    "masks",
    "mask",
    "gt",
    "ground_truth",
}
ANNOTATIONS |= {"groundtruth", "segmentation", "segmentations", "segmentationclass", "bboxes", "xmls"}
# Words that add nothing to a name: train_images and test_data differ only in the split.
_PLAIN = {
    "set",
    "sets",
    "data",
    "dataset",
    "images",
    "image",
    "imgs",
    "img",
    "photos",
    "pictures",
    "jpg",
    "jpeg",
}
_PLAIN |= {"png", "split", "sample", "samples", "folder", "dir", "directory", "files", "final", "new", "the"}
_PLAIN |= {"unknown", "unlabeled", "unlabelled", "unclassified", "all", "class", "classes"}
_SPLIT_NAMES = {"val": "validation set", "test": "test set"}
# Words in the names of folders that are parts of one data set: images_part_1, batch2.
_PARTS = {"part", "parts", "batch", "fold", "chunk", "shard", "vol", "volume", "split", "archive", "disk"} | (
    _PLAIN & {"set", "data", "dataset", "images", "image", "imgs", "img", "photos", "pictures", "folder"}
)
_LISTS = (".csv", ".tsv", ".parquet")
_SIDE_FILES = (
    ".md",
    ".html",
    ".htm",
    ".pdf",
    ".doc",
    ".docx",
    ".py",
    ".ipynb",
    ".sh",
    ".exe",
    ".json",
    ".xml",
)
_NUMBER = re.compile(
    r"\d+|(?<![^\W\d_])([ivx]+|[a-z])(?![^\W\d_])"
)  # in lower case; also roman, and single letters

Note = tuple[str, bool]
"""A sentence on how a source was read, and whether it needs action."""


class Layout(NamedTuple):
    """The folders of each class, by split, with the folder of the split for messages."""

    roots: dict[str, Path]
    classes: dict[str, dict[str, list[Path]]]
    notes: list[Note]


def find_layout(top: Path, scan: FolderScan) -> Layout:
    """Return the folders of splits and classes; raise if they are ambiguous."""
    notes: list[Note] = []
    _refuse_annotated(top, scan)
    folder = _inside(top, scan, notes, stop_at_splits=True)
    _refuse_annotated(folder, scan)
    splits = _split_folders(folder, scan)
    scan.skip_images(scan.entries(folder)[1])
    if not splits:
        if by_split := _splits_inside_classes(folder, scan):
            return Layout(dict.fromkeys(by_split, folder), by_split, notes)
        roots = {"train": folder}
    else:
        _skip_others(folder, [*splits.values()], scan)
        roots = {"train": _inside(splits["train"], scan, notes)}
        _refuse_annotated(roots["train"], scan)
        names = {printable(path.name) for path in scan.entries(roots["train"])[0]}
        for split in splits.keys() - {"train"}:
            roots |= _labeled_root(split, splits[split], names, scan, notes)
        for path in {splits[split] for split in roots} | {*roots.values()}:
            scan.skip_images(scan.entries(path)[1])
    classes = {split: _classes_in(root, scan, notes) for split, root in sorted(roots.items())}
    _note_ambiguous_classes(roots["train"], classes["train"], scan, notes)
    return Layout(roots, classes, notes)


def _inside(folder: Path, scan: FolderScan, notes: list[Note], *, stop_at_splits: bool = False) -> Path:
    """Follow sub-folders without siblings, as unpacked archives have them, down to several folders of images."""
    inner = folder
    while len(children := scan.image_folders(inner)) == 1 and not scan.has_images(inner):
        others = (path for path in scan.entries(inner)[0] if path != children[0])
        if any(not any(scan.entries(path)) for path in others):  # an empty folder may be a class
            return folder
        if stop_at_splits and split_of(children[0].name):
            break
        inner = children[0]
    if inner == folder or not (
        len(children) > 1 or (stop_at_splits and any(split_of(child.name) for child in children))
    ):
        return folder
    text = f"Using the folder {printable(scan.relative_name(inner))!r}: the folders above it contain nothing else."
    notes.append((text, False))
    return inner


def _split_folders(folder: Path, scan: FolderScan) -> dict[str, Path]:
    """Return the folder of each split by the folders' names; empty if they are classes."""
    filled = scan.image_folders(folder)
    words = [path for path in scan.entries(folder)[0] if split_of(path.name)]
    named = [path for path in words if path in filled or _is_split_word(path)]
    found: dict[str, list[Path]] = {}
    for topic in {_topic(path.name) for path in named}:
        group = [path for path in named if _topic(path.name) == topic]
        if not topic or len({split_of(path.name) for path in group}) > 1:
            for path in group:
                found.setdefault(split_of(path.name) or "", []).append(path)
    inside = {split: [p for p in paths if scan.entries(p)[0]] for split, paths in found.items()}
    if not inside.get("train"):
        recognized = [path for paths in found.values() for path in paths]
        if recognized and all(path in recognized for path in filled or words):
            raise InputError(
                f"Expected a folder 'train' in {folder}, with a sub-folder per class. Received: "
                f"{', '.join(printable(path.name) for path in sorted(recognized))}. Sort the images into folders by "
                f"class.{list_hint(folder, scan)}"
            )
        return {}
    for paths in inside.values():
        if len(paths) > 1:
            several = ", ".join(printable(path.name) for paths in inside.values() for path in sorted(paths))
            raise InputError(
                f"Expected one folder per split in {folder}. Received: {several}. Merge or rename one."
            )
    # A split that is not sorted into folders by class has no labels; it is checked again later.
    return {split: (inside[split] or paths)[0] for split, paths in found.items()}


def _is_split_word(path: Path) -> bool:
    return path.name.strip().lower() in SPLIT_WORDS


def _topic(name: str) -> tuple[str, ...]:
    """Return the words of a name that say what a folder contains, such as ("seg",) for "seg_train_images"."""
    return tuple(word for word in rest_of(name) if word not in _PLAIN and len(word) > 1)


def _skip_others(folder: Path, splits: Sequence[Path], scan: FolderScan) -> None:
    """Record the images beside the splits; raise if their folders could be splits or classes too."""
    others = [path for path in scan.image_folders(folder) if path not in splits]
    shared = _shared([*splits, *others], scan)
    same = [path for path in others if len(_child_names(path, scan).keys() & shared.keys()) >= MIN_SHARED]
    if same and len(splits) == 1:
        unused = f"Only {printable(splits[0].name)!r} would be used"
        raise _ambiguous(folder, [*splits, *same], shared, "which are partly named like splits", unused)
    for file in (file for path in others for file in scan.images(path)):
        scan.skip(file, "outside the folders of splits and classes")


def _labeled_root(
    split: str, folder: Path, names: Collection[str], scan: FolderScan, notes: list[Note]
) -> dict[str, Path]:
    """Return the folder of a split that holds its classes; empty, with a note, if its images have no classes."""
    inner = folder
    while len(children := scan.image_folders(inner)) == 1 and not scan.has_images(inner):
        child = children[0]
        holds_classes = any(printable(path.name) in names for path in scan.image_folders(child))
        plain = {*rest_of(child.name)} <= _PLAIN and bool(re.search(r"[^\W\d_]", child.name))
        same = child.name.casefold() == folder.name.casefold()
        if printable(child.name) in names or not (holds_classes or plain or same):
            break
        inner = child
    if scan.entries(inner)[0]:
        return {split: inner}
    if not scan.has_images(inner):
        return {}
    count = plural(len(scan.images(inner)), "image")
    place = scan.relative_name(inner)
    text = (
        f"Not used: {count} in {printable(place)!r}, which has no sub-folders of classes. The {_SPLIT_NAMES[split]} is "
        "drawn from labeled images instead. To classify such images, use `python -m transfer.predict`."
    )
    notes.append((text, split != "test"))  # in competitions, the test images have no labels
    return {}


def _splits_inside_classes(folder: Path, scan: FolderScan) -> dict[str, dict[str, list[Path]]]:
    """Return the folders by split and class if each class is divided: cats/train, cats/test, and so on."""
    divided: dict[Path, list[Path]] = {}
    for path in scan.image_folders(folder):
        inner = _inside(path, scan, [], stop_at_splits=True)
        children = [child for child in scan.image_folders(inner) if split_of(child.name)]
        if len({split_of(child.name) for child in children}) > 1 == len({_topic(c.name) for c in children}):
            divided[path] = children
    for children in divided.values():
        if any(map(scan.image_folders, children)):
            raise InputError(
                f"Expected folders of classes or of splits in {folder}. Received splits with classes inside "
                f"{_quoted(divided)}. Pass the folder that contains the splits, such as {str(children[0].parent)!r}."
            )
    by_split: dict[str, dict[str, list[Path]]] = {}
    for path in scan.image_folders(folder) if divided else ():
        splits = {split_of(child.name): child for child in divided.get(path, ())}
        if "train" not in splits or [*splits.values()] != scan.image_folders(path):
            raise InputError(
                f"Expected folders 'train', 'val' and 'test' at the top of {folder}, with a sub-folder per class. "
                f"Received splits inside {_quoted(divided)}. Move the splits to the top: train/"
                f"{printable(next(iter(divided)).name)}, and so on."
            )
        scan.skip_images(scan.entries(path)[1])
        for split, child in splits.items():
            by_split.setdefault(split or "", {}).setdefault(printable(path.name), []).append(child)
    return by_split


def _quoted(folders: Iterable[Path]) -> str:
    return quoted_list([printable(path.name) for path in folders])


def _classes_in(root: Path, scan: FolderScan, notes: list[Note]) -> dict[str, list[Path]]:
    """Return the folders of each class; names that differ only in Unicode's normal form are one class."""
    classes: dict[str, list[Path]] = {}
    folders = scan.entries(root)[0]
    names = {path.name for path in folders}
    for path in folders:
        children = {child.name for child in scan.image_folders(path)}
        if len(children) >= MIN_SHARED and children <= names - {path.name}:
            place = printable(scan.relative_name(path))
            count = plural(len(scan.images(path)), "image")
            text = f"The folder {place!r} ({count}) repeats the folders beside it. It is not used."
            notes.append((text, True))
        else:
            classes.setdefault(printable(path.name), []).extend(_without_masks(path, scan))
    return classes


def _without_masks(folder: Path, scan: FolderScan) -> list[Path]:
    """Return the folders of a class without masks: for cats/images and cats/masks, only cats/images."""
    if not _is_annotated(folder, scan):
        return [folder]
    scan.skip_images(scan.entries(folder)[1])
    images = [path for path in scan.entries(folder)[0] if path.name.lower() in _IMAGES]
    for path in scan.image_folders(folder):
        if path not in images:
            for file in scan.images(path):
                scan.skip(file, "in a folder of masks or labels")
    return images


def _is_annotated(folder: Path, scan: FolderScan) -> bool:
    """Return whether a folder holds images beside their masks, boxes or labels."""
    names = {path.name.lower() for path in scan.entries(folder)[0]}
    filled = {path.name.lower() for path in scan.image_folders(folder)}
    if not (names & _IMAGES and names & ANNOTATIONS and filled <= _IMAGES | ANNOTATIONS):
        return False
    below = [child for path in scan.image_folders(folder) for child in scan.image_folders(path)]
    return all(split_of(path.name) and not scan.image_folders(path) for path in below)


def _refuse_annotated(folder: Path, scan: FolderScan) -> None:
    """Raise if the folder is a data set for detection or segmentation, such as YOLO's images and labels."""
    if _is_annotated(folder, scan):
        raise InputError(
            f"Expected a sub-folder of images per class in {folder}. Received {_quoted(scan.entries(folder)[0])}: a "
            "data set for object detection or segmentation. Sort the images into folders by class, or write a CSV "
            "list with the columns path and label."
        )


def _note_ambiguous_classes(
    root: Path, classes: dict[str, list[Path]], scan: FolderScan, notes: list[Note]
) -> None:
    """Report or raise if the classes could be splits, or their sub-folders the classes."""
    filled = {name: folders for name, folders in classes.items() if any(map(scan.image_folders, folders))}
    folders = [folder for folders in filled.values() for folder in folders]
    names = [*filled]
    shared = _shared(folders, scan)
    numbered = len(classes) > 1 and len({_NUMBER.sub("", name.lower()) for name in filled or classes}) == 1
    words = [name for name in classes if split_of(name) and not _topic(name)]
    if len(shared) >= MIN_SHARED:
        if numbered or any(map(split_of, names)):
            why = "differ only in a number or letter" if numbered else "are partly named like splits"
            raise _ambiguous(
                root, folders, shared, f"which {why}", f"The classes would be {quoted_list(names)}"
            )
        text = (
            f"The classes are the folders {quoted_list(names)}, and they hold the same sub-folders: "
            f"{quoted_list([*shared.values()])}. {_WAYS_OUT}"
        )
        notes.append((text, True))
    elif len(words) > 1 and "train" in map(split_of, words):
        text = (
            f"The classes are the folders {quoted_list([*classes])}. If {quoted_list(words)} are splits, sort their "
            "images into a sub-folder per class."
        )
        notes.append((text, True))
    elif numbered and any(word in _PARTS for name in classes for word in rest_of(name)):
        text = (
            f"The classes are the folders {quoted_list([*classes])}. They seem to be parts of one data set."
        )
        notes.append((text + list_hint(root, scan), True))
    elif 2 * sum(len(_child_names(path, scan)) >= MIN_SHARED for path in folders) >= len(classes) > 0:
        inner = sorted({name for path in folders for name in _child_names(path, scan).values()})
        text = f"The classes are the folders {quoted_list(names)}. Their sub-folders are not: {quoted_list(inner)}."
        counted = len(inner) > 2 and len({_NUMBER.sub("", name.lower()) for name in inner}) == 1
        may_be_groups = counted and not _PARTS.intersection(rest_of(inner[0]))
        notes.append((text + f" {_GROUPS}" * may_be_groups, may_be_groups))


_GROUPS = (
    "If these are groups, such as patients, images of one group may be in several splits: write a CSV list with the "
    "columns path, label and group."
)
_WAYS_OUT = (
    "If they are splits, rename them to train, val and test. If the sub-folders are the classes, merge the folders. "
    "If either are groups, such as cameras or patients, write a CSV list with the columns path, label and group."
)


def _ambiguous(
    folder: Path, folders: Sequence[Path], shared: Mapping[str, str], why: str, result: str
) -> InputError:
    """Return the error for folders that could be splits or classes."""
    return InputError(
        f"Expected a sub-folder of images per class in {folder}. Received {_quoted(folders)}, {why} and hold the same "
        f"sub-folders: {quoted_list([*shared.values()])}. {result}. {_WAYS_OUT}"
    )


def _shared(folders: Sequence[Path], scan: FolderScan) -> dict[str, str]:
    """Return the sub-folders that at least two folders, and half of them, have in common, by folded name."""
    names = [_child_names(path, scan) for path in folders]
    counts = Counter(name for children in names for name in children)
    every = {folded: name for children in names for folded, name in children.items()}
    return {folded: every[folded] for folded in sorted(counts) if counts[folded] >= max(2, len(folders) / 2)}


def _child_names(folder: Path, scan: FolderScan) -> dict[str, str]:
    """Return the sub-folders with images, also below a sole sub-folder, by the name that ignores letter case."""
    inner = _inside(folder, scan, [])
    return {(name := printable(path.name)).casefold(): name for path in scan.image_folders(inner)}


def list_hint(folder: Path, scan: FolderScan) -> str:
    """Return a sentence about files in a folder that may have the labels, to append to a message."""
    below = scan.entries(folder)[0]
    files = [file for path in (folder, *below) for file in scan.entries(path)[1]]
    if any(path.name.lower() in ANNOTATIONS for path in below) or any("coco" in Path(f).name for f in files):
        return " The annotations in it are those of object detection, which this package does not train."
    if lists := [printable(file) for file in files if file.lower().endswith(_LISTS)]:
        return f" If a list has the labels, pass it instead: {', '.join(map(repr, lists[:3]))}."
    if os.sep == "/" and any("\\" in Path(file).name for file in files):
        return " Names of files in it contain backslashes instead of folders: unpack the archive with another program."
    for file in files:
        if (other := other_file(Path(file))) and Path(file).suffix.lower() not in _SIDE_FILES:
            return f" It contains {printable(Path(file).name)!r}, {other[0]}. {other[1]}"
    if scan.has_images(folder) and not scan.image_folders(folder):
        return f" If {printable(folder.name)!r} is a class, pass the folder that contains it."
    return ""
