"""Where caches are kept from run to run."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_folder() -> Path:
    """Say where things are kept from run to run."""
    from platformdirs import user_cache_path

    named = os.environ.get("TRANSFER_CACHE")
    # Path.expanduser would stop at a user who does not exist.
    return (
        Path(os.path.expanduser(named))
        if named
        else user_cache_path("transfer", appauthor=False) / "features"
    )
