"""Images of `tensorflow_datasets`, read as encoded bytes and never waited for in vain."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.errors import InputError, nearest, one_line, unknown
from transfer.images.splitting import SourceData, Split
from transfer.images.tables import SPLIT_WORDS, SPLITS
from transfer.images.tfds_records import RecordRun, make_reader

log = logging.getLogger(__name__)

_HOST = "https://storage.googleapis.com"
_PATIENCE = 5.0  # seconds
_SEVERAL = "train=train[:80%],test=train[80%:]"


def read_tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    split: str | Mapping[str, str] | None = None,
) -> SourceData:
    """Read a prepared data set, or download and prepare it first."""
    import tensorflow_datasets as tfds

    wanted = _wanted(split)
    builder = _builder(tfds, name, data_dir)
    keys = _keys(tfds, builder, name)
    if not builder.is_prepared():
        _prepare(builder, name, data_dir, download)
    expressions = wanted or _own_splits(builder)
    chosen = {part: _runs(builder, name, expression) for part, expression in expressions.items()}
    _refuse_shared(chosen, name)
    read = make_reader(tfds, builder, keys, [run for runs in chosen.values() for run in runs])
    parts = {}
    for part, expression in expressions.items():
        found = _labelled(read(expression, chosen[part]), f"{expression!r} of tfds:{name}")
        if len(found):
            parts[part] = found
        elif wanted:
            raise InputError(
                f"Expected images with labels in every split of tfds:{name}. Received none in {expression!r}. "
                "Choose others."
            )
        else:
            log.warning("Ignored the split %r of tfds:%s: its images have no labels.", expression, name)
    if "train" not in parts:
        raise InputError(
            f"Expected a split 'train' with labels in tfds:{name}. Received: "
            f"{', '.join(builder.info.splits) or 'none'}. Choose another data set or another version of it, or say "
            "which images to train on, such as the split 'test[:80%]'."
        )
    return SourceData(parts, list(builder.info.features[keys[1]].names))


def _wanted(split: str | Mapping[str, str] | None) -> dict[str, str]:
    """Read `split`: an expression per split; none where the data set's own splits are meant."""
    if split is None:
        return {}
    if isinstance(split, str):
        pairs = [part.partition("=") for part in (split if "=" in split else f"train={split}").split(",")]
        wanted = {part.strip(): expression.strip() for part, _, expression in pairs}
        if not all(equals for _, equals, _ in pairs):
            raise InputError(
                f"Expected one expression such as 'train[:80%]', or several such as {_SEVERAL!r}. Received: {split!r}. "
                "Name each split."
            )
        if len(wanted) < len(pairs):
            raise InputError(f"Expected each split once. Received: {split!r}. Join expressions by '+'.")
    else:
        wanted = {str(part): str(expression) for part, expression in split.items()}
    for part in wanted:
        if part not in SPLITS:
            raise unknown("split", part, SPLITS, hint=f"Expected such as {_SEVERAL!r}.")
    if "train" not in wanted:
        raise InputError(
            f"Expected an expression for the split 'train'. Received: {split!r}. Say what to train on, such as "
            f"{_SEVERAL!r}."
        )
    return wanted


