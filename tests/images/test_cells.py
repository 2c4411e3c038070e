"""Cells of a list: missing values, splits, equal numbers, and labels of several classes."""

import pytest

from transfer.images.cells import (
    is_nan,
    known,
    merged_numbers,
    number_in,
    several_labels,
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


@pytest.mark.parametrize(
    "label",
    [
        "scab rust",
        "scab|rust",
        "scab,rust",
        "rust; scab",
        "scab/rust",
        "scab + rust",
        "scab & rust",
        "scab and rust",
    ],
)
def test_combinations_of_other_classes_are_found(label):
    assert several_labels(["scab", "rust", label]) == [label]


@pytest.mark.parametrize(
    "label", ["['scab', 'rust']", '["scab","rust"]', "{scab,rust}", "('a', 'b')", "['a' 'b']"]
)
def test_lists_are_several_labels_without_other_evidence(label):
    assert several_labels(["healthy", label]) == [label]


def test_parts_of_other_combinations_are_evidence():
    assert several_labels(["A|B", "B|C", "A", "C"]) == ["A|B", "B|C"]


@pytest.mark.parametrize(
    "labels",
    [
        ["golden", "golden retriever", "poodle"],
        ["hot dog", "cold", "pizza"],
        ["dog, small", "dog, large", "cat, small", "cat, large"],
        ["tench, Tinca tinca", "crane, bird", "crane, machine"],
        ["AC/DC", "rock/pop"],
        ["['scab']", "['rust']"],
        ["Felis (cat, domestic)", "cat"],
    ],
)
def test_names_of_one_class_are_not_combinations(labels):
    assert several_labels(labels) == []


def test_numbers_in_cells():
    assert [number_in(text) for text in ("1", "0.5", "x", "")] == [1.0, 0.5, None, None]
