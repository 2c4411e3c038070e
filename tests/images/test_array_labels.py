"""Arrays and data sets with several labels or a number per image."""

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.images.array_source import read_arrays
from transfer.images.datasets import load_data

COLUMNS = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])


def noise(count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype("uint8")


def found_labels(source, **options) -> tuple[list[str], list[list[int]]]:
    found = read_arrays(source, **options)
    assert found.task == "multi" and found.parts["train"].labels.dtype == np.int8
    return found.class_names, found.parts["train"].labels.tolist()


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool"])
def test_columns_of_0_and_1_are_several_labels(dtype):
    names, columns = found_labels((noise(), COLUMNS.astype(dtype)), class_names=["a", "b", "c"])
    assert names == ["a", "b", "c"] and columns == COLUMNS.tolist()
    with pytest.raises(InputError, match=r"labels of shape \(4, 3\) with other values.*task=\"multi\""):
        read_arrays((noise(), COLUMNS), task="single")
    with pytest.raises(InputError, match="2 names, and labels: 3 in train"):
        read_arrays((noise(), COLUMNS), class_names=["a", "b"])


@pytest.mark.parametrize(
    "labels",
    [
        [["a", "b"], [], ["b", "c"], ["a"]],
        [("a", "b"), (), ("c", "b", "b"), ("a",)],
        [{"a", "b"}, set(), {"c", "b"}, {"a"}],
        np.array([["a", "b"], [], ["b", "c"], ["a"]], object),
        [np.array(["b", " a"]), np.array([], str), np.array(["c", "b"]), np.array(["a"])],
    ],
    ids=["lists", "tuples", "sets", "array", "arrays"],
)
def test_lists_and_sets_of_names_are_several_labels(labels):
    assert found_labels((noise(), labels)) == (["a", "b", "c"], COLUMNS.tolist())
    names, columns = found_labels((noise(), labels), class_names=["d", "c", "b", "a"])
    assert names == ["d", "c", "b", "a"] and np.array(columns)[:, :0:-1].tolist() == COLUMNS.tolist()


def test_lists_of_numbers_are_positions_in_the_class_names():
    labels = [[0, 1], [], [1, 2], [0]]
    assert found_labels((noise(), labels)) == (["0", "1", "2"], COLUMNS.tolist())
    assert found_labels((noise(), labels), class_names=["x", "y", "z"])[0] == ["x", "y", "z"]


def test_names_of_all_splits_are_the_columns():
    found = read_arrays(((noise(), [["b"], ["a", "b"], [], ["a"]]), (noise(2), [["c"], []])))
    assert found.class_names == ["a", "b", "c"]
    assert found.parts["test"].labels.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_one_name_in_each_list_is_one_class():
    found = read_arrays((noise(), [["a"], ["b"], ["b"], ["a"]]))
    assert found.task == "single" and found.parts["train"].labels.tolist() == [0, 1, 1, 0]
    names, columns = found_labels((noise(), [["a"], ["b"], ["b"], ["a"]]), task="multi")
    assert names == ["a", "b"] and columns == [[1, 0], [0, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([["a"], ["b", 1], [], []], {}, "Received names and numbers"),
        ([["a"], ["b", " "], [], []], {}, "Received: ' '"),
        ([["a"], ["b", None], [], []], {}, "Received: None"),
        ([["a"], ["b"], [], []], {"task": "single"}, "for the task single. Received a list of labels"),
        ([["a"], ["b"], [], []], {"class_names": ["a", "c"]}, "Unknown class 'b'"),
        ([[0], [3, 1], [], []], {"class_names": ["a", "c"]}, "Unknown class '3'"),
    ],
)
def test_invalid_lists_of_labels_are_refused(labels, options, message):
    with pytest.raises(InputError, match=message):
        read_arrays((noise(), labels), **options)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_data_sets_hold_columns_or_numbers(batch):
    import tensorflow as tf

    def dataset(labels):
        whole = tf.data.Dataset.from_tensor_slices((noise(), labels))
        return whole.batch(batch) if batch else whole

    assert found_labels(dataset(COLUMNS.astype("float32"))) == (["0", "1", "2"], COLUMNS.tolist())
    found = read_arrays(dataset(np.array([0.5, -2, 3, 1e-3])), task="regression")
    assert found.task == "regression" and found.parts["train"].labels.tolist() == [0.5, -2, 3, 1e-3]


def test_numbers_of_a_regression_are_kept_as_they_are():
    values = np.array([30, 41.5, -7, 0.1])
    found = read_arrays((noise(), values), ["age"], "regression")
    assert found.class_names == ["age"] and found.parts["train"].labels.tolist() == values.tolist()
    with pytest.raises(InputError, match=r"NaN or infinity in 1 of 4 labels"):
        read_arrays((noise(), np.array([1, np.nan, 2, 3])), task="regression")
    with pytest.raises(InputError, match='use task="regression"'):
        read_arrays((noise(), values))


def test_splits_of_loaded_data_keep_their_task():
    columns = np.tile(COLUMNS, (10, 1))
    data = load_data((noise(40), columns), class_names=["a", "b", "c"], near_duplicates=False)
    again = load_data({"train": data.train, "test": data.test}, near_duplicates=False)
    assert again.task == "multi" and again.class_names == ("a", "b", "c")
    assert np.array_equal(again.test.labels, data.test.labels)
    numbers = load_data((noise(40), np.arange(40.0)), task="regression", class_names=["age"])
    again = load_data({"train": numbers.train, "test": numbers.test}, task="regression")
    assert again.class_names == ("age",) and again.test.labels.tolist() == numbers.test.labels.tolist()
