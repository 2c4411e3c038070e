"""Load data: a folder, a list of files, a tensorflow_datasets name or arrays become `ImageData`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.arguments import POSITIONAL, explain_arguments
from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, ORDINAL, REGRESSION, SINGLE
from transfer.images.array_labels import labels_as_names
from transfer.images.checking import CheckedImage, check_images, make_report
from transfer.images.class_order import checked_order, in_order, ordered_classes
from transfer.images.columns import Given
from transfer.images.copies import merge_copies
from transfer.images.data_config import DataConfig, data_config
from transfer.images.decoding import as_size
from transfer.images.duplicates import find_duplicates
from transfer.images.flips import flips_are_safe as flips_are_safe
from transfer.images.folder_scan import describe_skipped, printable
from transfer.images.folder_source import embedded_folder as embedded_folder
from transfer.images.image_data import ImageData as ImageData
from transfer.images.label_forms import label_counts
from transfer.images.pixel_range import PixelRange, find_range
from transfer.images.sources import as_text as as_text
from transfer.images.sources import numbered, read_source
from transfer.images.split_file import apply_split, read_split
from transfer.images.splitting import SourceData, Split, complete_splits, few_per_class, split_sizes
from transfer.images.tables import own_group

log = logging.getLogger(__name__)

_PAIR = "Write load_data((images, labels)), with all options by name."

LARGEST = 1e30
"""Largest absolute number of a regression; float32 ends at 3.4e38."""

LEAST_SPREAD = 1e-4
"""Smallest standard deviation of numbers relative to the largest. Steps of float32 are then 0.1% of it or less."""

KERAS_NAMES = {
    "validation_split": "Write val=...",
    "labels": _PAIR,
    POSITIONAL: _PAIR,
    "batch_size": "Leave it out: fit and make_dataset take it.",
    "shuffle": "Leave it out: fit shuffles the training images in each epoch.",
    "label_mode": "Leave it out: labels are class numbers.",
    "directory": "Write load_data(directory).",
    "x": _PAIR,
    "y": _PAIR,
}
"""Advice for arguments of Keras' `image_dataset_from_directory` and of other functions."""


