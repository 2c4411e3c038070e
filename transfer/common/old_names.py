"""Names in the files of runs that version 0.1 wrote, with the names that replaced them in version 0.2."""

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
}
"""Keys in the JSON files."""

OLD_KINDS = {"few-pictures": "few-images", "pictures left out": "images left out"}
"""Values of `kind` and `source` in `advice.json`."""

_NAMED_BY_USERS = {"images_per_class"}  # its keys are class names, which may look like an old key


def renamed(values: Any) -> Any:
    """Return a copy of parsed JSON in which old keys and kinds have their new names, at any depth."""
    if isinstance(values, list):
        return [renamed(value) for value in values]
    if not isinstance(values, dict):
        return values
    result: dict[str, Any] = {}
    for old, value in values.items():
        key: str = OLD_KEYS.get(old) or old
        if key in ("kind", "source"):
            result[key] = OLD_KINDS.get(value, value) if isinstance(value, str) else value
        else:
            result[key] = value if key in _NAMED_BY_USERS else renamed(value)
    return result
