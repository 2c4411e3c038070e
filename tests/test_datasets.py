"""Folders and arrays become splits of labelled pictures."""

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import COLORS, write_picture

from transfer.datasets import embedded_folder, flips_are_safe, load_data
from transfer.errors import InputError
from transfer.pipeline import make_dataset

SIZE = (8, 8)


def fill(folder: Path, counts: dict[str, int], *, start: int = 0) -> Path:
    """Write different pictures into the sub-folders named."""
    for place, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_picture(folder / name / f"{i:02}.png", (90, 90, 90), size=8, seed=start + 1000 * place + i)
    return folder


def names_of(data):
    return {part: sorted(getattr(data, part).names) for part in ("train", "val", "test")}


# Folders


def test_labels_are_the_sorted_names_of_folders(color_folder):
    data = load_data(color_folder)
    assert data.class_names == ("blue", "green", "red") and data.name == "colors"
    for part in (data.train, data.val, data.test):
        for i in range(len(part)):
            color = COLORS[data.class_names[part.labels[i]]]
            assert np.abs(part.picture(i, SIZE).mean(axis=(0, 1)) - color).max() < 20
            assert part.names[i].startswith(data.class_names[part.labels[i]] + "/")


def test_numbers_as_names_keep_their_labels(tmp_path):
    """In text order 1, 10, 2; what counts is that a label and its name stay together."""
    data = load_data(fill(tmp_path, {"2": 4, "10": 5, "1": 6}))
    assert data.class_names == ("1", "10", "2")
    for part in (data.train, data.val, data.test):
        assert [data.class_names[y] for y in part.labels] == [Path(n).parent.name for n in part.names]
    counts = sum(np.bincount(part.labels, minlength=3) for part in (data.train, data.val, data.test))
    assert counts.tolist() == [6, 5, 4]


def test_names_may_be_of_any_alphabet(tmp_path):
    data = load_data(fill(tmp_path / "Früchte 図", {"Äpfel": 3, "梨": 3, "a b": 3}))
    assert data.class_names == ("a b", "Äpfel", "梨") and data.name == "Früchte 図"
    assert sum(len(y) for _, y in make_dataset(data.train, image_size=SIZE, batch_size=4)) == 3


def test_what_is_no_picture_is_passed_over(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    fill(tmp_path, {".hidden": 3, "__MACOSX": 3, "__MACOSX/a": 3, "a/.thumbnails": 3, "b/__MACOSX/deep": 3})
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "._00.png", "desktop.ini", ".hidden.png"):
        (tmp_path / "a" / name).write_bytes(b"junk")
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "a" / "folder.png").mkdir()
    data = load_data(tmp_path)
    assert data.class_names == ("a", "b") and data.skipped == ()
    assert len(data.train) + len(data.val) + len(data.test) == 10


def test_pictures_may_lie_deeper_and_be_called_in_capitals(tmp_path):
    fill(tmp_path, {"a/x": 2, "a/y/z": 2, "b": 4})
    (tmp_path / "b" / "00.png").rename(tmp_path / "b" / "00.PNG")
    data = load_data(tmp_path, val=0, test=0)
    assert np.bincount(data.train.labels).tolist() == [4, 4]
    assert "a/y/z/00.png" in data.train.names


@pytest.mark.parametrize("names", [
    ("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "Validation", "TESTING"),
])  # fmt: skip
def test_folders_for_splits_are_kept(names, tmp_path):
    for place, name in enumerate(names):
        fill(tmp_path / name, {"a": 3 - place, "b": 1}, start=100 * place)
    data = load_data(tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 3, 2]
    assert data.class_names == ("a", "b")
    assert all(name.startswith(names[2]) for name in data.test.names)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_val_without_test_is_the_test_set(name, tmp_path):
    fill(tmp_path / "train", {"a": 10, "b": 10})
    fill(tmp_path / name, {"a": 2, "b": 1}, start=500)
    data = load_data(tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 3]
    assert {n.split("/")[0] for n in data.val.names} == {"train"}


def test_a_class_may_be_called_like_a_split(tmp_path):
    data = load_data(fill(tmp_path, {"car": 3, "plane": 3, "train": 3}))
    assert data.class_names == ("car", "plane", "train")


def test_folders_beside_the_splits_are_said_to_be_ignored(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path, {"test": 3})  # without classes, as competitions give it
    data = load_data(tmp_path)
    assert "Ignored in" in caplog.text and "test" in caplog.text
    assert {n.split("/")[0] for n in data.test.names} == {"train"}


def test_a_class_need_not_be_in_the_test_set(tmp_path):
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "test", {"b": 2}, start=500)
    (tmp_path / "test" / "a").mkdir()
    assert load_data(tmp_path).test.labels.tolist() == [1, 1]


