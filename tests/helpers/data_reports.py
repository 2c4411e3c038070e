"""Data reports for tests."""

from __future__ import annotations

from transfer.images.data_report import DataReport, DuplicateSet


def report(**changes) -> DataReport:
    """Return a report without findings, with some values replaced."""
    values = {
        "name": "photos", "class_names": ("cat", "dog"), "counts": {"train": (10, 8), "val": (1, 1), "test": (2, 2)},
        "total": 24, "skipped": (), "ignored": (), "formats": {"JPEG": 24}, "modes": {"RGB": 20, "L": 4}, "rotated": 0,
        "widths": (10, 20, 4000), "heights": (11, 21, 3000), "duplicates": (), "groups": 0, "shared_groups": (),
        "outliers": (), "blank": (), "format_leak": "", "small_classes": (),
    }  # fmt: skip
    return DataReport(**{**values, **changes})


def duplicates(*names, classes=None, splits=None, exact=True):
    """Return a set of duplicates, by default of one class in one split."""
    return DuplicateSet(
        names, tuple(classes or ["cat"] * len(names)), tuple(splits or ["train"] * len(names)), exact
    )
