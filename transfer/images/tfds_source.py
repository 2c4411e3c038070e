"""Read data sets of `tensorflow_datasets` as encoded images; fail early without a network."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common.errors import InputError, nearest, one_line, unknown
from transfer.common.tasks import MULTI, REGRESSION, SINGLE
from transfer.images.split_words import SPLIT_WORDS, SPLITS
from transfer.images.splitting import SourceData, Split
from transfer.images.tfds_records import LabelFeature, RecordRange, make_reader

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

log = logging.getLogger(__name__)

_HOST = "https://storage.googleapis.com"
_TIMEOUT = 5.0  # seconds
_EXAMPLE = "train=train[:80%],test=train[80%:]"


def read_tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    split: str | Mapping[str, str] | None = None,
    task: str = "auto",
) -> SourceData:
    """Return the images of a data set; download and prepare it first if needed."""
    requested = _parse_split(split)
    builder = _builder(name, data_dir)
    image, label = _features(builder, name)
    if label.task == REGRESSION and task != REGRESSION:
        raise InputError(
            f"Expected classes as the labels of tfds:{name}. Received numbers, {label.key!r}. Use "
            '--task regression, or task="regression" in Python.'
        )
    if not builder.is_prepared():
        _prepare(builder, name, data_dir, download)
    expressions = requested or _own_splits(builder)
    ranges = {part: _ranges(builder, name, expression) for part, expression in expressions.items()}
    _refuse_overlap(ranges, name)
    read = make_reader(builder, image, label, [r for part in ranges.values() for r in part])
    parts = {}
    for part, expression in expressions.items():
        images = _labeled(read(expression, ranges[part]), f"{expression!r} of tfds:{name}")
        if len(images):
            parts[part] = images
        elif requested:
            raise InputError(
                f"Expected images with labels in every split of tfds:{name}. Received none in {expression!r}. "
                "Choose other splits."
            )
        else:
            log.warning("Ignored the split %r of tfds:%s: its images have no labels.", expression, name)
    if "train" not in parts:
        raise InputError(
            f"Expected a split 'train' with labels in tfds:{name}. Received: "
            f"{', '.join(builder.info.splits) or 'none'}. Choose another data set or version, or the images to train "
            "on, such as the split 'test[:80%]'."
        )
    names = list(label.names) or [label.key]
    return SourceData(parts, names, task=label.task, target="" if label.names else label.key)


def _parse_split(split: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return the expression of each requested split; none if the data set's own splits are wanted."""
    if split is None:
        return {}
    if isinstance(split, str):
        pairs = [part.partition("=") for part in (split if "=" in split else f"train={split}").split(",")]
        requested = {part.strip(): expression.strip() for part, _, expression in pairs}
        if not all(equals for _, equals, _ in pairs):
            raise InputError(
                f"Expected one expression such as 'train[:80%]', or several such as {_EXAMPLE!r}. Received: {split!r}. "
                "Name each split."
            )
        if len(requested) < len(pairs):
            raise InputError(f"Expected each split once. Received: {split!r}. Join expressions with '+'.")
    else:
        requested = {str(part): str(expression) for part, expression in split.items()}
    for part in requested:
        if part not in SPLITS:
            raise unknown("split", part, SPLITS, hint=f"An example: {_EXAMPLE!r}.")
    if "train" not in requested:
        raise InputError(
            f"Expected an expression for the split 'train'. Received: {split!r}. Add the training images, as in "
            f"{_EXAMPLE!r}."
        )
    return requested


def _own_splits(builder: DatasetBuilder) -> dict[str, str]:
    """Return the data set's own name of train, val and test, if it has them."""
    splits: dict[str, str] = {}
    for own, info in builder.info.splits.items():
        if own in SPLIT_WORDS and info.num_examples:
            splits.setdefault(SPLIT_WORDS[own], own)
    return splits


def _ranges(builder: DatasetBuilder, name: str, expression: str) -> list[RecordRange]:
    """Return the records that an expression selects."""
    splits = builder.info.splits
    for term in expression.split("+"):
        own = term.partition("[")[0].strip()
        if own not in splits and own != "all":
            raise unknown("split", own, splits, hint=f"These are the splits of tfds:{name}.")
    origin = {}  # for each file, its split and the index of its first record in the split
    for own in splits:
        start = 0
        for part in splits[own].file_instructions:
            origin[str(part.filename)] = own, start
            start += part.examples_in_shard
    parts, reason = None, None
    try:
        parts = splits[expression].file_instructions
    except Exception as error:  # the parser of tensorflow_datasets has no error class of its own
        reason = error
    if not parts or any(part.take < 1 for part in parts):
        problem = "is not one of these" if parts is None else "has no images"
        sizes = ", ".join(f"{own} ({splits[own].num_examples} images)" for own in splits)
        raise InputError(
            f"Expected splits of tfds:{name} or slices of them, such as 'train[:80%]', 'train[100:200]' or "
            f"'train+test'. Received: {expression!r}, which {problem}. The splits are: {sizes}."
        ) from reason
    ranges = []
    for part in parts:
        own, start = origin[str(part.filename)]
        ranges.append(RecordRange(own, start + part.skip, part.take, str(part.filename), part.skip))
    return ranges