def test_the_split_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 10, "b": 10})
    straight = names_of(load_data(tmp_path))
    listed = os.scandir, os.listdir

    class Backwards(list):
        __enter__ = lambda self: iter(self)  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

    monkeypatch.setattr(
        os, "scandir", lambda *a: Backwards(sorted(listed[0](*a), key=lambda e: e.name)[::-1])
    )
    monkeypatch.setattr(os, "listdir", lambda *a: sorted(listed[1](*a))[::-1])
    assert names_of(load_data(tmp_path)) == straight


def test_another_seed_is_another_split(color_folder):
    first, again, other = (names_of(load_data(color_folder, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert all(first[part] != other[part] for part in first)


def test_copies_under_two_names_or_classes_are_never_on_both_sides(tmp_path):
    """The old image retrainer leaked most of its validation pictures into training."""
    fill(tmp_path, {"a": 10, "b": 10})
    for i in range(10):
        content = (tmp_path / "a" / f"{i:02}.png").read_bytes()
        (tmp_path / "a" / f"copy of {i}.png").write_bytes(content)
        if i < 3:
            (tmp_path / "b" / f"stray {i}.png").write_bytes(content)
    for seed in range(4):
        data = load_data(tmp_path, seed=seed)
        seen = [{Path(p).read_bytes() for p in part.pictures} for part in (data.train, data.val, data.test)]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
        assert all(len(part) for part in seen)


def test_copies_in_given_splits_raise_a_warning(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "test", {"a": 2, "b": 1})
    load_data(tmp_path)
    assert "3 of the 3 pictures in test are exact copies of pictures in train" in caplog.text


def test_the_pictures_that_come_along_load():
    data = load_data("emoji")
    assert data.num_classes == 12 and not data.skipped and len(data.train) > 300
    assert embedded_folder().name == "emoji"


# Broken files


@pytest.fixture
def broken_folder(tmp_path):
    fill(tmp_path, {"a": 6, "b": 6})
    whole = (tmp_path / "a" / "00.png").read_bytes()
    (tmp_path / "a" / "00.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "empty.jpg").write_bytes(b"")
    (tmp_path / "b" / "text.jpg").write_bytes(b"404 Not Found")
    return tmp_path


def test_broken_files_are_skipped_named_and_counted(broken_folder, caplog):
    data = load_data(broken_folder)
    assert dict(data.skipped) == {
        "a/00.png": "image file is truncated",
        "b/empty.jpg": "empty",
        "b/text.jpg": "not a picture of a known format",
    }
    assert len(data.train) + len(data.val) + len(data.test) == 11
    assert "Skipped 3 pictures that cannot be read: a/00.png: image file is truncated" in caplog.text
    for part in (data.train, data.val, data.test):
        assert [data.class_names[y] for y in part.labels] == [Path(n).parent.name for n in part.names]
        batches = make_dataset(part, image_size=SIZE, batch_size=4)
        assert sum(len(y) for _, y in batches) == len(part), "training does not stumble over them"


def test_strict_refuses_broken_files_by_name(broken_folder):
    with pytest.raises(
        InputError, match=r"Received 3 .*a/00\.png: .*; b/empty\.jpg: empty; b/text\.jpg: .*Mend"
    ):
        load_data(broken_folder, strict=True)


def test_long_lists_of_broken_files_are_cut(tmp_path, caplog):
    fill(tmp_path, {"a": 5, "b": 5})
    for i in range(14):
        (tmp_path / "a" / f"bad{i:02}.jpg").write_bytes(b"x")
    assert len(load_data(tmp_path).skipped) == 14
    assert "bad09.jpg" in caplog.text and "bad10.jpg" not in caplog.text and "and 4 more" in caplog.text


def test_a_class_of_broken_files_alone_is_refused(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="None to train on for: c"):
        load_data(tmp_path)


def test_a_file_that_vanishes_later_is_named(tmp_path):
    data = load_data(fill(tmp_path, {"a": 4, "b": 4}))
    Path(data.train.pictures[0]).unlink()
    with pytest.raises(Exception, match=re.escape(data.train.names[0])):
        list(make_dataset(data.train, image_size=SIZE, batch_size=4))


# What is refused


def misfits(tmp_path):
    fill(tmp_path / "colours", {"a": 3, "b": 3})
    fill(tmp_path / "one", {"a": 3})
    fill(tmp_path / "hollow", {"a": 3, "b": 3})
    (tmp_path / "hollow" / "c").mkdir()
    (tmp_path / "hollow" / "c" / "picture.tif").write_bytes(b"x")
    (tmp_path / "none").mkdir()
    write_picture(tmp_path / "flat" / "x.png", (1, 2, 3))
    fill(tmp_path / "strange", {"train/cat": 3, "train/dog": 3, "test/cats": 1})
    fill(tmp_path / "twice", {"train/a": 3, "train/b": 3, "val/a": 1, "valid/b": 1})
    fill(tmp_path / "headless", {"val/a": 3, "test/a": 3})
    fill(tmp_path / "flat splits", {"train": 3, "test": 3})
    fill(tmp_path / "no test", {"train/a": 3, "train/b": 3})
    (tmp_path / "no test" / "test" / "a").mkdir(parents=True)
    (tmp_path / "file.png").write_bytes(b"x")


@pytest.mark.parametrize(("source", "options", "message"), [
    ("colors", {}, r"which does not exist\. Did you mean '.*/colours'\?"),
    ("zzzzzz", {}, r"a folder with a sub-folder of pictures per class, tfds:NAME, or 'emoji'.* Check the path"),
    ("gone/zzz", {}, "which does not exist. Check the path"),
    ("emojis", {}, "Did you mean 'emoji'"),
    ("file.png", {}, r"Received a file: .*file\.png\. Name the folder"),
    ("one", {}, r"at least 2 classes in 'one'. Received: 1 \(a\)\. Put each class' pictures"),
    ("none", {}, "at least 2 classes in 'none'. Received: 0. Put each class' pictures"),
    ("flat", {}, "at least 2 classes in 'flat'. Received: 0. Put each class' pictures"),
    ("hollow", {}, r"\.jpg.* in every sub-folder of .*hollow\. Received none in: c\. Add some"),
    ("strange", {}, r"Unknown class 'cats'\. Did you mean 'cat'\? It is in .*test but not in .*train"),
    ("twice", {}, r"one folder per split .* Received: train, val, valid\. Merge"),
    ("headless", {}, r"Expected a folder 'train' in .*headless.* Received: test, val\. Sort"),
    ("flat splits", {}, r"with a sub-folder per class\. Received: test, train\. Sort"),
    ("no test", {}, r"Expected pictures .* in .*test\. Received none\. .* drawn from train"),
    ("colours", {"val": 0.5, "test": 0.5}, r"val \+ test below 1\. Received: val=0.5, test=0.5\. Leave"),
    ("colours", {"val": -0.1}, r"shares of 0 or more.*val=-0.1"),
    ("colours", {"test": 1.0}, r"test=1.0"),
    ("colours", {"test": float("nan")}, r"test=nan"),
    ("colours", {"image_size": 0}, r"whole pixels, 1 or more.* Received: image_size=0"),
    ("colours", {"image_size": (32, -1)}, r"image_size=\(32, -1\)"),
    ("colours", {"image_size": 32.5}, "image_size=32.5"),
    ("colours", {"image_size": (1, 2, 3)}, r"image_size=\(1, 2, 3\)"),
    ("colours", {"seed": -1}, "Expected a seed of 0 or more. Received: -1. Any other"),
    ("colours", {"class_names": ["a", "b"]}, "class_names with arrays alone. .* Leave them out"),
])  # fmt: skip
def test_input_that_cannot_be_right_is_refused_with_a_remedy(source, options, message, tmp_path):
    misfits(tmp_path)
    with pytest.raises(InputError, match=message):
        load_data("emojis" if source == "emojis" else tmp_path / source, **options)


@pytest.mark.parametrize(
    ("size", "expected"), [(None, None), (32, (32, 32)), ((24, 32), (24, 32)), (np.int64(16), (16, 16))]
)
def test_image_sizes_are_pairs(size, expected, color_folder):
    assert load_data(color_folder, image_size=size).image_size == expected


# Arrays


def noise(count=12, shape=(8, 8, 3), seed=0, dtype="uint8"):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(dtype)


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 8)])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize("column", [False, True])
def test_arrays_load(shape, dtype, column):
    x, y = noise(shape=shape, dtype=dtype), np.arange(12) % 2
    data = load_data((x, y[:, None] if column else y))
    assert data.class_names == ("0", "1") and data.name == "arrays"
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 2, 2]
    for part in (data.train, data.val, data.test):
        for i, name in enumerate(part.names):
            assert part.labels[i] == y[int(name)]
            rgb = part.picture(i, SIZE)
            assert np.array_equal(rgb, np.broadcast_to(x[int(name)].reshape(8, 8, -1), (8, 8, 3)))


