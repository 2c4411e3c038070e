"""`load_data` turns sources into checked splits, and the command `datasets` reports the check."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.images import COLORS, write_image
from PIL import Image

from transfer.common.errors import InputError
from transfer.datasets import main
from transfer.images.datasets import embedded_folder, load_data, load_test
from transfer.images.pipeline import make_dataset
from transfer.images.split_file import read_split, write_split

SIZE = (8, 8)


def fill(folder: Path, counts: dict[str, int], *, start: int = 0) -> Path:
    """Write different images into sub-folders."""
    for place, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(folder / name / f"{i:02}.png", (90, 90, 90), size=8, seed=start + 1000 * place + i)
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
            assert np.abs(part.image(i, SIZE).mean(axis=(0, 1)) - color).max() < 20
            assert part.names[i].startswith(data.class_names[part.labels[i]] + "/")


def test_class_names_that_are_numbers_keep_their_labels(tmp_path):
    """The text order is 1, 10, 2; labels and names must match."""
    data = load_data(fill(tmp_path, {"2": 4, "10": 5, "1": 6}))
    assert data.class_names == ("1", "10", "2")
    for part in (data.train, data.val, data.test):
        assert [data.class_names[y] for y in part.labels] == [Path(n).parent.name for n in part.names]
    counts = sum(np.bincount(part.labels, minlength=3) for part in (data.train, data.val, data.test))
    assert counts.tolist() == [6, 5, 4]


def test_names_may_use_any_alphabet(tmp_path):
    data = load_data(fill(tmp_path / "Früchte 図", {"Äpfel": 3, "梨": 3, "a b": 3}))
    assert data.class_names == ("a b", "Äpfel", "梨") and data.name == "Früchte 図"
    assert sum(len(y) for _, y in make_dataset(data.train, image_size=SIZE, batch_size=4)) == 3


def test_files_that_are_not_images_are_ignored(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    fill(tmp_path, {".hidden": 3, "__MACOSX": 3, "__MACOSX/a": 3, "a/.thumbnails": 3, "b/__MACOSX/deep": 3})
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "._00.png", "desktop.ini", ".hidden.png"):
        (tmp_path / "a" / name).write_bytes(b"junk")
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "a" / "folder.png").mkdir()
    data = load_data(tmp_path)
    assert data.class_names == ("a", "b") and data.skipped == ()
    assert len(data.train) + len(data.val) + len(data.test) == 10


def test_images_may_lie_in_deeper_folders_and_have_upper_case_extensions(tmp_path):
    fill(tmp_path, {"a/x": 2, "a/y/z": 2, "b": 4})
    (tmp_path / "b" / "00.png").rename(tmp_path / "b" / "00.PNG")
    data = load_data(tmp_path, val=0, test=0)
    assert np.bincount(data.train.labels).tolist() == [4, 4]
    assert "a/y/z/00.png" in data.train.names


@pytest.mark.parametrize("names", [
    ("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "Validation", "TESTING"),
])  # fmt: skip
def test_folders_of_splits_are_kept(names, tmp_path):
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


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    data = load_data(fill(tmp_path, {"car": 3, "plane": 3, "train": 3}))
    assert data.class_names == ("car", "plane", "train")


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


def test_duplicates_with_other_names_or_classes_are_never_separated(tmp_path):
    """Separated duplicates would leak test images into training."""
    fill(tmp_path, {"a": 10, "b": 10})
    for i in range(10):
        content = (tmp_path / "a" / f"{i:02}.png").read_bytes()
        (tmp_path / "a" / f"copy of {i}.png").write_bytes(content)
        if i < 3:
            (tmp_path / "b" / f"stray {i}.png").write_bytes(content)
    for seed in range(4):
        data = load_data(tmp_path, seed=seed)
        seen = [{Path(p).read_bytes() for p in part.images} for part in (data.train, data.val, data.test)]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
        assert all(len(part) for part in seen)


def test_duplicates_across_provided_splits_are_reported(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "test", {"a": 2, "b": 1})
    load_data(tmp_path)
    assert "Found 3 images in more than one of the provided splits" in caplog.text
    assert "test/a/00.png = train/a/00.png" in caplog.text


def test_the_included_data_set_loads():
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


def test_broken_files_are_skipped_and_reported(broken_folder, caplog):
    data = load_data(broken_folder)
    assert dict(data.skipped) == {
        "a/00.png": "image file is truncated",
        "b/empty.jpg": "empty",
        "b/text.jpg": "not an image of a known format",
    }
    assert len(data.train) + len(data.val) + len(data.test) == 11
    assert "Skipped 3 images" in caplog.text and "a/00.png (image file is truncated)" in caplog.text
    for part in (data.train, data.val, data.test):
        assert [data.class_names[y] for y in part.labels] == [Path(n).parent.name for n in part.names]
        batches = make_dataset(part, image_size=SIZE, batch_size=4)
        assert sum(len(y) for _, y in batches) == len(part), "batches contain no broken files"


def test_strict_raises_an_error_that_names_broken_files(broken_folder):
    with pytest.raises(
        InputError, match=r"Received 3 .*a/00\.png: .*; b/empty\.jpg: empty; b/text\.jpg: .*Fix"
    ):
        load_data(broken_folder, strict=True)


def test_long_lists_of_broken_files_are_shortened(tmp_path, caplog):
    fill(tmp_path, {"a": 5, "b": 5})
    for i in range(14):
        (tmp_path / "a" / f"bad{i:02}.jpg").write_bytes(b"x")
    assert len(load_data(tmp_path).skipped) == 14
    assert "bad04.jpg" in caplog.text and "bad05.jpg" not in caplog.text and "and 9 more" in caplog.text


def test_a_class_with_only_broken_files_raises_an_error(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"Received none of: c\. Skipped: c/x\.jpg \("):
        load_data(tmp_path)


def test_an_error_names_a_file_that_was_deleted_later(tmp_path):
    data = load_data(fill(tmp_path, {"a": 4, "b": 4}))
    Path(data.train.images[0]).unlink()
    with pytest.raises(Exception, match=re.escape(data.train.names[0])):
        list(make_dataset(data.train, image_size=SIZE, batch_size=4))


# Errors


def misfits(tmp_path):
    fill(tmp_path / "colors", {"a": 3, "b": 3})
    fill(tmp_path / "one", {"a": 3})
    fill(tmp_path / "hollow", {"a": 3, "b": 3})
    (tmp_path / "hollow" / "c").mkdir()
    (tmp_path / "hollow" / "c" / "image.tga").write_bytes(b"x")
    (tmp_path / "none").mkdir()
    write_image(tmp_path / "flat" / "x.png", (1, 2, 3))
    fill(tmp_path / "strange", {"train/cat": 3, "train/dog": 3, "test/cats": 1})
    fill(tmp_path / "twice", {"train/a": 3, "train/b": 3, "val/a": 1, "valid/b": 1})
    fill(tmp_path / "headless", {"val/a": 3, "test/a": 3})
    fill(tmp_path / "flat splits", {"train": 3, "test": 3})
    fill(tmp_path / "no test", {"train/a": 3, "train/b": 3})
    (tmp_path / "no test" / "test" / "a").mkdir(parents=True)
    (tmp_path / "file.png").write_bytes(b"x")


@pytest.mark.parametrize(("source", "options", "message"), [
    ("colour", {}, r"which does not exist\. Did you mean '.*/colors'\?"),
    ("zzzzzz", {}, r"a folder with a sub-folder .* CSV or Parquet list, tfds:NAME, or 'emoji'.* Check the path"),
    ("gone/zzz", {}, "which does not exist. Check the path"),
    ("emojis", {}, "Did you mean 'emoji'"),
    ("file.png", {}, r"Received an image: .*file\.png\. Pass the folder"),
    ("one", {}, r"at least 2 classes in 'one'. Received: 1 \(a\)\. Put the images of each class"),
    ("none", {}, "at least 2 classes in 'none'. Received: 0. Put the images of each class"),
    ("flat", {}, "at least 2 classes in 'flat'. Received: 0. Put the images of each class"),
    ("hollow", {}, r"JPEG.* in every sub-folder of .*hollow\. Received none in: c\. Add some"),
    ("strange", {}, r"Unknown class 'cats'\. Did you mean 'cat'\? It is in .*test but not in .*train"),
    ("twice", {}, r"one folder per split .* Received: train, val, valid\. Merge"),
    ("headless", {}, r"Expected a folder 'train' in .*headless.* Received: test, val\. Sort"),
    ("flat splits", {}, r"with a sub-folder per class\. Received: test, train\. Sort"),
    ("no test", {}, r"Expected images .* in .*test\. Received none\. .* drawn from train"),
    ("colors", {"val": 0.5, "test": 0.5}, r"sum below 1.* Received: val=0.5, test=0.5\. Leave"),
    ("colors", {"val": -0.1}, r"0 or more.*val=-0.1"),
    ("colors", {"val": -1}, r"0 or more.*val=-1"),
    ("colors", {"val": 7}, r"at most 4 images for val and test"),
    ("colors", {"val": 1.5}, r"or whole numbers of images.*val=1.5"),
    ("colors", {"few_shot": 0}, r"few_shot of 1 image per class or more. Received: 0"),
    ("colors", {"resize": "strech"}, r"Unknown resize 'strech'. Did you mean 'stretch'"),
    ("colors", {"tfds_split": "train"}, r"tfds_split only with tfds:NAME"),
    ("colors", {"split_file": "nothing.csv"}, r"nothing.csv.*does not exist"),
    ("colors", {"test": 1.0}, r"test=1.0"),
    ("colors", {"test": float("nan")}, r"test=nan"),
    ("colors", {"image_size": 0}, r"whole pixels, 1 or more.* Received: image_size=0"),
    ("colors", {"image_size": (32, -1)}, r"image_size=\(32, -1\)"),
    ("colors", {"image_size": 32.5}, "image_size=32.5"),
    ("colors", {"image_size": (1, 2, 3)}, r"image_size=\(1, 2, 3\)"),
    ("colors", {"seed": "a"}, "Received: 'a'. Use a whole"),
    ("colors", {"few_shot": 2.5}, "few_shot of 1 image per class or more. Received: 2.5"),
    ("colors", {"val": "0.2"}, "val as a fraction below 1 or a number of images; 0 for none. Received: val='0.2'"),
    ("colors", {"test": None}, "Received: test=None"),
    ("colors", {"val": True}, "Received: val=True"),
    ("colors", {"seed": -1}, "Expected a seed of 0 or more. Received: -1. Use a whole"),
    ("colors", {"class_names": ["a", "b"]}, "class_names only with arrays. .* Leave them out"),
])  # fmt: skip
def test_wrong_input_raises_an_error_with_advice(source, options, message, tmp_path):
    misfits(tmp_path)
    with pytest.raises(InputError, match=message):
        load_data("emojis" if source == "emojis" else tmp_path / source, **options)


@pytest.mark.parametrize(
    ("size", "expected"), [(None, None), (32, (32, 32)), ((24, 32), (24, 32)), (np.int64(16), (16, 16))]
)
def test_image_sizes_are_pairs(size, expected, color_folder):
    assert load_data(color_folder, image_size=size).image_size == expected


# Lists


def color_list(folder: Path, header: str, cells) -> Path:
    """Write a list of the images with one more column, whose cells a function gives by position."""
    files = sorted(folder.rglob("*.png"))
    rows = [f"{file.relative_to(folder)},{file.parent.name},{cells(i)}\n" for i, file in enumerate(files)]
    (folder / "list.csv").write_text(f"{header}\n{''.join(rows)}")
    return folder / "list.csv"


@pytest.mark.parametrize("column", ["patient", "patient_id", "Subject ID", "lesionId"])
def test_images_of_one_patient_stay_in_one_split(column, color_folder):
    data = load_data(color_list(color_folder, f"path,label,{column}", lambda i: i // 3))
    groups = [set(part.groups) for part in data.splits.values()]
    assert all(groups) and sum(map(len, groups)) == 30 == data.report.groups


def test_an_ignored_column_of_patients_is_a_problem_in_the_report(color_folder):
    report = load_data(color_list(color_folder, "path,label,site_id", lambda i: f"S{i // 9}")).report
    assert [f.serious for f in report.findings if "'site_id'" in f.text] == [True]
    assert "No problems found" not in report.to_text()


@pytest.mark.parametrize(
    ("column", "words"),
    [("is_valid", ["True", "False"]), ("Usage", ["PrivateTest", "Training"]), ("is_train", ["0", "1"])],
)
def test_a_column_of_splits_under_other_names_is_used(column, words, color_folder):
    data = load_data(color_list(color_folder, f"path,label,{column}", lambda i: words[i % 3 > 0]))
    assert len(data.test) == 30 and len(data.train) + len(data.val) == 60


def test_the_report_says_which_split_a_word_means(color_folder):
    words = ["Training", "PublicTest", "PrivateTest"]
    report = load_data(color_list(color_folder, "path,label,Usage", lambda i: words[i % 3])).report
    assert "Splits: 'Training' is train, 'PublicTest' is test, 'PrivateTest' is test." in report.to_text()
    plain = load_data(color_list(color_folder, "path,label,split", lambda i: ["train", "Test"][i % 2])).report
    assert "Splits:" not in plain.to_text()


def test_the_columns_of_a_list_can_be_named(color_folder):
    path = color_list(color_folder, "Datei,Farbe,Person A", lambda i: i // 3)
    columns = {"path_column": "Datei", "label_column": "Farbe", "group_column": "Person A"}
    assert load_data(path, **columns).report.groups == 30
    with pytest.raises(InputError, match=r"Unknown column 'Person'\. Did you mean 'Person A'"):
        load_data(path, **{**columns, "group_column": "Person"})
    with pytest.raises(InputError, match=r"Expected group_column only with a CSV or Parquet list"):
        load_data(color_folder, group_column="patient")
    with pytest.raises(InputError, match=r"Expected split_column only with a CSV or Parquet list.*'arrays'"):
        load_data((np.zeros((4, 8, 8)), [0, 1, 0, 1]), split_column="fold")


def test_a_list_of_test_images_may_have_only_the_test_split(color_folder):
    path = color_list(color_folder, "Datei,label,split", lambda i: "test")
    data = load_test(path, ("blue", "green", "red"), path_column="Datei", label_column="dx")
    assert len(data.test) == 90  # `dx` was in the training list; here `label` is found


def test_a_validation_set_without_a_class_is_reported(color_folder, caplog):
    load_data(color_folder, val=2, test=9)
    assert re.search(
        r"The validation set has no images of \w+: val=2 is less than one image for each", caplog.text
    )


# Options of splits


def test_sizes_may_be_numbers_of_images(color_folder):
    data = load_data(color_folder, val=6, test=15)
    assert [len(part) for part in data.splits.values()] == [69, 6, 15]
    assert np.bincount(data.test.labels).tolist() == [5, 5, 5]


def test_few_shot_keeps_some_training_images_per_class_and_the_whole_test_set(color_folder):
    whole, three, one = (load_data(color_folder, few_shot=few) for few in (None, 3, 1))
    assert np.bincount(three.train.labels).tolist() == [3, 3, 3] and len(one.train) == 3
    assert set(one.train.names) < set(three.train.names) < set(whole.train.names)
    assert names_of(one)["test"] == names_of(whole)["test"] and names_of(one)["val"] == names_of(whole)["val"]
    assert three.report.counts["train"] == (3, 3, 3)


def test_a_split_file_restores_the_split(tmp_path):
    folder = fill(tmp_path / "photos", {"a": 12, "b": 12})
    before = load_data(folder, seed=5)
    write_split(tmp_path / "split.csv", before.splits, before.class_names)
    fill(folder, {"a": 15}, start=7000)  # other images under the same names, and three new ones
    again = load_data(folder, seed=0, split_file=tmp_path / "split.csv")
    assert names_of(again) == names_of(before), "independent of the seed, and without new images"
    for part in again.splits.values():
        assert [again.class_names[y] for y in part.labels] == [Path(n).parent.name for n in part.names]


def test_a_split_file_of_other_data_raises_an_error(tmp_path):
    write_split(tmp_path / "s.csv", load_data(fill(tmp_path / "x", {"a": 5, "b": 5})).splits, ["a", "b"])
    other = fill(tmp_path / "y", {"a": 5, "c": 5})
    with pytest.raises(InputError, match="Unknown class 'b'"):
        load_data(other, split_file=tmp_path / "s.csv")


def test_lists_of_images_load_with_groups(tmp_path):
    fill(tmp_path, {"photos": 40})
    rows = [f"photos/{i:02}.png,{'cat' if i % 2 else 'dog'},patient{i // 4}" for i in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,patient", *rows, "photos/gone.png,cat,x"]))
    data = load_data(tmp_path / "list.csv")
    assert data.name == "list" and data.class_names == ("cat", "dog") and data.report.groups == 10
    seen = [set(part.groups) for part in data.splits.values()]
    assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert dict(data.skipped) == {"photos/gone.png": "no such file or directory"}


def test_near_duplicates_stay_in_one_split(tmp_path):
    """Every image occurs twice, the second time as a small JPEG."""
    for i in range(24):
        coarse = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype="uint8")
        image = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{i:02}.png")
        image.resize((80, 60)).save(folder / f"{i:02}.jpg", quality=70)
    for seed in range(4):
        data = load_data(tmp_path, seed=seed)
        seen = [{Path(name).stem for name in part.names} for part in data.splits.values()]
        assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert len(data.report.duplicates) == 24 and not any(one.exact for one in data.report.duplicates)
    assert load_data(tmp_path, near_duplicates=False).report.duplicates == ()


def test_images_are_resized_as_requested(tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        for i in range(3):
            wide = Image.new("RGB", (60 + i, 20), color)
            wide.paste("white", (0, 0, 5, 20))
            wide.save(tmp_path / name / f"{i}.png")
    stretched, cropped, padded = (
        load_data(tmp_path, resize=how, val=0, test=0).train.image(0, (20, 20))
        for how in ("stretch", "crop", "pad")
    )
    assert stretched[10, 0].min() > 200, "white on the left"
    assert cropped.max(axis=(0, 1)).tolist() == cropped.min(axis=(0, 1)).tolist(), "the edge is gone"
    assert padded[0].max() == 0 and padded[-1].max() == 0 and padded[10].max() == 255


# Names


def test_decomposed_names_give_the_same_split(tmp_path):
    """macOS stores é as e and an accent."""
    composed = fill(tmp_path / "x", {"caf\u00e9": 10, "the": 10})
    decomposed = fill(tmp_path / "y", {"cafe\u0301": 10, "the": 10})
    first, second = load_data(composed), load_data(decomposed)
    assert first.class_names == second.class_names == ("caf\u00e9", "the")
    assert names_of(first) == names_of(second)


def test_names_that_cannot_be_written_are_escaped(tmp_path):
    fill(tmp_path, {"a": 6, "b": 6})
    os.rename(tmp_path / "a" / "00.png", os.fsencode(tmp_path / "a") + b"/caf\xe9\n.png")
    data = load_data(tmp_path)
    names = [name for part in data.splits.values() for name in part.names]
    assert "a/caf\\xe9\\n.png" in names and len(set(names)) == 12
    json.loads(data.report.to_json()), data.report.to_text().encode("utf-8")


# Files without an image extension


def test_images_are_recognized_by_their_content(tmp_path):
    fill(tmp_path, {"a": 6, "b": 6})
    for old, new in (
        ("00", "no ending"),
        ("01", "image.jpg"),
        ("02", "image.tif"),
        ("03", "image.jpg_large"),
    ):
        (tmp_path / "a" / f"{old}.png").rename(tmp_path / "a" / new)
    (tmp_path / "a" / "readme.txt").write_text("about these images")
    (tmp_path / "a" / "scan.tiff").write_bytes(b"II*\0")
    write_image(tmp_path / "loose.png", (1, 2, 3))
    data = load_data(tmp_path)
    assert sum(map(len, data.splits.values())) == 12
    assert data.report.ignored == ("a/readme.txt",)
    assert dict(data.skipped) == {
        "a/scan.tiff": "broken at its beginning, or TIFF with unusual channels (such as 64-bit or more than 4)",
        "loose.png": "not in the folder of a class",
    }


# The command


def test_the_command_prints_the_report_and_writes_files(broken_folder, tmp_path, capsys):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "html", "csv")}
    code = main([str(broken_folder), "--json", str(files["json"]), "--html", str(files["html"]),
                 "--write-split", str(files["csv"]), "--test", "3"])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0 and "2 classes" in out and "b/empty.jpg (empty)" in out and err == ""
    report = json.loads(files["json"].read_text())
    assert report["counts"]["test"] == [1, 2] and len(report["skipped"]) == 3
    assert "a/00.png" in files["html"].read_text()
    assert len(read_split(files["csv"])) == 11


def test_the_command_stops_at_broken_files_with_strict(broken_folder, capsys):
    assert main([str(broken_folder), "--strict"]) == 2
    out, err = capsys.readouterr()
    assert (
        out == "" and err.startswith("Expected images that can be used. Received 3") and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "flags", [["--json", "no/such/folder/x.json"], ["--seed", "-1"], ["--split", "no.csv"]]
)
def test_the_command_reports_bad_flags_in_one_line(flags, color_folder, capsys):
    assert main([str(color_folder), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_starts_without_tensorflow():
    code = "import sys; from transfer import datasets; print('tensorflow' in sys.modules or 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_clean_data_log_no_warning(color_folder, caplog):
    load_data(color_folder)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(
    ("val", "column", "expected"), [(0.1, None, True), (0, None, False), (0.1, "none", False)]
)
def test_a_split_that_groups_leave_empty_is_reported(tmp_path, val, column, expected):
    fill(tmp_path, {"cat": 12, "dog": 12})
    rows = [f"{name}/{i:02}.png,{name},{'AB'[i // 6]}" for name in ("cat", "dog") for i in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    data = load_data(tmp_path / "list.csv", val=val, group_column=column, near_duplicates=False)
    found = [finding.text for finding in data.report.findings if "too few groups" in finding.text]
    assert bool(found) == expected
    assert all(text.startswith("No images are in val") for text in found)
