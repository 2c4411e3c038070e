"""Batches: decoded once, shuffled in each epoch for training, and otherwise in the order of the split."""

import logging
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from transfer.common.errors import InputError
from transfer.images import pipeline
from transfer.images.datasets import load_data
from transfer.images.decoding import decode
from transfer.images.pipeline import batch_rows, class_weights, make_dataset
from transfer.images.splitting import Split

SIZE = (8, 8)


def numbered(count, *, labels=None) -> Split:
    """Images whose red values are their number and whose green values are their label."""
    labels = np.arange(count) % 3 if labels is None else np.asarray(labels)
    images = np.zeros((count, *SIZE, 3), "uint8")
    images[..., 0] = np.arange(count)[:, None, None]
    images[..., 1] = labels[:, None, None]
    return Split(images, labels.astype("int64"), [str(i) for i in range(count)])


def epoch(dataset) -> tuple[list[int], list[int], list[int]]:
    """The numbers, the labels, and the labels in the pixels, in the order of one epoch."""
    numbers, given, seen = [], [], []
    for x, y in dataset:
        numbers += x.numpy()[:, 0, 0, 0].astype(int).tolist()
        seen += x.numpy()[:, 0, 0, 1].astype(int).tolist()
        given += y.numpy().tolist()
    return numbers, given, seen


def batches(split, **options):
    return make_dataset(split, **{"image_size": SIZE, "batch_size": 4, **options})


def test_batches_are_float_images_from_0_to_255_in_the_order_of_the_split(color_folder):
    part = load_data(color_folder).val
    found = list(batches(part, image_size=(10, 12)))
    assert [x.shape for x, _ in found] == [(4, 10, 12, 3), (4, 10, 12, 3), (1, 10, 12, 3)]
    assert {x.dtype.name for x, _ in found} == {"float32"} and {y.dtype.name for _, y in found} == {"int64"}
    pixels = np.concatenate([x for x, _ in found])
    assert np.array_equal(pixels, [decode(path, (10, 12)) for path in part.images])
    assert np.array_equal(np.concatenate([y for _, y in found]), part.labels)


def test_without_training_every_pass_is_the_same():
    dataset = batches(numbered(11), augment="light")
    for _ in range(2):
        numbers, given, _ = epoch(dataset)
        assert numbers == list(range(11)) and given == [i % 3 for i in range(11)]


in_memory_and_on_disk = pytest.mark.parametrize("budget", [None, 0], ids=["memory", "disk"])


@in_memory_and_on_disk
def test_training_shuffles_in_each_epoch_and_keeps_every_image(budget):
    dataset = batches(numbered(50), training=True, seed=1, cache_budget=budget)
    epochs = [epoch(dataset) for _ in range(3)]
    for numbers, given, seen in epochs:
        assert sorted(numbers) == list(range(50)), "each image once, the last small batch included"
        assert given == seen == [number % 3 for number in numbers], "labels stay with their images"
    orders = [numbers for numbers, _, _ in epochs]
    assert orders[0] != orders[1] != orders[2] and list(range(50)) not in orders
    again = batches(numbered(50), training=True, seed=1)
    assert [epoch(again)[0] for _ in range(3)] == orders
    assert epoch(batches(numbered(50), training=True, seed=2))[0] != orders[0]


def test_the_order_depends_only_on_the_seed_and_the_epoch():
    """Neither TensorFlow's global seed nor the number of threads changes it."""
    orders = []
    for global_seed, threads in ((1, 1), (2, 8)):
        tf.random.set_seed(global_seed)
        limits = tf.data.Options()
        limits.threading.private_threadpool_size = threads
        dataset = batches(numbered(100), training=True, seed=5).with_options(limits)
        orders.append([epoch(dataset)[0] for _ in range(2)])
    assert orders[0] == orders[1]


def test_stopping_within_an_epoch_changes_neither_the_next_epoch_nor_the_cache():
    arrays = numbered(100)
    images = Counting(list(arrays.images))
    whole, broken = (
        batches(Split(items, arrays.labels, arrays.names), training=True) for items in (arrays.images, images)
    )
    list(whole), list(broken.take(2))
    assert epoch(whole)[0] == epoch(broken)[0]
    list(broken)
    assert images.reads == [1] * 100


class Counting(list):
    """Images that count how often each is read."""

    def __init__(self, items):
        super().__init__(items)
        self.reads = [0] * len(items)

    def __getitem__(self, i):
        self.reads[i] += 1
        return super().__getitem__(i)


