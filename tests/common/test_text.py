"""Durations and counts in text."""

import pytest

from transfer.common.text import format_duration, plural


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (8.2, "8.2 s"), (9.97, "10 s"), (59.4, "59 s"), (59.6, "1.0 min"), (100, "1.7 min"),
     (700, "12 min"), (5390, "90 min"), (5400, "1.5 h"), (4e6, "1,111 h"), (None, "unknown")],
)  # fmt: skip
def test_durations_are_rounded_to_a_readable_unit(seconds, text):
    assert format_duration(seconds) == text


def test_counts_have_a_plural():
    assert [plural(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