def test_arrays_with_a_test_set_load_as_keras_gives_them():
    train, test = (noise(), np.arange(12) % 3), (noise(5, seed=1), np.array([2, 1, 0, 1, 2]))
    data = load_data((train, test), class_names=["ant", "bee", "cat"])
    assert data.class_names == ("ant", "bee", "cat")
    assert data.test.labels.tolist() == [2, 1, 0, 1, 2] and np.array_equal(data.test.pictures, test[0])
    assert len(data.train) + len(data.val) == 12 and len(data.val)


def test_arrays_may_be_lists():
    x, y = noise(), np.arange(12) % 2
    assert np.array_equal(load_data([list(x), y.tolist()]).train.pictures, load_data((x, y)).train.pictures)
    assert len(load_data(([*x[:2]], [0, 1]), val=0, test=0).train) == 2, "two pictures are not two splits"


@pytest.mark.parametrize(("source", "message"), [
    ((noise(), np.arange(11) % 2), r"one label per image, shape \(12,\)\. Received: \(11,\)"),
    ((noise(), np.eye(2)[np.arange(12) % 2]), r"Received: \(12, 2\)\. Turn one-hot labels"),
    ((noise(), np.arange(12) % 2 - 1), r"whole numbers .* from 0. Received: int64, the least of them -1"),
    ((noise(), (np.arange(12) % 2).astype("float32")), "whole numbers .* Received: float32"),
    ((noise(), np.array(["cat", "dog"] * 6)), "whole numbers .* Received: <U3"),
    ((noise(), np.arange(12) % 2 * 2), "None to train on for: 1"),
    ((noise(), np.arange(12) % 2 * 10**12), r"Received a label 1000000000000\. Number the classes"),
    ((noise(dtype="float32") / 255, np.arange(12) % 2), r"values up to 1\.0 at most: multiply by 255"),
    ((noise() > 99, np.arange(12) % 2), "values up to True at most: multiply by 255"),
    ((noise(dtype="float32") * 2 - 255, np.arange(12) % 2), "pixels from 0 to 255, all finite. Received: -255"),
    ((noise(dtype="int32") * 200, np.arange(12) % 2), "pixels from 0 to 255"),
    ((np.where(noise() > 250, np.nan, 9.0), np.arange(12) % 2), "all finite. Received: nan"),
    ((noise(shape=(8,)), np.arange(12) % 2), r"shape \(N, H, W\).* Received: \(12, 8\)"),
    ((noise(shape=(8, 8, 4)), np.arange(12) % 2), r"Received: \(12, 8, 8, 4\)"),
    ((noise(shape=(2, 8, 8, 3)), np.arange(12) % 2), r"Received: \(12, 2, 8, 8, 3\)"),
    ((noise(0), np.array([], int)), r"at least one\. Received: \(0, 8, 8, 3\)"),
    ((noise().astype(str), np.arange(12) % 2), "pixels as numbers"),
    ((noise(), np.zeros(12, int)), "at least 2 classes"),
    ((np.full((12, 8, 8), 99), np.arange(12) % 2), "12 pictures of 2 classes, 1 of them different. Add pictures"),
    ((np.full((12, 8, 8), 99), np.zeros(12, int)), "at least 2 classes"),
    (None, "Received: NoneType"),
    (noise(), r"\(images, labels\) or \(\(x_train, y_train\), \(x_test, y_test\)\)\. Received: ndarray"),
    (([noise(1)[0], noise(1, (9, 9, 3))[0]], [0, 1]), "different sizes fit into no array: use a folder"),
])  # fmt: skip
def test_arrays_that_cannot_be_right_are_refused_with_a_remedy(source, message):
    with pytest.raises(InputError, match=message):
        load_data(source)


@pytest.mark.parametrize(("names", "message"), [
    (["a"], "labels from 0 to 0.* Received a label 1"),
    (["a", "b", "c"], "None to train on for: c"),
    (["a", "a"], "a different name for each class. Received: a, a"),
])  # fmt: skip
def test_names_that_do_not_fit_the_labels_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        load_data((noise(), np.arange(12) % 2), class_names=names)


def test_a_test_label_that_train_lacks_is_refused():
    with pytest.raises(InputError, match="Received a label 2"):
        load_data(((noise(), np.arange(12) % 2), (noise(3), np.array([0, 1, 2]))), class_names="ab")


# Names of classes


@pytest.mark.parametrize(("names", "safe"), [
    (["0", "1", "2"], False), (["a", "b", "Z"], False), (["10", "7", "x"], False), (["ä", "図"], False),
    (["ants", "bees"], True), (["a", "ant"], True), (["1_cat", "2_dog"], True),
])  # fmt: skip
def test_letters_and_digits_are_not_mirrored(names, safe):
    assert flips_are_safe(names) is safe


def test_nothing_is_logged_above_info_for_clean_data(color_folder, caplog):
    load_data(color_folder)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