def reads_of(passes=3, count=9, **options) -> list[int]:
    """How often each image is read in some epochs, which also checks the images."""
    arrays = numbered(count)
    images = Counting(list(arrays.images))
    dataset = batches(Split(images, arrays.labels, arrays.names), **options)
    for _ in range(passes):
        numbers, given, seen = epoch(dataset)
        assert sorted(numbers) == list(range(count)) and given == seen
    return images.reads


@in_memory_and_on_disk
@pytest.mark.parametrize("options", [{"training": True}, {"cache": True}], ids=["training", "validation"])
def test_images_are_decoded_once(budget, options):
    assert reads_of(**options, cache_budget=budget) == [1] * 9


@pytest.mark.parametrize("options", [{"training": True, "cache": False}, {}], ids=["training", "validation"])
def test_images_are_decoded_in_each_epoch_without_a_cache(options):
    assert reads_of(**options) == [3] * 9


def test_a_split_above_the_memory_budget_is_cached_on_disk(caplog):
    """Sixteen images of 8x8 pixels in three colors are 3072 bytes."""
    caplog.set_level(logging.INFO, "transfer")
    assert reads_of(count=16, training=True, cache_budget=16 * 8 * 8 * 3) == [1] * 16
    assert not caplog.messages
    assert reads_of(count=16, training=True, cache_budget=16 * 8 * 8 * 3 - 1) == [1] * 16
    assert "of decoded images in" in caplog.text


def test_a_split_larger_than_the_disk_is_not_cached_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 3071, 3071))
    assert reads_of(count=16, training=True, cache_budget=0) == [3] * 16
    assert "not cached, so each epoch reads" in caplog.text and "TMPDIR" in caplog.text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_fills_up_stops_only_the_cache(caplog, monkeypatch):
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(pipeline.tempfile, "TemporaryFile", lambda **_: full)
    assert reads_of(training=True, cache_budget=0) == [3] * 9
    assert len([text for text in caplog.messages if "Stopped caching" in text]) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_several_threads_warn_once_about_a_full_disk(monkeypatch):
    said = []
    monkeypatch.setattr(pipeline.log, "warning", lambda *message: (time.sleep(0.1), said.append(message)))
    store = pipeline._FileCache(SIZE)
    with open("/dev/full", "r+b", buffering=0) as store.file, ThreadPoolExecutor(8) as threads:
        kept = list(threads.map(lambda i: store.save(i, np.zeros((*SIZE, 3), "uint8")), range(8)))
    assert kept == [False] * 8 and len(said) == 1


