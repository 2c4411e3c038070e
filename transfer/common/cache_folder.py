"""The folder of the caches that later runs use again."""

from __future__ import annotations

import os
from pathlib import Path

from transfer.common.errors import InputError
from transfer.common.files import disk_reason


def default_cache_folder() -> Path:
    """Return the folder in `TRANSFER_CACHE`, or else the user's cache folder of this system."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("TRANSFER_CACHE")
    if chosen:
        return Path(
            os.path.expanduser(chosen)
        )  # Path.expanduser raises an error for a user who does not exist
    return user_cache_path("transfer", appauthor=False) / "features"


def not_deleted(error: OSError) -> InputError:
    """Return the error for a file of a cache that cannot be deleted."""
    return InputError(
        f"Cannot delete {str(error.filename)!r}: {disk_reason(error)}. Ask its owner to delete it, or set the "
        "environment variable TRANSFER_CACHE to a folder of your own."
    )
