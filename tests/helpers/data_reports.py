"""Data reports with the values that a test asks for."""

from __future__ import annotations

from transfer.images.data_report import DataReport, DuplicateSet


def report(**changes) -> DataReport:
    values = {
        "name": "photos", "class_names": ("cat", "dog"), "counts": {"train": (10, 8), "val": (1, 1), "test": (2, 2)},
        "total": 24, "skipped": (), "ignored": (), "formats": {"JPEG": 24}, "modes": {"RGB": 20, "L": 4}, "turned": 0,
        "widths": (10, 20, 4000), "heights": (11, 21, 3000), "same": (), "groups": 0, "split_groups": (), "odd": (),
        "blank": (), "format_tells": "", "few": (),
    }  # fmt: skip
    return DataReport(**{**values, **changes})


def same(*names, classes=None, splits=None, exact=True):
    return DuplicateSet(names, tuple(classes or ["cat"] * len(names)), tuple(splits or ["train"] * len(names)), exact)
