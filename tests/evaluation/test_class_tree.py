"""Coarse classes get the summed probability of their fine classes; invalid trees are rejected."""

import json

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.evaluation.class_tree import merge, read_tree, training_classes
from transfer.evaluation.evaluation import Evaluation

TREE = {
    "ant": "insect",
    "bee": "insect",
    "cat": "mammal",
    "insect": "animal",
    "mammal": "animal",
    "oak": "plant",
}


def fine():
    probabilities = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.5, 0.0]])
    labels, names = np.array([0, 3, 2]), ("1", "2", "3")
    return Evaluation(("ant", "bee", "cat", "oak"), labels, probabilities, names, ("p", "p", "q"))


def test_probabilities_of_descendants_are_summed_over_all_levels():
    coarse = merge(fine(), TREE)
    assert coarse.class_names == ("animal", "plant") and coarse.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(coarse.probabilities, [[0.9, 0.1], [0.6, 0.4], [1.0, 0.0]])
    assert coarse.names == fine().names and coarse.groups == fine().groups
    assert coarse.accuracy == pytest.approx(2 / 3)


def test_merging_stops_at_the_given_classes():
    coarse = merge(fine(), TREE, to=["insect", "mammal", "plant"])
    assert coarse.class_names == ("insect", "mammal", "plant") and coarse.labels.tolist() == [0, 2, 1]
    np.testing.assert_allclose(coarse.probabilities.sum(axis=1), 1)
    with pytest.raises(InputError, match="'oak', with the ancestors 'plant'"):
        merge(fine(), TREE, to=["insect", "mammal"])
    with pytest.raises(InputError, match="Did you mean 'mammal'"):
        merge(fine(), TREE, to=["insect", "mamal", "plant"])


def test_a_class_may_be_its_own_parent_or_have_children():
    coarse = merge(fine(), {"ant": "bee", "bee": "bee", "cat": "cat", "oak": "oak"})
    assert coarse.class_names == ("bee", "cat", "oak") and coarse.probabilities[0, 0] == pytest.approx(0.7)
    below = {**TREE, "red ant": "ant"}  # a class of the tree that is part of a training class
    np.testing.assert_array_equal(merge(fine(), below).probabilities, merge(fine(), TREE).probabilities)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({**TREE, "bees": "wing"}, "Unknown class 'bees'. Did you mean 'bee'"),
        ({name: up for name, up in TREE.items() if name != "oak"}, "has no parent for 'oak'"),
        ({**TREE, "animal": "insect"}, "cycle: 'insect' -> 'animal' -> 'insect'"),
        ({**TREE, "plant": "animal"}, "leaves 'animal'"),
    ],
)
def test_trees_that_do_not_fit_the_classes_are_rejected(tree, message):
    with pytest.raises(InputError, match=message):
        merge(fine(), tree)


def test_training_classes_are_the_largest_small_subtrees():
    counts = {"ant": 10, "bee": 20, "cat": 50, "oak": 40}
    whole = training_classes(counts, TREE, most=80)
    assert whole == {"ant": "animal", "bee": "animal", "cat": "animal", "oak": "plant"}
    parts = training_classes(counts, TREE, most=45)
    assert parts == {"ant": "insect", "bee": "insect", "cat": "cat", "oak": "plant"}
    assert training_classes(counts, TREE, most=1) == {name: name for name in counts}
    with pytest.raises(InputError, match="`most` of 1"):
        training_classes(counts, TREE, most=0)


def test_training_classes_are_merged_with_the_same_tree():
    trained = Evaluation(
        ("cat", "insect", "plant"), np.array([0, 1]), np.array([[0.5, 0.3, 0.2]] * 2), ("1", "2")
    )
    assert merge(trained, TREE).probabilities[0].tolist() == pytest.approx([0.8, 0.2])


def test_trees_are_read_from_csv_yaml_and_json(tmp_path):
    (tmp_path / "tree.csv").write_text(
        "Coarse, fine ,note\n" + "".join(f"{up}, {name},\n\n" for name, up in TREE.items()),
        encoding="utf-8-sig",
    )
    (tmp_path / "tree.yaml").write_text("".join(f"{name}: {up}\n" for name, up in TREE.items()))
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    for name in ("tree.csv", "tree.yaml", "tree.json"):
        assert read_tree(tmp_path / name) == TREE


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "class,parent\nant,insect\n", "columns fine and coarse .* Received: class, parent"),
        ("a.csv", "", "Received: nothing"),
        ("a.csv", "fine,coarse\nant,\n", "line 2"),
        ("a.csv", "fine,coarse\nant,insect\nant,mammal\n", "line 3. Received: 'insect' and 'mammal'"),
        ("a.yaml", "- ant\n", "'fine: coarse' lines"),
        ("a.yaml", "ant: 3\n", "quotes around numbers"),
        ("a.json", "{", "Cannot read the tree"),
    ],
)
def test_files_without_a_tree_are_rejected(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_tree(tmp_path / name)
    with pytest.raises(InputError, match="No such file"):
        read_tree(tmp_path / "gone.csv")