def test_the_cache_takes_at_most_a_quarter_of_the_memory(monkeypatch):
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert pipeline._memory_budget() == min(4 * 2**30, memory // 4)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}[name])
    assert pipeline._memory_budget() == 1_024_000


def test_keras_trains_from_a_cache_on_disk():
    import keras

    model = keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    dataset = batches(numbered(10), training=True, augment="light", cache_budget=0)
    assert len(dataset) == 3, "so that the progress bar knows its end"
    assert len(model.fit(dataset, epochs=3, verbose=0, shuffle=False).history["loss"]) == 3


def test_a_cache_on_disk_disappears_when_the_process_is_killed(tmp_path):
    code = """
import os, signal, tempfile, numpy as np
from transfer.images import pipeline, splitting
made = []
temporary_file = tempfile.TemporaryFile
tempfile.TemporaryFile = lambda **options: made.append(temporary_file(**options)) or made[-1]
split = splitting.Split(np.zeros((4, 8, 8, 3), "uint8"), np.zeros(4, "int64"), [""] * 4)
for budget in (4 * 8 * 8 * 3, 0):
    list(pipeline.make_dataset(split, image_size=(8, 8), batch_size=2, training=True, cache_budget=budget))
    print(sum(os.fstat(file.fileno()).st_size for file in made), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["0", str(4 * 8 * 8 * 3)], done.stderr
    assert not [file for file in tmp_path.iterdir() if "autograph" not in file.name]  # those are TensorFlow's


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixes_make_labels_one_hot_and_mix_only_in_training(mix):
    options = {"mix": mix, "num_classes": 3}
    for training in (False, True):
        found = list(batches(numbered(11), training=training, **options))
        assert [y.shape for _, y in found] == [(4, 3), (4, 3), (3, 3)]
        weights = np.concatenate([y for _, y in found])
        assert weights.dtype == np.float32 and np.allclose(weights.sum(axis=1), 1)
        assert (weights.max(axis=1) == 1).all() != training
        if not training:
            assert np.array_equal(weights.argmax(axis=1), numbered(11).labels)
            assert np.array_equal(np.concatenate([x for x, _ in found]), numbered(11).images)


@pytest.mark.parametrize("num_classes", [None, 2])
def test_mixes_need_the_number_of_classes(num_classes):
    with pytest.raises(InputError, match=r"3 or more.*num_classes=" + str(num_classes)):
        batches(numbered(5), mix="mixup", num_classes=num_classes)


def test_unknown_mixes_are_refused():
    with pytest.raises(InputError, match=r"Unknown mix 'cutmixs'\. Did you mean 'cutmix'"):
        batches(numbered(3), mix="cutmixs", num_classes=3)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [2, 0, 1, 1, 1, 1, 2], list(range(5)) * 3])
def test_class_weights_are_those_of_scikit_learn(labels):
    labels = np.array(labels)
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    found = class_weights(labels, labels.max() + 1)
    assert list(found) == sorted(set(labels.tolist())) and list(found.values()) == pytest.approx(
        list(expected)
    )
    assert np.mean([found[label] for label in labels.tolist()]) == pytest.approx(1)


@pytest.mark.parametrize("labels, classes", [([0, 0, 2], 3), ([0, 1], 3), ([0, 1, 2], 2), ([], 2)])
def test_class_weights_need_an_image_of_each_class(labels, classes):
    with pytest.raises(InputError, match=f"labels of each of {classes} classes.*by class"):
        class_weights(np.array(labels, "int64"), classes)


@pytest.fixture(scope="module")
def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.mark.parametrize(
    "options", [{}, {"mix": "mixup", "num_classes": 3, "augment": "strong"}], ids=["plain", "all"]
)
def test_two_replicas_see_halves_of_each_batch(two_replicas, options):
    dataset = batches(numbered(22), training=True, batch_size=8, **options)
    for _ in range(2):
        sizes, seen = [], []
        for x, y in two_replicas.experimental_distribute_dataset(dataset):
            values = [part.numpy() for part in two_replicas.experimental_local_results(x)]
            sizes.append([len(part) for part in values])
            assert [len(part) for part in two_replicas.experimental_local_results(y)] == sizes[-1]
            seen += [int(image[0, 0, 0]) for part in values for image in part]
        assert sizes == [[4, 4], [4, 4], [3, 3]]
        if not options:
            assert sorted(seen) == list(range(22)), "each image on one replica"


def test_two_replicas_train_on_rows(two_replicas):
    rows = np.arange(10.0, dtype="float32")[:, None]
    dataset = batch_rows(rows.__getitem__, np.arange(10), width=1, batch_size=4, shuffle_seed=0)
    for _ in range(2):
        parts = [
            part.numpy()
            for _, y in two_replicas.experimental_distribute_dataset(dataset)
            for part in two_replicas.experimental_local_results(y)
        ]
        assert sorted(np.concatenate(parts)) == list(range(10))


def test_unknown_augmentations_are_refused():
    with pytest.raises(InputError, match=r"Unknown augmentation 'ligth'\. Did you mean 'light'"):
        batches(numbered(3), augment="ligth")


def test_an_empty_split_gives_no_batches():
    empty = numbered(5).take([])
    assert not list(batches(empty)) and not list(batches(empty, training=True, augment="light"))


def test_rows_are_batched_in_order_or_shuffled():
    x, y = np.arange(10.0, dtype="float32")[:, None], np.arange(10)
    plain = [b.numpy().tolist() for _, b in batch_rows(x.__getitem__, y, width=1, batch_size=4)]
    assert plain == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = batch_rows(x.__getitem__, y, width=1, batch_size=4, shuffle_seed=0)
    first, second = ([b.numpy() for _, b in shuffled] for _ in range(2))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()
    assert sorted(np.concatenate(first)) == list(range(10))
    assert all(np.array_equal(a[:, 0], b) for a, b in shuffled)
    assert len(shuffled) == 3
    tf.random.set_seed(3)
    again = [b.numpy() for _, b in batch_rows(x.__getitem__, y, width=1, batch_size=4, shuffle_seed=0)]
    assert np.array_equal(np.concatenate(again), np.concatenate(first)), "the seed alone decides"
