"""Group columns of a list are combined or left out."""

import pytest

from transfer.common.errors import InputError
from transfer.images.list_groups import GroupColumn, combine


def groups(*columns, chosen=False):
    found, left_out = combine([GroupColumn(*one) for one in columns], chosen=chosen)
    first: dict[str, int] = {}
    return [first.setdefault(group, len(first)) if group else -1 for group in found], dict(left_out)


def test_one_column_is_used_as_it_is():
    assert combine([GroupColumn("patient", 0, ["a", "", "a"])], chosen=False) == (["a", "", "a"], [])


def test_lesions_of_patients_are_combined_with_them():
    patients, lesions = ("patient", 0, ["p", "p", "q", "", ""]), ("lesion", 1, ["1", "2", "3", "4", "4"])
    assert groups(patients, lesions) == ([0, 0, 1, 2, 2], {})
    assert combine([GroupColumn(*patients), GroupColumn(*lesions)], chosen=False)[0][-1] == "lesion=4"


def test_numbers_that_start_again_for_each_patient_are_left_out():
    patients, sessions = ("patient", 0, ["p", "p", "q", "q"]), ("session", 1, ["1", "2", "1", "2"])
    assert groups(patients, sessions) == (
        [0, 0, 1, 1],
        {"session": "'patient' is used, which shares its values"},
    )


def test_a_study_of_several_patients_is_left_out():
    patients, studies = ("patient", 0, ["p", "q", "r"]), ("study", 1, ["1", "1", "2"])
    assert groups(patients, studies) == (
        [0, 1, 2],
        {"study": "'patient' is used, which has several values of it"},
    )


def test_columns_of_equal_rank_that_cross_are_refused_unless_they_are_chosen():
    columns = ("video", 1, ["v", "v", "w", "w"]), ("clip", 1, ["1", "2", "1", "3"])
    with pytest.raises(
        InputError, match="Use --group-column clip, or another column; video,clip combines them"
    ):
        groups(*columns)
    assert groups(*columns, chosen=True) == ([0, 0, 0, 0], {})


def test_many_households_are_combined_with_their_persons():
    persons = [str(i // 2) for i in range(60)]
    households = [str(i // 4) for i in range(60)]
    found, _ = groups(("person", 0, persons), ("household", 0, households))
    assert found == [i // 4 for i in range(60)]
    with pytest.raises(InputError, match="expected one column of groups"):  # 'group' may be a treatment
        groups(("patient", 0, persons), ("group", 0, ["control"] * 30 + ["treated"] * 30))


def test_rows_without_any_group_are_not_combined():
    assert groups(("a", 0, ["", "x", ""]), ("b", 1, ["", "", "y"]))[0] == [-1, 0, 1]
