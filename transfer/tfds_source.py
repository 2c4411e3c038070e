"""Pictures of `tensorflow_datasets`, read as encoded bytes and never waited for in vain."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from transfer.errors import InputError, nearest
from transfer.splitting import Split

log = logging.getLogger(__name__)

_HOST = "https://storage.googleapis.com"
_PATIENCE = 5.0  # seconds
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
        The pictures per split, encoded, in memory; and the class names. Pictures without a label, as some
        test splits have them, are left out.

    Raises:
        InputError: unknown name, no pictures with labels in it, or not prepared and no way to do so.

    Example:
        read_tfds("tf_flowers")
    """
    import tensorflow_datasets as tfds

    builder = _builder(tfds, name, data_dir)
    image, label = _keys(tfds, builder, name)
    if not builder.is_prepared():
        _prepare(builder, name, data_dir, download)
    parts = {}
    for split in builder.info.splits:
        if split not in _SPLITS:
            continue
        rows = tfds.as_numpy(
            builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
        )
        part = _collect(rows, image, label, split)
        if len(part):
            parts[_SPLITS[split]] = part
        else:
            log.warning("Ignored the split %r of tfds:%s: its pictures have no labels.", split, name)
    if "train" not in parts:
        raise InputError(
            f"Expected a split 'train' with labels in tfds:{name}. Received: {', '.join(builder.info.splits)}. "
            "Choose another data set, or another version of it."
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
    # Malformed names, unknown configs and versions, missing packages, hosts out of reach: all kinds.
    except Exception as error:
        raise InputError(
            f"tensorflow_datasets cannot open 'tfds:{name}': {_short(error)}. Expected "
            "tfds:NAME[/CONFIG][:VERSION], see tensorflow.org/datasets/catalog."
        ) from error


def _keys(tfds: Any, builder: Any, name: str) -> tuple[str, str]:
    """Name the features that hold the picture and its label."""
    keys = builder.info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (builder.info.features[key] for key in keys)
        # Pictures of floats are stored as bytes that only tensorflow_datasets can read.
        if (
            isinstance(image, tfds.features.Image)
            and np.dtype(image.np_dtype) in (np.uint8, np.uint16)
            and isinstance(label, tfds.features.ClassLabel)
        ):
            return keys
    raise InputError(
        f"Expected pictures with one label each. Received: tfds:{name} with {keys or 'no labels'}. Choose a data "
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
        raise InputError(f"tensorflow_datasets cannot prepare 'tfds:{name}': {_short(error)}.") from error


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


def _collect(rows: Any, image: str, label: str, split: str) -> Split:
    pictures, labels = [], []
    for row in rows:
        if row[label] >= 0:
            pictures.append(bytes(row[image]))
            labels.append(int(row[label]))
    return Split(pictures, np.array(labels, dtype="int64"), [f"{split}/{i}" for i in range(len(labels))])


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " ..."
