"""Data in, one way: a folder, a list of files, a tensorflow_datasets name or arrays become `ImageData`.

This room alone checks and splits; it knows no model. `python -m transfer.datasets DIR` checks a folder by itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.images.array_source import read_arrays
from transfer.images.checking import CheckedImage, check_images, make_report
from transfer.images.data_config import DataConfig
from transfer.images.data_report import DataReport
from transfer.images.decoding import RESIZES, as_size
from transfer.images.duplicates import find_duplicates
from transfer.images.manifest import read_manifest
from transfer.images.sources import embedded_folder as embedded_folder
from transfer.images.sources import find_source, printable, read_folder, skipped_in_words
from transfer.images.split_file import apply_split, read_split
from transfer.images.splitting import SourceData, Split, complete_splits, few_per_class

log = logging.getLogger(__name__)

THUMBNAIL = (128, 128)
"""Height and width of the images on pages, in pixels."""


@dataclass(frozen=True)
class ImageData:
    """Labelled images in three disjoint splits.

    Attributes:
        name: a short name, for titles and folders.
        class_names: in the order of the labels; it travels with every saved model.
        train: what is learnt from.
        val: what decides when to stop.
        test: what the accuracy is measured on, and nothing else.
        report: what the check found.
        image_size: height and width asked for, or None to take the model's.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    report: DataReport
    image_size: tuple[int, int] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Images that could not be used, by name, with the reason."""
        return self.report.skipped

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def thumbnail(self, name: str) -> np.ndarray | None:
        """Give one image by its name, small: uint8 of shape (128, 128, 3); None where no split has it."""
        for part in self.splits.values():
            if name in part.names:
                return part.image(list(part.names).index(name), THUMBNAIL)
        return None


def load_data(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    resize: str = DataConfig.resize,
    seed: int = DataConfig.seed,
    val: float | int = DataConfig.val,
    test: float | int = DataConfig.test,
    few_shot: int | None = None,
    near_duplicates: bool = True,
    split_file: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
    data_dir: str | Path | None = None,
    tfds_split: str | Mapping[str, str] | None = None,
    download: bool = True,
) -> ImageData:
    """Load labelled images, check every one of them, and split them into train, val and test.

    The split is stratified by class and depends on the seed and the images' names alone, not on the
    file system's order. Images that show the same, byte for byte or saved in another form, always stay on the
    same side, and so do those of one group. Splits that the source has already are kept, with a warning where they
    share images; where it has `val` but no `test`, its `val` becomes the test set and a new validation set is drawn
    from `train`, so that stopping and measuring never use the same images.

    A class keeps at least one image to train on: of two different images the other is for the test,
    and a third for validation. An image that is in several classes is only trained on.

    Args:
        source: one of: a folder with a sub-folder of images per class, with or without `train`
            (`training`), `val` (`valid`, `validation`) and `test` (`testing`) above them, in any letter
            case; `"emoji"`, the data set that comes along; a manifest, CSV or Parquet (see
            `manifest.read_manifest`); `"tfds:NAME[/CONFIG][:VERSION]"` for a tensorflow_datasets name; arrays
            `(images, labels)` or, as `keras.datasets` gives them, `((x_train, y_train), (x_test, y_test))`, images of
            shape (N, H, W[, C]), 0 to 255; a `tf.data.Dataset` of (image, label), or several (see
            `array_source.read_arrays`).
        image_size: pixels, one number or (height, width), to bring the images to; None takes the model's.
        resize: how they get another shape: `"stretch"`, `"crop"` the middle, or `"pad"` with black.
        seed: of the split.
        val: images for validation, where the source has no such split: a share, below 1, or a count.
        test: the same for the test set.
        few_shot: so many different images of each class to train on, for experiments; None takes all.
        near_duplicates: count images as the same that look alike, as one does that was saved again in another form;
            otherwise only copies byte for byte. Turn it off where all images look alike by nature.
        split_file: a split that an earlier run wrote (`split.csv`), to be used again.
        class_names: for arrays: one name per label; otherwise numbers are the names.
        strict: stop at images that cannot be used instead of skipping and counting them.
        data_dir: where tensorflow_datasets keeps prepared data.
        tfds_split: for tensorflow_datasets, in its own syntax: `"train[:80%]"`, of which the splits are drawn, or
            `"train=train[:80%],val=train[80%:],test=test"`.
        download: let tensorflow_datasets download what is not prepared.

    Returns:
        The data, with the report of the check; images in files are decoded when they are used.

    Raises:
        InputError: there is no such source, or it has fewer than two classes, unusable images under
            `strict`, labels that do not fit, or sizes of splits that leave nothing to train on.

    Example:
        >>> data = load_data("emoji", seed=0)
        >>> data.num_classes
        12
    """
    sizes = _sizes(val, test)
    if seed < 0:
        raise InputError(f"Expected a seed of 0 or more. Received: {seed}. Any other number will do.")
    if few_shot is not None and few_shot < 1:
        raise InputError(f"Expected few_shot of 1 image per class or more. Received: {few_shot}.")
    if resize not in RESIZES:
        raise unknown("resize", resize, RESIZES)
    size = as_size(image_size)
    rows = read_split(Path(split_file)) if split_file is not None else None  # before anything slow
    name, found = _read(source, class_names, data_dir, tfds_split, download)
    found, checked = _check(_tidy(found, resize), strict=strict)
    same = _find_same(checked, near_duplicates=near_duplicates)
    if rows is not None:
        splits = apply_split(
            rows, found.parts, found.class_names, skipped_names=[skipped for skipped, _ in found.skipped]
        )
    else:
        _refuse_too_few(name, found)
        splits = complete_splits(found.parts, same, found.class_names, seed=seed, **sizes)
    if few_shot is not None:
        numbers = {
            image: number
            for part, of_part in same.items()
            for image, number in zip(found.parts[part].names, of_part.tolist(), strict=True)
        }
        of_train = np.array([numbers[image] for image in splits["train"].names], "int64")
        splits["train"] = few_per_class(splits["train"], of_train, few_shot, seed=seed)
    report = make_report(name, found, checked=checked, same=same, splits=splits)
    for finding in report.findings:
        log.log(logging.WARNING if finding.serious else logging.INFO, "%s", finding.to_text())
    return ImageData(name, tuple(found.class_names), **splits, report=report, image_size=size)


def load_test(
    source: Any,
    class_names: Sequence[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    resize: str = DataConfig.resize,
    strict: bool = False,
    data_dir: str | Path | None = None,
    tfds_split: str | Mapping[str, str] | None = None,
    download: bool = True,
) -> ImageData:
    """Load labelled images to measure a model on, all of them, with the labels that the model knows."""
    given = class_names if not isinstance(source, str | Path) else None
    name, found = _read(source, given, data_dir, tfds_split, download)
    chosen = next(split for split in ("test", "val", "train") if split in found.parts)
    if len(found.parts) > 1:
        log.info("Of %s, its images for %s are taken.", name, chosen)
    known = {label: position for position, label in enumerate(class_names)}
    for label in found.class_names:
        if label not in known:
            raise unknown(
                "class", label, class_names, hint=f"{name!r} has it, and the model does not know it."
            )
    part = found.parts[chosen]
    labels = np.array([known[label] for label in found.class_names], "int64")[part.labels]
    found = replace(found, parts={"test": replace(part, labels=labels)}, class_names=[*class_names])
    found, checked = _check(_tidy(found, resize), strict=strict)
    if not len(found.parts["test"]):
        raise InputError(f"Expected images in {name!r}. Received none.{skipped_in_words(found.skipped)}")
    none = found.parts["test"].take([])
    splits = {"train": none, "val": none, "test": found.parts["test"]}
    same = _find_same(checked, near_duplicates=False)
    report = make_report(name, found, checked=checked, same=same, splits=splits)
    return ImageData(name, tuple(class_names), **splits, report=report, image_size=as_size(image_size))


def _sizes(val: float | int, test: float | int) -> dict[str, float | int]:
    """Check the sizes of splits: whole numbers are counts, others shares."""
    sizes = {"val": val, "test": test}
    counts = {name: size for name, size in sizes.items() if isinstance(size, int | np.integer)}
    shares = {name: float(size) for name, size in sizes.items() if name not in counts}
    if not all(size >= 0 for size in sizes.values()) or not sum(shares.values()) < 1:
        raise InputError(
            "Expected a share of the images, 0 or more and together below 1, or a count of them, a whole number. "
            f"Received: val={val}, test={test}. Leave some images to train on."
        )
    return {**shares, **counts}


def _read(
    source: Any,
    class_names: Sequence[str] | None,
    data_dir: str | Path | None,
    tfds_split: str | Mapping[str, str] | None,
    download: bool,
) -> tuple[str, SourceData]:
    """Find out what kind of source it is; give its name and what it holds."""
    text = str(source) if isinstance(source, (str, Path)) else None
    if tfds_split is not None and not (text and text.startswith("tfds:")):
        raise InputError(f"Expected tfds_split with tfds:NAME alone. Received it with {text or 'arrays'!r}.")
    if text is None:
        return "arrays", read_arrays(source, class_names)
    if class_names is not None:
        raise InputError(
            f"Expected class_names with arrays alone. Received them with {text!r}, which has its own. Leave them out."
        )
    if text.startswith("tfds:"):
        from transfer.images.tfds_source import read_tfds

        return text[5:], read_tfds(text[5:], data_dir=data_dir, download=download, split=tfds_split)
    place = find_source(text)
    name = printable(place.resolve().name)
    return (name, read_folder(place)) if place.is_dir() else (Path(name).stem, read_manifest(place))


def _tidy(found: SourceData, resize: str) -> SourceData:
    """Give every image a name that can be written anywhere and is its own, and say how it is resized."""
    taken: set[str] = set()
    parts = {}
    for split, part in found.parts.items():
        names = []
        for name in map(printable, part.names):
            names.append(next(free for free in _numbered(name) if free not in taken))
            taken.add(names[-1])
        parts[split] = replace(part, names=names, resize=resize)
    return replace(
        found,
        parts=parts,
        skipped=[(printable(name), why) for name, why in found.skipped],
        ignored=[printable(name) for name in found.ignored],
    )


def _numbered(name: str) -> Iterator[str]:
    """Give the name, and then others for images that are called the same."""
    yield name
    for number in count(2):
        yield f"{name}#{number}"


def _check(found: SourceData, *, strict: bool) -> tuple[SourceData, dict[str, list[CheckedImage]]]:
    """Drop what cannot be read."""
    good, checked, skipped = {}, {}, list(found.skipped)
    for name, part in found.parts.items():
        every = check_images(part.images)
        keep = [i for i, c in enumerate(every) if not c.problem]
        skipped += [(part.names[i], c.problem) for i, c in enumerate(every) if c.problem]
        checked[name] = [every[i] for i in keep]
        part = part.take(keep) if len(keep) < len(part) else part
        good[name] = replace(part, digests=[c.digest for c in checked[name]])
    if skipped and strict:
        shown = "; ".join(f"{name}: {problem}" for name, problem in skipped[:10])
        more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        raise InputError(
            f"Expected images that can be used. Received {len(skipped)} that cannot: {shown}{more}. Mend "
            "them or take them away; without strict they are skipped."
        )
    return replace(found, parts=good, skipped=skipped), checked


def _find_same(checked: Mapping[str, Sequence[CheckedImage]], *, near_duplicates: bool) -> dict[str, np.ndarray]:
    every = [c for part in checked.values() for c in part]
    numbers = find_duplicates([c.digest for c in every], [c.hash if near_duplicates else b"" for c in every])
    ends = np.cumsum([len(part) for part in checked.values()])
    return dict(zip(checked, np.split(numbers, ends[:-1]), strict=True))


def _refuse_too_few(name: str, found: SourceData) -> None:
    present = np.unique(found.parts["train"].labels)
    names = found.class_names
    if len(present) < 2:
        have = f"{len(present)}" + (f" ({names[present[0]]})" if len(present) else "")
        raise InputError(
            f"Expected images of at least 2 classes in {name!r}. Received: {have}. "
            "Put each class' images into a sub-folder of its own."
        )
    missing = [names[i] for i in range(len(names)) if i not in present]
    if missing:
        raise InputError(
            f"Expected images of every class in {name!r}. None to train on for: {', '.join(missing)}."
            f"{skipped_in_words(found.skipped)}"
        )


def flips_are_safe(class_names: Sequence[str]) -> bool:
    """Say whether mirrored images keep their class: not where the classes are letters or digits."""
    return not all(re.fullmatch(r"\d+|\w", name) for name in class_names)
