"""Several labels in the cells of a list: how they are found and separated."""

import pytest

from transfer.images.label_sets import label_sets, several_labels


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


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ('["a b", "c, d"]', ("a b", "c, d")),
        (r'["caf\u00e9", "x"]', ("café", "x")),
        ("['a', 'b', 'a']", ("a", "b")),
        ("['it\\'s', \"b's\"]", ("it's", "b's")),
        ("['a' 'b']", ("a", "b")),
        ("{a, b c}", ("a", "b c")),
        ("('a',)", ("a",)),
        ("[1, 2]", ("1", "2")),
        ("[]", ()),
        ("['a']", ("a",)),
        ("(a)", ("(a)",)),
    ],
)
def test_lists_of_json_python_and_numpy(cell, labels):
    sets, separator = label_sets([(cell,), ("['x', 'y']",)], "auto", in_columns=False)
    assert sets == [labels, ("x", "y")] and separator == ""


def test_words_separate_only_where_all_parts_are_labels():
    cells = ["scab", "rust", "scab rust", "scab + rust", "powdery mildew"]
    sets, _ = label_sets([(cell,) for cell in cells], "auto", in_columns=False)
    assert sets == [("scab",), ("rust",), ("scab", "rust"), ("scab", "rust"), ("powdery mildew",)]


def test_one_class_in_each_cell_gives_no_sets():
    assert label_sets([("a",), ("b",)], "multi", in_columns=False) is None
    assert label_sets([("a|b",), ("a",), ("b",)], "single", in_columns=False) is None
    assert label_sets([("A",), ("B",)], "auto", in_columns=True) is None


@pytest.mark.parametrize(
    ("cells", "several"),
    [
        (["a|b", "a|c", "b|c", "a|b|c"], True),
        (["bold|sans|A", "bold|serif|A", "sans|A", "sans|B", "serif|B", "bold|sans|B"], True),
        (["apple|scab", "apple|rust", "pear|scab"], False),  # four parts for three labels: names of classes
        (["Paris, France", "Lyon, France", "Rome, Italy"], False),
    ],
)
def test_cells_that_combine_few_parts_are_several_labels(cells, several):
    found = label_sets([(cell,) for cell in cells], "auto", in_columns=False)
    assert (found is not None) == several
    assert label_sets([(cell,) for cell in cells], "single", in_columns=False) is None


def test_none_among_other_labels_is_no_label():
    sets, separator = label_sets([("none|blue",), ("none",), ("blue|red",)], "multi", in_columns=False)
    assert (sets, separator) == ([("blue",), (), ("blue", "red")], "|")
