"""Splits become batches: decoded once, shuffled anew, in the order of the split where nothing trains."""

import os
import subprocess
import sys

import numpy as np
import pytest

from transfer import pipeline
from transfer.datasets import load_data
from transfer.errors import InputError
from transfer.pictures import decode
from transfer.pipeline import batch_arrays, make_dataset
from transfer.splitting import Split

SIZE = (8, 8)


def numbered(count, *, labels=None) -> Split:
    """Pictures whose red is their number and whose green is their label."""
    labels = np.arange(count) % 3 if labels is None else np.asarray(labels)
    pictures = np.zeros((count, *SIZE, 3), "uint8")
    pictures[..., 0] = np.arange(count)[:, None, None]
    pictures[..., 1] = labels[:, None, None]
    return Split(pictures, labels.astype("int64"), [str(i) for i in range(count)])


def epoch(dataset) -> tuple[list[int], list[int], list[int]]:
    """The numbers, labels and labels seen in the pictures, in the order of one pass."""
    numbers, given, seen = [], [], []
    for x, y in dataset:
        numbers += x.numpy()[:, 0, 0, 0].astype(int).tolist()
        seen += x.numpy()[:, 0, 0, 1].astype(int).tolist()
        given += y.numpy().tolist()
    return numbers, given, seen


def batches(split, **options):
    return make_dataset(split, **{"image_size": SIZE, "batch_size": 4, **options})


def test_batches_are_float_pictures_from_0_to_255_in_the_order_of_the_split(color_folder):
    part = load_data(color_folder).val
    found = list(batches(part, image_size=(10, 12)))
    assert [x.shape for x, _ in found] == [(4, 10, 12, 3), (4, 10, 12, 3), (1, 10, 12, 3)]
    assert {x.dtype.name for x, _ in found} == {"float32"} and {y.dtype.name for _, y in found} == {"int64"}
    pixels = np.concatenate([x for x, _ in found])
    assert np.array_equal(pixels, [decode(path, (10, 12)) for path in part.pictures])
    assert np.array_equal(np.concatenate([y for _, y in found]), part.labels)


def test_without_training_every_pass_is_the_same():
    dataset = batches(numbered(11), augment="light")
    for _ in range(2):
        numbers, given, _ = epoch(dataset)
        assert numbers == list(range(11)) and given == [i % 3 for i in range(11)]


@pytest.mark.parametrize("budget", [pipeline.CACHE_BUDGET, 0], ids=["memory", "disk"])
def test_training_shuffles_anew_each_epoch_and_loses_nothing(budget, monkeypatch):
    monkeypatch.setattr(pipeline, "CACHE_BUDGET", budget)
    dataset = batches(numbered(50), training=True, seed=1)
    epochs = [epoch(dataset) for _ in range(3)]
    for numbers, given, seen in epochs:
        assert sorted(numbers) == list(range(50)), "each picture once, the last small batch included"
        assert given == seen == [number % 3 for number in numbers], "labels stay with their pictures"
    orders = [numbers for numbers, _, _ in epochs]
    assert orders[0] != orders[1] != orders[2] and list(range(50)) not in orders
    again = batches(numbered(50), training=True, seed=1)
    assert [epoch(again)[0] for _ in range(3)] == orders
    assert epoch(batches(numbered(50), training=True, seed=2))[0] != orders[0]


def test_a_buffer_smaller_than_the_data_still_mixes_the_classes(monkeypatch):
    """The split is sorted by class: a buffer of a few pictures alone would show one class after the other."""
    split = numbered(240, labels=np.repeat([0, 1, 2, 3], 60))
    monkeypatch.setattr(pipeline, "SHUFFLE_BUDGET", 12 * 8 * 8 * 3)
    dataset = batches(split, training=True)
    for _ in range(2):
        numbers, given, _ = epoch(dataset)
        assert sorted(numbers) == list(range(240))
        for start in range(0, 240, 60):
            assert np.bincount(given[start : start + 60], minlength=4).min() >= 5


class Counting(list):
    """Pictures that count how often each is read."""

    def __init__(self, items):
        super().__init__(items)
        self.reads = [0] * len(items)

    def __getitem__(self, i):
        self.reads[i] += 1
        return super().__getitem__(i)


@pytest.mark.parametrize("budget", [pipeline.CACHE_BUDGET, 0], ids=["memory", "disk"])
def test_pictures_are_decoded_once(budget, monkeypatch):
    monkeypatch.setattr(pipeline, "CACHE_BUDGET", budget)
    arrays = numbered(9)
    pictures = Counting(list(arrays.pictures))
    dataset = batches(Split(pictures, arrays.labels, arrays.names), training=True, augment="light")
    for _ in range(3):
        list(dataset)
    assert pictures.reads == [1] * 9


def test_keras_trains_from_a_cache_on_disk(monkeypatch):
    import keras

    monkeypatch.setattr(pipeline, "CACHE_BUDGET", 0)
    model = keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    dataset = batches(numbered(10), training=True, augment="light")
    assert len(model.fit(dataset, epochs=3, verbose=0, shuffle=False).history["loss"]) == 3


def test_a_cache_on_disk_is_taken_away_at_the_end(tmp_path):
    code = """
import pathlib, sys, numpy as np
from transfer import pipeline, splitting
pipeline.CACHE_BUDGET = 8 * 8 * 3 * 4
for count in (4, 5):
    split = splitting.Split(np.zeros((count, 8, 8, 3), "uint8"), np.zeros(count, "int64"), [""] * count)
    list(pipeline.make_dataset(split, image_size=(8, 8), batch_size=2, training=True))
    print(len(list(pathlib.Path(sys.argv[1]).glob("transfer-cache-*/pictures*"))))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    within, past = map(int, done.stdout.split())
    assert within == 0 and past > 0
    assert not list(tmp_path.iterdir())


def test_unknown_augmentations_are_refused():
    with pytest.raises(InputError, match=r"Unknown augmentation 'ligth'\. Did you mean 'light'"):
        batches(numbered(3), augment="ligth")


def test_an_empty_split_gives_no_batches():
    empty = numbered(5).take([])
    assert not list(batches(empty)) and not list(batches(empty, training=True, augment="light"))


def test_rows_of_arrays_are_batched_in_order_or_shuffled():
    x, y = np.arange(10.0)[:, None], np.arange(10)
    plain = [b.numpy().tolist() for _, b in batch_arrays(x, y, batch_size=4)]
    assert plain == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = batch_arrays(x, y, batch_size=4, shuffle_seed=0)
    first, second = ([b.numpy() for _, b in shuffled] for _ in range(2))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()
    assert sorted(np.concatenate(first)) == list(range(10))
    assert all(np.array_equal(a[:, 0], b) for a, b in shuffled)
