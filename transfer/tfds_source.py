"""Pictures of `tensorflow_datasets`, read as encoded bytes and never waited for in vain."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.errors import InputError, nearest

if TYPE_CHECKING:
    from transfer.datasets import Split

_HOST = "https://storage.googleapis.com"
_SPLITS = {"train": "train", "validation": "val", "val": "val", "valid": "val", "test": "test"}


def read_tfds(
    name: str, *, data_dir: str | Path | None = None, download: bool = True
) -> tuple[dict[str, Split], list[str]]:
    """Read a prepared data set, or download and prepare it first.

    Args:
        name: as tensorflow_datasets spells it, with a config and version if wanted: `"tf_flowers:3.*.*"`.
        data_dir: where prepared data lie; None is tensorflow_datasets' own place.
        download: prepare what is not there. The network is tried first, since without one
            tensorflow_datasets hangs for minutes.

    Returns:
        The pictures per split, encoded, in memory; and the class names.

    Raises:
        InputError: unknown name, no pictures with labels in it, or not prepared and no way to do so.

    Example:
        read_tfds("tf_flowers")
    """
    import tensorflow_datasets as tfds

    builder = _builder(tfds, name, data_dir)
    image, label = _keys(tfds, builder, name)
    if not builder.is_prepared():
        _refuse_offline(name, builder, download)
        builder.download_and_prepare()
    parts = {}
    for split in builder.info.splits:
        if split not in _SPLITS:
            continue
        rows = tfds.as_numpy(
            builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
        )
        parts[_SPLITS[split]] = _collect(rows, image, label)
    if "train" not in parts:
        raise InputError(
            f"Expected a split 'train' in tfds:{name}. Received: {', '.join(builder.info.splits)}."
        )
    return parts, list(builder.info.features[label].names)


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
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"tensorflow_datasets cannot open 'tfds:{name}': {str(error).splitlines()[0]}"
        ) from None


def _keys(tfds: Any, builder: Any, name: str) -> tuple[str, str]:
    keys = builder.info.supervised_keys
    features = builder.info.features
    if (
        not keys
        or len(keys) != 2
        or not isinstance(features[keys[0]], tfds.features.Image)
        or not isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise InputError(
            f"Expected pictures with one label each. Received: tfds:{name} with {keys or 'no labels'}."
        )
    return keys[0], keys[1]


def _refuse_offline(name: str, builder: Any, download: bool) -> None:
    remedy = (
        f"Where there is a network, run `python -m tensorflow_datasets.scripts.cli.main build {name}`, copy the "
        f"folder to {builder.data_path}, and run again."
    )
    if not download:
        raise InputError(f"tfds:{name} is not prepared and downloading is off. {remedy}")
    try:
        urllib.request.urlopen(urllib.request.Request(_HOST, method="HEAD"), timeout=5)
    except urllib.error.HTTPError:
        pass  # any answer will do
    except OSError as error:
        raise InputError(
            f"tfds:{name} is not prepared, and there is no network to download it ({error}). {remedy}"
        ) from None


def _collect(rows: Any, image: str, label: str) -> Split:
    from transfer.datasets import Split

    pictures, labels = [], []
    for row in rows:
        pictures.append(bytes(row[image]))
        labels.append(int(row[label]))
    return Split(pictures, np.array(labels, dtype="int64"), [str(i) for i in range(len(labels))])