def _own_splits(builder: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for own, info in builder.info.splits.items():
        if own in SPLIT_WORDS and info.num_examples:
            found.setdefault(SPLIT_WORDS[own], own)
    return found


def _runs(builder: Any, name: str, expression: str) -> list[RecordRun]:
    """Find the records that an expression of tensorflow_datasets chooses."""
    splits = builder.info.splits
    for term in expression.split("+"):
        own = term.partition("[")[0].strip()
        if own not in splits and own != "all":
            raise unknown("split", own, splits, hint=f"These are the splits of tfds:{name}.")
    begins = {}  # of each file: its split, and the number of its first record there
    for own in splits:
        start = 0
        for part in splits[own].file_instructions:
            begins[str(part.filename)] = own, start
            start += part.examples_in_shard
    parts, reason = None, None
    try:
        parts = splits[expression].file_instructions
    except Exception as error:  # its parser names no class of its own for what it does not understand
        reason = error
    if not parts or any(part.take < 1 for part in parts):
        problem = "is none of these" if parts is None else "holds no images"
        sizes = ", ".join(f"{own} ({splits[own].num_examples} images)" for own in splits)
        raise InputError(
            f"Expected splits of tfds:{name} or slices of them, such as 'train[:80%]', 'train[100:200]' or "
            f"'train+test'. Received: {expression!r}, which {problem}. There are: {sizes}."
        ) from reason
    runs = []
    for part in parts:
        own, start = begins[str(part.filename)]
        runs.append(RecordRun(own, start + part.skip, part.take, str(part.filename), part.skip))
    return runs


def _refuse_shared(chosen: Mapping[str, Sequence[RecordRun]], name: str) -> None:
    """Refuse images that are in two splits, or twice in one."""
    files = {file: i for i, file in enumerate({run.file for runs in chosen.values() for run in runs})}
    records = {
        part: np.concatenate([(files[r.file] << 40) + r.skip + np.arange(r.size) for r in runs])
        for part, runs in chosen.items()
    }
    shared = {f"{part!r} twice": len(r) - len(np.unique(r)) for part, r in records.items()}
    for one, other in combinations(records, 2):
        shared[f"{one!r} and {other!r}"] = len(np.intersect1d(records[one], records[other]))
    for where, count in shared.items():
        if count:
            raise InputError(
                f"Expected different images in every split of tfds:{name}. Received {count} that are in {where}. "
                "Choose slices that do not overlap, such as train[:80%] and train[80%:]."
            )


def _labelled(found: Split, what: str) -> Split:
    """Leave out images whose label is -1, as in the test sets of contests."""
    labelled = np.flatnonzero(found.labels >= 0)
    missing = len(found) - len(labelled)
    if missing:
        log.info("Left out %d of %d images in %s: they have no label.", missing, len(found), what)
    return found.take(labelled) if missing else found


def _builder(tfds: Any, name: str, data_dir: str | Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = ", ".join(f"tfds:{n}" for n in nearest(name.split("/")[0].split(":")[0], known))
        raise InputError(
            f"Unknown data set 'tfds:{name}'. "
            + (f"Did you mean {near}?" if near else "See tensorflow.org/datasets/catalog for the names.")
        ) from None
    # Malformed names, unknown configs and versions, missing packages, hosts out of reach: all kinds.
    except Exception as error:
        raise InputError(
            f"tensorflow_datasets cannot open 'tfds:{name}': {one_line(error)}. Expected "
            "tfds:NAME[/CONFIG][:VERSION], see tensorflow.org/datasets/catalog."
        ) from error


def _keys(tfds: Any, builder: Any, name: str) -> tuple[str, str]:
    """Name the features that hold the image and its label."""
    features, keys = builder.info.features, builder.info.supervised_keys
    if keys is None:  # not said, as of data that tfds.dataset_builders.store_as_tfds_dataset wrote
        images, labels = (
            [key for key in features if isinstance(features[key], kind)]
            for kind in (tfds.features.Image, tfds.features.ClassLabel)
        )
        keys = (images[0], labels[0]) if len(images) == len(labels) == 1 else None
    if isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (features[key] for key in keys)
        # Images of floats are stored as bytes that only tensorflow_datasets can read.
        if (
            isinstance(image, tfds.features.Image)
            and np.dtype(image.np_dtype) in (np.uint8, np.uint16)
            and isinstance(label, tfds.features.ClassLabel)
        ):
            return keys
    raise InputError(
        f"Expected images with one label each. Received: tfds:{name} with {keys or 'no labels'}. Choose a data "
        "set for classification."
    )


def _prepare(builder: Any, name: str, data_dir: str | Path | None, download: bool) -> None:
    place = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
    # Not the command `tfds build`: it needs apache_beam, which is not among the requirements.
    code = f"import tensorflow_datasets as tfds; tfds.builder({name!r}{place}).download_and_prepare()"
    remedy = (
        f'Where there is a network, run: python -c "{code}". It fills {builder.data_path}; copy that folder to '
        "the same place here."
    )
    if not download:
        raise InputError(f"tfds:{name} is not prepared and downloading is off. {remedy}")
    problem = _network_problem()
    if problem:
        raise InputError(
            f"tfds:{name} is not prepared, and there is no network to download it ({problem}). {remedy}"
        )
    try:
        builder.download_and_prepare()
    # Servers, checksums, archives to fetch by hand, missing packages: all kinds.
    except Exception as error:
        raise InputError(f"tensorflow_datasets cannot prepare 'tfds:{name}': {one_line(error)}.") from error


def _network_problem() -> str:
    """Say what keeps the network from answering; empty where it answers."""
    problem = [f"no answer within {_PATIENCE:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(_HOST, method="HEAD"), timeout=_PATIENCE).close()
        except urllib.error.HTTPError:
            problem[0] = ""  # any answer will do
        except OSError as error:
            problem[0] = str(error)
        else:
            problem[0] = ""

    # A thread, since looking up the host's name takes as long as it likes.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE + 1)
    return problem[0]
