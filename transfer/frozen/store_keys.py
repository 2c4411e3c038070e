"""Which store holds what a network makes of images, and what each image is called there."""

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
from transfer.frozen.feature_store import FeatureStore
from transfer.images.splitting import Split
from transfer.networks import graphs

log = logging.getLogger(__name__)

_DECODER = "1"  # another number where the same file would give other pixels


def open_store(
    run: Engine, *, image_size: tuple[int, int], resize: str, dtype: str, cache: FeatureCache | None
) -> FeatureStore:
    """Open the store of a network and a way to see images, with what is on it."""
    about = {
        "network": run.model.name,
        "images": f"{image_size[0]}x{image_size[1]} {resize}",
        "precision": "bfloat16" if run.name.endswith("bfloat16") else "float32",
    }
    parts = [graphs.fingerprint(run.model), *about.values(), dtype, _DECODER]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return _store(cache, key, shape=tuple(run.model.output_shape[1:]), dtype=dtype, about=about)


def digests_of(split: Split) -> list[str]:
    """Say what each image is by its content."""
    return list(split.digests) or [_digest(image) for image in split.images]


def _store(cache: FeatureCache | None, key: str, **options: Any) -> FeatureStore:
    """Open the cache; where the user's own cannot be written to, a temporary one."""
    try:
        return (cache or FeatureCache()).store(key, **options)
    except InputError as error:
        if cache is not None:
            raise
        log.warning("Features are not kept for the next run: %s", error)
        folder = tempfile.mkdtemp(prefix="transfer-features-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return FeatureCache(Path(folder)).store(key, **options)


def _digest(image: Any) -> str:
    """Say what an image is by its content, as the check of the data does."""
    if isinstance(image, np.ndarray):
        image = image.tobytes()
    elif not isinstance(image, bytes):
        with open(image, "rb") as file:
            image = file.read()
    return hashlib.sha256(image).hexdigest()
