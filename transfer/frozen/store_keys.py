"""Which shelf holds what a network makes of pictures, and what each picture is called there."""

from __future__ import annotations

import atexit
import hashlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.errors import InputError
from transfer.frozen.engines import Engine
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.feature_store import Shelf
from transfer.images.splitting import Split
from transfer.networks import graphs

log = logging.getLogger(__name__)

_DECODER = "1"  # another number where the same file would give other pixels


def open_shelf(
    run: Engine, *, image_size: tuple[int, int], resize: str, dtype: str, cache: FeatureCache | None
) -> Shelf:
    """Open the shelf of a network and a way to see pictures, with what is on it."""
    about = {
        "network": run.model.name,
        "pictures": f"{image_size[0]}x{image_size[1]} {resize}",
        "precision": "bfloat16" if run.name.endswith("bfloat16") else "float32",
    }
    parts = [graphs.fingerprint(run.model), *about.values(), dtype, _DECODER]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return _shelf(cache, key, shape=tuple(run.model.output_shape[1:]), dtype=dtype, about=about)


def digests_of(split: Split) -> list[str]:
    """Say what each picture is by its content."""
    return list(split.digests) or [_digest(picture) for picture in split.pictures]


def _shelf(cache: FeatureCache | None, key: str, **options: Any) -> Shelf:
    """Open the cache; where the user's own cannot be written to, a temporary one."""
    try:
        return (cache or FeatureCache()).shelf(key, **options)
    except InputError as error:
        if cache is not None:
            raise
        log.warning("Features are not kept for the next run: %s", error)
        folder = tempfile.mkdtemp(prefix="transfer-features-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return FeatureCache(Path(folder)).shelf(key, **options)


def _digest(picture: Any) -> str:
    """Say what a picture is by its content, as the check of the data does."""
    if isinstance(picture, np.ndarray):
        picture = picture.tobytes()
    elif not isinstance(picture, bytes):
        with open(picture, "rb") as file:
            picture = file.read()
    return hashlib.sha256(picture).hexdigest()
