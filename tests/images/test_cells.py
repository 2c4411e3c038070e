"""Cells of a list: missing values, splits and equal numbers."""

import pytest

from transfer.images.cells import (
    is_nan,
    known,
    merged_numbers,
    number_in,
    split_by_flags,
    split_in,
)


@pytest.mark.parametrize("text", ["", " ", "nan", "NaN", "None", "NULL", "n/a", "#N/A", "-", "?", "Unknown"])
def test_words_for_missing_values_are_empty(text):
    assert known(text) == "" and split_in(text) == ""


def test_other_cells_are_known_without_spaces():
    assert known(" p1 ") == "p1" and known("0") == "0"


@pytest.mark.parametrize(
    ("text", "missing"), [("nan", True), (" NaN", True), ("None", False), ("NA", False), ("naan", False)]
)
def test_a_label_is_missing_only_if_no_class_has_its_name(text, missing):
    assert is_nan(text) == missing


@pytest.mark.parametrize(
    ("text", "split"),
    [("Training", "train"), ("PrivateTest", "test"), ("val_set", "val"), ("fold 3", None), ("0", None)],
)
def test_words_of_splits(text, split):
    assert split_in(text) == split


@pytest.mark.parametrize(
    ("marked", "split"),
    [
        ({"val": True}, "val"),
        ({"val": False}, "train"),
        ({"train": False}, "test"),
        ({"val": False, "test": False}, "train"),
        ({"val": False, "test": True}, "test"),
        ({"val": True, "test": True}, None),
        ({"train": False, "val": False}, None),
    ],
)
def test_flags_give_a_split_or_contradict_each_other(marked, split):
    assert split_by_flags(marked) == split


def test_numbers_are_merged_only_with_their_whole_form():
    assert merged_numbers(["0", "0.0", "1.0", "1", "007", "7"]) == {
        **{"0": "0", "0.0": "0", "1.0": "1", "1": "1"},
        **{"007": "007", "7": "7"},
    }
    assert merged_numbers(["0.0", "1.0"]) == {
        "0.0": "0.0",
        "1.0": "1.0",
    }  # as in the split files of older runs


def test_numbers_in_cells():
    assert [number_in(text) for text in ("1", "0.5", "x", "")] == [1.0, 0.5, None, None]
