"""Errors about unknown names, and their suggestions."""

import pytest

from transfer.common.errors import InputError, nearest, unknown


def test_the_nearest_names_are_suggested_best_first():
    assert nearest("mobilenet_v2", ["ResNet50", "MobileNet", "MobileNetV2"]) == ["MobileNetV2", "MobileNet"]


def test_letter_case_does_not_matter_and_loses_no_name():
    assert nearest("CATS", ["cats", "Cats", "dogs"]) == ["cats", "Cats"]


def test_without_similar_names_there_is_no_suggestion():
    assert nearest("zebra", ["cut", "seed"]) == []
    assert nearest("zebra", []) == []


def test_at_most_the_requested_number_of_names_is_suggested():
    assert len(nearest("block1", [f"block{i}" for i in range(20)])) == 5
    assert nearest("block7", [f"block{i}" for i in range(20)], most=1) == ["block7"]


def test_an_unknown_name_is_reported_with_similar_names():
    error = unknown("class", "cat", ["dogs", "cats"], hint="It is in test.")
    assert str(error) == "Unknown class 'cat'. Did you mean 'cats'? It is in test."


def test_without_similar_names_the_first_twelve_valid_names_are_listed():
    assert str(unknown("case", "zzz", ["a1", "b1"])) == "Unknown case 'zzz'. Expected one of 'a1', 'b1'."
    many = str(unknown("layer", "zzz", [f"block{i}" for i in range(30)]))
    assert many.endswith("'block11', ....") and "block12" not in many
    assert str(unknown("class", "zzz", [])) == "Unknown class 'zzz'. There are none."


@pytest.mark.parametrize("name", [3, None, ("a",)])
def test_a_name_of_any_type_can_be_reported(name):
    assert repr(name) in str(unknown("option", name, ["seed"]))


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)
