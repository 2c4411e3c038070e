"""Choose the feature store of a network and its preprocessing, and identify images by their content."""

from __future__ import annotations

import atexit
import hashlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transfer.common.errors import InputError
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.feature_store import FeatureStore
from transfer.images.pixel_range import PixelRange
from transfer.images.splitting import Split

if TYPE_CHECKING:
    from transfer.frozen.engines import Engine

log = logging.getLogger(__name__)

_DECODER = "2"  # change it when the same file is decoded to other pixels


def open_store(
    run: Engine,
    *,
    image_size: tuple[int, int],
    resize: str,
    dtype: str,
    cache: FeatureCache | None,
    pixel_range: PixelRange | None = None,
) -> FeatureStore:
    """Open the store of a network and its preprocessing; a temporary one if the cache is not writable."""
    about = {
        "network": run.model.name,
        "images": f"{image_size[0]}x{image_size[1]} {resize}" + (f", {pixel_range}" if pixel_range else ""),
        "precision": run.precision if run.precision in ("bfloat16", "int8") else "float32",
    }
    parts = [run.fingerprint, *about.values(), dtype, _DECODER]
    if run.precision == "int8" and run.calibration is not None:  # other images set other ranges
        parts.append(run.calibration.key)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    shape = tuple(run.model.output_shape[1:])
    try:
        return (cache or FeatureCache()).store(key, shape=shape, dtype=dtype, about=about)
    except InputError as error:
        if cache is not None:
            raise
        log.warning("Features are not cached for later runs: %s", error)
        try:
            folder = tempfile.mkdtemp(prefix="transfer-features-")
        except OSError:  # no temporary folder is writable either
            raise error from None
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return FeatureCache(Path(folder)).store(key, shape=shape, dtype=dtype, about=about)


def digests_of(split: Split) -> list[str]:
    """Return the SHA-256 of each image's content."""
    return list(split.digests) or [_digest(image) for image in split.images]


def _digest(image: str | Path | bytes | np.ndarray) -> str:
    """Return the same digest as the check of the data."""
    if isinstance(image, np.ndarray):
        image = image.tobytes()
    elif not isinstance(image, bytes):
        image = Path(image).read_bytes()
    return hashlib.sha256(image).hexdigest()