def _refuse_overlap(ranges: Mapping[str, Sequence[RecordRange]], name: str) -> None:
    """Raise if two splits share images, or a split has an image twice."""
    files = {file: i for i, file in enumerate({r.file for part in ranges.values() for r in part})}
    records = {
        part: np.concatenate([(files[r.file] << 40) + r.skip + np.arange(r.size) for r in each])
        for part, each in ranges.items()
    }
    shared = {f"{part!r} twice": len(ids) - len(np.unique(ids)) for part, ids in records.items()}
    for one, other in combinations(records, 2):
        shared[f"{one!r} and {other!r}"] = len(np.intersect1d(records[one], records[other]))
    for where, count in shared.items():
        if count:
            raise InputError(
                f"Expected different images in every split of tfds:{name}. Received {count} that are in {where}. "
                "Choose slices that do not overlap, such as train[:80%] and train[80%:]."
            )


def _labeled(images: Split, description: str) -> Split:
    """Drop images with the label -1, which test sets of competitions have, or with a missing number."""
    if images.labels.ndim == 2:  # an image without labels is labeled, too
        return images
    is_number = images.labels.dtype.kind == "f"
    labeled = np.flatnonzero(np.isfinite(images.labels) if is_number else images.labels >= 0)
    missing = len(images) - len(labeled)
    if missing:
        log.info("Skipped %d of %d images in %s: they have no label.", missing, len(images), description)
    return images.take(labeled) if missing else images


def _builder(name: str, data_dir: str | Path | None) -> DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = ", ".join(f"tfds:{n}" for n in nearest(name.split("/")[0].split(":")[0], known))
        raise InputError(
            f"Unknown data set 'tfds:{name}'. "
            + (f"Did you mean {near}?" if near else "See tensorflow.org/datasets/catalog for the names.")
        ) from None
    except Exception as error:  # malformed names, unknown configs and versions, missing packages, ...
        raise InputError(
            f"tensorflow_datasets cannot open 'tfds:{name}': {one_line(error)}. Expected "
            "tfds:NAME[/CONFIG][:VERSION], see tensorflow.org/datasets/catalog."
        ) from error


def _features(builder: DatasetBuilder, name: str) -> tuple[str, LabelFeature]:
    """Return the name of the feature that holds the image, and the feature that holds its label."""
    import tensorflow_datasets as tfds

    Image = tfds.features.Image
    features, keys = builder.info.features, builder.info.supervised_keys
    labels = {key: found for key in features if (found := _label_feature(key, features[key]))}
    if keys is None:  # as in data sets from tfds.dataset_builders.store_as_tfds_dataset
        images = [key for key in features if isinstance(features[key], Image)]
        classes = [key for key, label in labels.items() if label.task == SINGLE] or [
            key
            for key, label in labels.items()
            if not label.whole  # such as the number of the image
        ]
        keys = (images[0], classes[0]) if len(images) == len(classes) == 1 else None
    if isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image = features[keys[0]]
        readable = np.uint8, np.uint16  # floats are stored as bytes that only tensorflow_datasets can read
        if isinstance(image, Image) and keys[1] in labels and np.dtype(image.np_dtype) in readable:
            return keys[0], labels[keys[1]]
    raise InputError(
        f"Expected images with classes or a number each. Received: tfds:{name} with {keys or 'no labels'}. Choose a "
        "data set for classification or regression."
    )


def _label_feature(key: str, feature: Any) -> LabelFeature | None:
    """Return what a feature of a data set holds: a class, several classes or a number; None for others."""
    import tensorflow_datasets as tfds

    ClassLabel, Sequence = tfds.features.ClassLabel, tfds.features.Sequence
    if isinstance(feature, ClassLabel):
        return LabelFeature(key, SINGLE, feature.names)
    if isinstance(feature, Sequence) and isinstance(feature.feature, ClassLabel):
        return LabelFeature(key, MULTI, feature.feature.names)
    if type(feature) in (tfds.features.Scalar, tfds.features.Tensor) and feature.shape == ():
        kind = np.dtype(feature.np_dtype).kind
        return LabelFeature(key, REGRESSION, whole=kind != "f") if kind in "iuf" else None
    return None


def _prepare(builder: DatasetBuilder, name: str, data_dir: str | Path | None, download: bool) -> None:
    option = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
    # The command `tfds build` would need apache_beam, which is not a requirement.
    code = f"import tensorflow_datasets as tfds; tfds.builder({name!r}{option}).download_and_prepare()"
    remedy = (
        f'On a machine with a network, run: python -c "{code}". It fills {builder.data_path}; copy that folder to '
        "the same place here."
    )
    if not download:
        raise InputError(f"tfds:{name} is not prepared, and downloading is off. {remedy}")
    if problem := _network_problem():
        raise InputError(
            f"tfds:{name} is not prepared, and there is no network to download it ({problem}). {remedy}"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # servers, checksums, archives to download by hand, missing packages, ...
        raise InputError(f"tensorflow_datasets cannot prepare 'tfds:{name}': {one_line(error)}.") from error


def _network_problem() -> str:
    """Return why the network does not answer; empty if it does."""
    problem = f"no answer within {_TIMEOUT:g} s"

    def ask() -> None:
        nonlocal problem
        try:
            urllib.request.urlopen(urllib.request.Request(_HOST, method="HEAD"), timeout=_TIMEOUT).close()
            problem = ""
        except OSError as error:
            problem = "" if isinstance(error, urllib.error.HTTPError) else str(error)  # an error is an answer

    # Use a thread, since the timeout does not cover the lookup of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT + 1)
    return problem