@explain_arguments(KERAS_NAMES)
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
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    task: str = DataConfig.task,
    class_order: Sequence[str] | None = None,
) -> ImageData:
    """Load labeled images, check every image, and split them into train, val and test.

    Images of more than 8 bits per channel are scaled by the range of the training images (`report.pixel_range`).

    The split is stratified by class. It depends on the seed and the names of the images, not on the order in which
    the file system lists them. Duplicates stay in one split, and so do the images of a group. Splits of the source
    are kept, with a warning if they share images. If the source has `val` but no `test`, its `val` becomes the test
    set, and a new validation set is drawn from `train`. Early stopping and testing thus never share images. With
    `test=0`, `val` stays the validation set.

    Every class keeps at least one image for training. The second image of a class goes to test, the third to
    validation. Images with conflicting labels are used for training only. With several labels per image, each label
    has about the same fraction in every split (iterative stratification). For a regression, the splits are stratified
    by bands of equally many images.

    Args:
        source: One of

            - a folder with a sub-folder of images per class. Folders of splits may lie above the classes, such as
              `train` and `test`, or `seg_train` and `seg_test`;
            - `"emoji"`, the data set that comes with the package;
            - a list of images as CSV or Parquet (see `manifest.read_manifest`);
            - `"tfds:NAME[/CONFIG][:VERSION]"`, a name of tensorflow_datasets;
            - arrays `(images, labels)` or `((x_train, y_train), (x_test, y_test))`, as `keras.datasets` returns them.
              Images have shape (N, H, W[, C]) and values from 0 to 255, or are a list of arrays of different sizes.
              Labels are whole numbers, class names or one-hot. Several labels per image are columns of 0 and 1, or
              lists or sets of names. Labels of a regression are numbers;
            - one or several `tf.data.Dataset` of (image, label) (see `array_source.read_arrays`).
        image_size: Size of the images in pixels, one number or (height, width); None for the model's own.
        resize: How images change shape: `"stretch"`, `"crop"` (the center) or `"pad"` (with black).
        seed: Random seed of the split, 0 or more.
        val: Size of the validation set, if the source has none: a fraction below 1 or a number of images.
        test: Size of the test set, if the source has none: a fraction below 1 or a number of images.
        few_shot: Number of different training images per class, for experiments; None for all.
        near_duplicates: Treat near-duplicates, such as an image saved again in another form, as duplicates. False
            treats only exact copies as duplicates: use it if all images look alike by nature.
        split_file: Split file (`split.csv`) of an earlier run, to use its split again.
        class_names: For arrays, one name per label; by default the labels' numbers.
        strict: Raise an error for images that cannot be used, instead of skipping and reporting them.
        data_dir: Folder of prepared tensorflow_datasets.
        tfds_split: For tensorflow_datasets, in its syntax: `"train[:80%]"`, from which the splits are drawn, or
            `"train=train[:80%],val=train[80%:],test=test"`.
        download: Let tensorflow_datasets download data that are not prepared.
        path_column: Column of the paths in a list; None finds it by its name, such as `"image_id"`.
        label_column: Column of the labels in a list, or comma-separated names of columns of 0 and 1, one per class.
        split_column: Column of the splits in a list, of words or of a flag such as `"is_valid"`; `"none"` draws a
            split.
        group_column: Column of the groups in a list, such as patients; comma-separated names combine columns,
            `"none"` uses no groups.
        task: What the labels are, one of `tasks.TASKS`:

            - `"single"`: one class per image;
            - `"multi"`: any number of labels per image, or none;
            - `"ordinal"`: one class per image, and the classes have an order, such as grades or age bands. `evaluate`
              and `predict` then use the order;
            - `"regression"`: a number per image;
            - `"auto"`: `"multi"` if images have several labels, otherwise `"single"`.
        class_order: Class names from the lowest to the highest, for the task `"ordinal"`. By default the numbers in
            the names order the classes: `"2"`, `"10-19"`, `"100+"`.

    Returns:
        The data with the report of the check. Image files are decoded when they are used.

    Raises:
        InputError: The source does not exist, it has fewer than two classes, its labels are invalid, the sizes of the
            splits leave nothing for training, or images cannot be used under `strict`.

    Example:
        >>> data = load_data("emoji", seed=0)
        >>> data.num_classes
        12
    """
    options = data_config(
        as_text(source), resize=resize, seed=seed, val=val, test=test, few_shot=few_shot, split_file=split_file,
        near_duplicates=near_duplicates, strict=strict, data_dir=data_dir, tfds_split=tfds_split,
        path_column=path_column, label_column=label_column, split_column=split_column, group_column=group_column,
        task=task, class_order=class_order,
    )  # fmt: skip
    sizes, order = split_sizes(val, test), checked_order(class_order, task)
    size = as_size(image_size)
    rows = read_split(Path(split_file)) if split_file is not None else None  # fails before the slow steps
    given = Given(path_column, label_column, split_column, group_column)
    name, data = read_source(source, class_names, data_dir, tfds_split, download, given, task)
    ranked = ordered_classes(data.class_names, order) if task == ORDINAL else data.class_names
    if rows is None:
        _refuse_too_few(name, data)  # before the slow check, and after it
    data, checked = _check(_with_unique_names(data, resize), strict=strict)
    ids = _duplicate_ids(checked, near_duplicates=near_duplicates)
    if rows is not None:
        skipped = [skipped for skipped, _ in data.skipped]
        splits = apply_split(rows, data.parts, data.class_names, skipped_names=skipped)
    else:
        _refuse_too_few(name, data)
        splits = complete_splits(data.parts, ids, data.class_names, seed=seed, **sizes)
        data = replace(data, notes=[*data.notes, *_empty_splits(splits, sizes)])
    # Only now, so that the split is the same for each order.
    if ranked != data.class_names:
        splits = in_order(splits, data.class_names, ranked)
        data = replace(data, parts=in_order(data.parts, data.class_names, ranked), class_names=ranked)
    pixel_range = _range_in_use(data, checked, splits["train"])
    form: dict[str, Any] = {
        "pixel_range": pixel_range,
        "class_names": tuple(data.class_names),
        "image_size": size,
    }
    splits = {split: replace(part, **form) for split, part in splits.items()}
    if pixel_range is not None:
        log.info("Images of more than 8 bits: values %s become 0 to 255.", pixel_range)
    if few_shot is not None:
        names = [name for part in data.parts.values() for name in part.names]
        id_of = dict(zip(names, np.concatenate([*ids.values()]).tolist(), strict=True))
        train_ids = np.array([id_of[image] for image in splits["train"].names], "int64")
        splits["train"] = few_per_class(splits["train"], train_ids, few_shot, seed=seed)
    report = make_report(name, data, checked=checked, duplicate_ids=ids, splits=splits)
    for finding in report.findings:
        log.log(logging.WARNING if finding.serious else logging.INFO, "%s", finding.to_text())
    drawn = _drawn(data.parts, test) if rows is None and few_shot is None else (False, False)
    parts, classes = (splits["train"], splits["val"], splits["test"]), tuple(data.class_names)
    return ImageData(
        name, classes, *parts, report, size, options, *drawn, task if task == ORDINAL else data.task
    )


