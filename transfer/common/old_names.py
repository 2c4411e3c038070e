"""Names of earlier versions: options and keys of files that were renamed in 0.2.0."""

from __future__ import annotations

OLD_OPTIONS = {
    "depth_rate": "layer_decay",
    "look_alikes": "near_duplicates",
    "thaw": "gradual_unfreezing",
}
"""Options of version 0.1 and their names today."""
