"""Names in the run files of version 0.1, and the names that replaced them in version 0.2."""

from __future__ import annotations

from typing import Any

OLD_OPTIONS = {"look_alikes": "near_duplicates", "depth_rate": "layer_decay", "thaw": "gradual_unfreezing"}
"""Options in `config.yaml`."""

OLD_KEYS = {
    "regularisation": "regularization",
    "pictures": "images",
    "num_pictures": "num_images",
    "num_looked": "num_sampled",
    "seconds_per_picture": "seconds_per_image",
    "suspected_labels": "label_issues",
    "deed": "action",
    "source": "basis",
    "pixels": "pixel_accuracy",
    "share": "fraction",
}
"""Keys in the JSON files."""

_CLASS_COUNTS = "images_per_class"  # its keys are class names, which may be equal to an old key


def renamed(values: Any) -> Any:
    """Return parsed JSON with the new names of old keys, at any depth."""
    if isinstance(values, list):
        return [renamed(value) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        OLD_KEYS.get(key, key): value if key == _CLASS_COUNTS else renamed(value)
        for key, value in values.items()
    }
