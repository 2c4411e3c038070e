"""Ordered classes: numbers in the names set the order, or the user does."""

import numpy as np
import pytest
from helpers.images import write_image

from transfer.common.errors import InputError
from transfer.images.class_order import checked_order, looks_ordered, ordered_classes
from transfer.images.datasets import load_data


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1", "10", "2"], ["1", "2", "10"]),
        (["0-9", "10-19", "100+", "20-99"], ["0-9", "10-19", "20-99", "100+"]),
        (["grade 10", "grade 2"], ["grade 2", "grade 10"]),
        (["over 19", "10-19", "<10"], ["<10", "10-19", "over 19"]),
        (["0", "-5", "2.5", "-10"], ["-10", "-5", "0", "2.5"]),
    ],
)
def test_numbers_in_the_names_order_the_classes(names, expected):
    assert ordered_classes(names, None) == expected


def test_a_given_order_wins():
    assert ordered_classes(["1", "2", "3"], ["3", "1", "2"]) == ["3", "1", "2"]


@pytest.mark.parametrize(
    ("names", "order", "message"),
    [
        (
            ["high", "low", "medium"],
            None,
            "without a number: high, low, medium. State .*--class-order high,low",
        ),
        (["healthy", "grade 1", "grade 2"], None, "without a number: healthy"),
        (["a1", "b1", "c2"], None, "with the same numbers: a1, b1"),
        (["high", "low"], ["low", "hihg"], "Unknown class 'hihg'. Did you mean 'high'"),
        (["high", "low", "medium"], ["low", "high"], "none of: medium"),
        (["high", "low"], ["low", "low", "high"], "a class more than once"),
    ],
)
def test_an_order_that_is_unknown_is_an_error(names, order, message):
    with pytest.raises(InputError, match=message):
        ordered_classes(names, order)


def test_an_order_needs_the_task():
    assert checked_order("low, high", "ordinal") == ["low", "high"]
    with pytest.raises(InputError, match=r"only with the task ordinal\. Received the task auto"):
        checked_order(["low", "high"], "auto")
    with pytest.raises(InputError, match=r"Unknown task 'ordnal'\. Did you mean 'ordinal'"):
        load_data("emoji", task="ordnal")


def test_numbers_and_ranges_look_ordered():
    assert looks_ordered(["0", "1", "10"]) and looks_ordered(["0-9", "10 to 19", ">20", "100+", "-1"])
    assert not looks_ordered(["grade 1", "grade 2"]) and not looks_ordered(["1", "other"])


def test_labels_are_ranks_in_all_splits(tmp_path):
    for name, value in {"2": 40, "10": 120, "1": 220}.items():
        for i in range(10):
            write_image(tmp_path / name / f"{i}.png", (value, value, value), seed=value + i)
    plain, data = load_data(tmp_path), load_data(tmp_path, task="ordinal")
    assert plain.class_names == ("1", "10", "2") and not plain.ordered
    assert data.class_names == ("1", "2", "10") and data.ordered
    for part in data.splits.values():
        named = [name.rsplit("/")[-2] for name in part.names]
        assert np.array(data.class_names)[part.labels].tolist() == named
    other = load_data(tmp_path, task="ordinal", class_order=["10", "1", "2"])
    assert other.class_names == ("10", "1", "2") and other.options.class_order == "10,1,2"
    assert {*plain.test.names} == {*data.test.names} == {*other.test.names}
