"""Messages about unknown names: the nearest first."""

import pytest

from transfer.common.errors import InputError, nearest, unknown


def test_the_nearest_names_are_suggested_best_first():
    assert nearest("mobilenet_v2", ["ResNet50", "MobileNet", "MobileNetV2"]) == ["MobileNetV2", "MobileNet"]


def test_letter_case_does_not_matter_and_loses_no_name():
    assert nearest("CATS", ["cats", "Cats", "dogs"]) == ["cats", "Cats"]


def test_nothing_alike_suggests_nothing():
    assert nearest("zebra", ["cut", "seed"]) == []
    assert nearest("zebra", []) == []


def test_no_more_names_than_asked_for():
    assert len(nearest("block1", [f"block{i}" for i in range(20)])) == 5
    assert nearest("block7", [f"block{i}" for i in range(20)], most=1) == ["block7"]


def test_unknown_names_are_shown_with_the_nearest():
    error = unknown("class", "cat", ["dogs", "cats"], hint="It is in test.")
    assert str(error) == "Unknown class 'cat'. Did you mean 'cats'? It is in test."


def test_unknown_names_without_a_neighbour_are_shown_with_all_or_the_first_dozen():
    assert str(unknown("case", "zzz", ["a1", "b1"])) == "Unknown case 'zzz'. Expected one of 'a1', 'b1'."
    many = str(unknown("layer", "zzz", [f"block{i}" for i in range(30)]))
    assert many.endswith("'block11', ....") and "block12" not in many
    assert str(unknown("class", "zzz", [])) == "Unknown class 'zzz'. There are none."


@pytest.mark.parametrize("name", [3, None, ("a",)])
def test_names_of_any_type_can_be_unknown(name):
    assert repr(name) in str(unknown("option", name, ["seed"]))


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)