def _drawn(parts: Mapping[str, Split], test: float | int) -> tuple[bool, bool]:
    """Return whether `complete_splits` draws val and test; without a given test set, a given val may become it."""
    val_tests = "val" in parts and "test" not in parts and bool(test)
    return "val" not in parts or val_tests, "test" not in parts and not val_tests


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
    pixel_range: PixelRange | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    task: str = SINGLE,
) -> ImageData:
    """Load labeled images as the test set of a model with the classes `class_names`."""
    columns = Given(path_column, label_column, split_column, optional=True)
    name, data = read_source(
        source, None, data_dir, tfds_split, download, columns, task, model_labels=class_names
    )
    named = as_text(source) is not None or (isinstance(source, Split) and source.class_names)
    if not named and data.task != REGRESSION:
        data = replace(data, class_names=labels_as_names(data.class_names, class_names))
    split = next(split for split in ("test", "val", "train") if split in data.parts)
    if len(data.parts) > 1:
        log.info("Using the %s images of %s.", split, name)
    for text, serious in data.notes:
        log.log(logging.WARNING if serious else logging.INFO, "%s", text)
    if data.task == REGRESSION and data.target not in ("", *class_names):
        log.warning("Reading the numbers from %r. The model predicts %r.", data.target, class_names[0])
    labels = numbered(name, data, data.parts[split].labels, class_names)
    data = replace(
        data, parts={"test": replace(data.parts[split], labels=labels)}, class_names=[*class_names]
    )
    data, checked = _check(_with_unique_names(data, resize), strict=strict)
    test = data.parts["test"]
    if not len(test):
        raise InputError(f"Expected images in {name!r}. Received none.{describe_skipped(data.skipped)}")
    splits = with_pixel_range({"train": test.take([]), "val": test.take([]), "test": test}, pixel_range)
    ids = _duplicate_ids(checked, near_duplicates=False)
    report = make_report(name, data, checked=checked, duplicate_ids=ids, splits=splits)
    size = as_size(image_size)
    parts = splits["train"], splits["val"], splits["test"]
    return ImageData(name, tuple(class_names), *parts, report, image_size=size, options=None, task=task)


def check_one_class(data: ImageData, what: str) -> None:
    """Raise unless each image has one class."""
    if data.task not in (SINGLE, ORDINAL):
        raise InputError(
            f"Expected one class per image in {what}. Received the task {data.task}, which it does not support."
        )


def with_pixel_range(splits: Mapping[str, Split], pixel_range: PixelRange | None) -> dict[str, Split]:
    """Return the splits with the range that maps images of more than 8 bits per channel to 8 bits."""
    return {name: replace(part, pixel_range=pixel_range) for name, part in splits.items()}


def _range_in_use(
    data: SourceData, checked: Mapping[str, Sequence[CheckedImage]], train: Split
) -> PixelRange | None:
    """Return the range of the training images with more than 8 bits per channel."""
    extents = {
        name: extent
        for part in checked
        for name, image in zip(data.parts[part].names, checked[part], strict=True)
        if (extent := image.extent) is not None
    }
    return find_range(extents[name] for name in train.names if name in extents)


def check_data(data: Any, call: str) -> None:
    """Raise unless an argument comes from `load_data`; `call` shows the order of arguments."""
    if isinstance(data, ImageData):
        return
    if isinstance(data, Split):
        received, advice = "a split", "Pass the data, which have all three splits."
    else:
        received = (
            "None"
            if data is None
            else repr(str(data))
            if isinstance(data, str | Path)
            else type(data).__name__
        )
        advice = f"Load and split the images first: data = transfer.load_data(images), then {call}."
    raise InputError(f"Expected data from load_data in {call}. Received: {received}. {advice}")


def _with_unique_names(data: SourceData, resize: str) -> SourceData:
    """Make all names unique and printable, and set how the images are resized."""
    taken: set[str] = set()
    parts = {}
    for split, part in data.parts.items():
        names = []
        for name in map(printable, part.names):
            numbered = (f"{name}#{number}" for number in count(2))
            names.append(name if name not in taken else next(n for n in numbered if n not in taken))
            taken.add(names[-1])
        parts[split] = replace(part, names=names, resize=resize)
    return replace(
        data,
        parts=parts,
        skipped=[(printable(name), reason) for name, reason in data.skipped],
        ignored=[printable(name) for name in data.ignored],
    )


def _check(data: SourceData, *, strict: bool) -> tuple[SourceData, dict[str, list[CheckedImage]]]:
    """Check all images; return the usable ones with their digests, and their results."""
    parts, checked, skipped = {}, {}, list(data.skipped)
    for split, part in data.parts.items():
        results = check_images(part.images)
        keep = [i for i, result in enumerate(results) if not result.problem]
        skipped += [(part.names[i], result.problem) for i, result in enumerate(results) if result.problem]
        checked[split] = [results[i] for i in keep]
        part = part.take(keep) if len(keep) < len(part) else part
        parts[split] = replace(part, digests=[result.digest for result in checked[split]])
    data = replace(data, parts=parts, skipped=skipped)
    if data.copies_have_labels:
        data, checked = merge_copies(data, checked)
    data = _grouped_by_patient(data, checked)
    if skipped and strict:
        shown = "; ".join(f"{name}: {problem}" for name, problem in skipped[:10])
        more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        raise InputError(
            f"Expected images that can be used. Received {len(skipped)} that cannot: {shown}{more}. Fix or remove "
            "them; without strict they are skipped."
        )
    return data, checked


def _grouped_by_patient(data: SourceData, checked: Mapping[str, Sequence[CheckedImage]]) -> SourceData:
    """Make the patients of DICOM files the groups of the images, if the source has no groups."""
    patients = {image.patient for part in checked.values() for image in part} - {""}
    # A single id for all images, such as ANONYMOUS, identifies no patient.
    if len(patients) < 2 or any(len(part.groups) for part in data.parts.values()):
        return data
    parts = {}
    for split, part in data.parts.items():
        ids = [
            image.patient or own_group(name) for name, image in zip(part.names, checked[split], strict=True)
        ]
        parts[split] = replace(part, groups=ids)
    note = f"Each patient is a group: found {len(patients):,} different values of PatientID in DICOM files."
    return replace(data, parts=parts, notes=(*data.notes, (note, False)))


def _duplicate_ids(
    checked: Mapping[str, Sequence[CheckedImage]], *, near_duplicates: bool
) -> dict[str, np.ndarray]:
    """Return an id per image, equal for duplicates, by split."""
    images = [image for part in checked.values() for image in part]
    hashes = [image.hash if near_duplicates else b"" for image in images]
    ids = find_duplicates([image.digest for image in images], hashes)
    ends = np.cumsum([len(part) for part in checked.values()])
    return dict(zip(checked, np.split(ids, ends[:-1]), strict=True))


def _empty_splits(splits: Mapping[str, Split], sizes: Mapping[str, float | int]) -> list[tuple[str, bool]]:
    """Return a note if groups are too few for a split that was asked for."""
    empty = [split for split in ("val", "test") if sizes[split] and not len(splits[split])]
    if not empty or not len(splits["train"].groups):
        return []
    text = f"No images are in {' and '.join(empty)}: there are too few groups. "
    return [
        (f"{text}Use --group-column none if they are no groups of related images, such as patients.", True)
    ]


def _refuse_equal(name: str, labels: np.ndarray) -> None:
    """Raise an error unless the numbers of the training images differ, also in the precision of float32."""
    most, spread = float(np.abs(labels).max(initial=0.0)), float(labels.std()) if len(labels) else 0.0
    if len(np.unique(labels)) > 1 and (most > LARGEST or spread < LEAST_SPREAD * most):
        raise InputError(
            f"Expected numbers of at most {LARGEST:g} whose standard deviation is {LEAST_SPREAD:g} of the largest or "
            f"more, since models compute in float32. Received in {name!r}: up to {most:g}, standard deviation "
            f"{spread:g}. Change the unit, or subtract an offset."
        )
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"Expected training images with different numbers in {name!r}. Received {len(labels)} images with "
            f"{f'the number {labels[0]:g}' if len(labels) else 'no numbers'}. Choose another column, or add images."
        )


def _refuse_too_few(name: str, data: SourceData) -> None:
    """Raise an error unless there are two classes and every class has training images."""
    labels, names = data.parts["train"].labels, data.class_names
    if broken := [one for one in names if "\n" in one or "\r" in one]:
        raise InputError(f"Expected names without line breaks. Received: {broken[0]!r}. Rename it.")
    if data.task == MULTI and len(names) == 1:
        raise InputError(
            f"Expected 2 labels or more in {name!r}. Received: {names[0]}. Write a class for the "
            "images without the label, and use --task single."
        )
    if data.task == REGRESSION:
        _refuse_equal(name, labels)
        return
    present = np.flatnonzero(label_counts(labels, len(names)))
    if data.task == MULTI and not len(present):
        raise InputError(
            f"Expected images with labels in {name!r}. Received {len(labels)} training images without labels. Add "
            "labels."
        )
    if data.task == SINGLE and len(present) < 2:
        have = f"{len(present)}" + (f" ({names[present[0]]})" if len(present) else "")
        raise InputError(
            f"Expected images of at least 2 classes in {name!r}. Received: {have}. "
            "Put the images of each class into its own sub-folder."
            + "".join(f" {text}" for text, _ in data.notes)
            + describe_skipped(data.skipped)
        )
    if missing := [names[i] for i in range(len(names)) if i not in present]:
        raise InputError(
            f"Expected training images of every class in {name!r}. Received none of: {', '.join(missing)}."
            f"{describe_skipped(data.skipped)}"
        )
