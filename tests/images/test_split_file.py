"""Split files: they restore the split, raise an error for other data, and are never half written."""

import logging
import os
import random
from unicodedata import normalize

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.images.manifest import read_manifest
from transfer.images.split_file import apply_split, read_split, write_split
from transfer.images.splitting import Split

AWKWARD = [
    "a,b.png",
    'quote".png',
    '"quoted".png',
    "line\nfeed.png",
    "carriage\rreturn.png",
    "both\r\n.png",
    " leading.png",
    "trailing ",
    "tab\t.png",
    "semi;colon.png",
    "caf\udce9.png",
    "日本.png",
    normalize("NFC", "é.png"),
    "back\\slash.png",
    "'",
    "#2",
    "\ufeffmark.png",
    "\u2028.png",
    "path",
    " ",
]


def split_of(names, labels, groups=()):
    return Split([f"pixels of {name}" for name in names], np.array(labels, "int64"), list(names), groups)


@pytest.fixture
def data():
    return {
        "train": split_of(["a.png", "b.png", "c.png"], [0, 1, 1]),
        "val": split_of(["d.png"], [0]),
        "test": split_of(["e.png"], [1]),
    }


CLASSES = ["cat", "dog"]
ROWS = [
    ("a.png", "cat", "train"),
    ("b.png", "dog", "train"),
    ("c.png", "dog", "train"),
    ("d.png", "cat", "val"),
    ("e.png", "dog", "test"),
]


def contents(splits):
    return {
        name: (list(part.names), part.labels.tolist(), list(part.groups), list(part.images))
        for name, part in splits.items()
    }


def error_of(*args, **options) -> str:
    with pytest.raises(InputError) as raised:
        apply_split(*args, **options)
    return str(raised.value)


def test_a_written_split_is_restored(data, tmp_path):
    path = tmp_path / "split.csv"
    write_split(path, data, CLASSES)
    assert read_split(path) == ROWS
    together = split_of(["e.png", "d.png", "c.png", "b.png", "a.png"], [1, 0, 1, 1, 0])
    for parts in (data, {"train": together}):  # whichever split an image was in
        assert contents(apply_split(read_split(path), parts, CLASSES)) == contents(data)


def test_the_lines_of_the_file(data, tmp_path):
    write_split(tmp_path / "split.csv", {"test": data["test"], "train": data["train"]}, CLASSES)
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert lines == [
        "path,label,split",
        "a.png,cat,train",
        "b.png,dog,train",
        "c.png,dog,train",
        "e.png,dog,test",
    ]


def test_awkward_names_and_classes_are_restored(tmp_path):
    classes = sorted(AWKWARD)
    labels = np.random.default_rng(0).permutation(len(AWKWARD))
    splits = {"train": split_of(AWKWARD, labels)}
    write_split(tmp_path / "split.csv", splits, classes)
    rows = read_split(tmp_path / "split.csv")
    assert rows == [(name, classes[i], "train") for name, i in zip(AWKWARD, labels, strict=True)]
    assert contents(apply_split(rows, splits, classes))["train"] == contents(splits)["train"]


def test_any_name_is_restored(tmp_path):
    letters = [*" ,;\t\"'\r\nab#\\é\udce9\ufeff"]
    names = {"".join(random.Random(i).choices(letters, k=i % 5 + 1)) for i in range(2000)}
    names = sorted({normalize("NFC", name) for name in names})
    write_split(tmp_path / "split.csv", {"test": split_of(names, [0] * len(names))}, ["x"])
    assert [name for name, _, _ in read_split(tmp_path / "split.csv")] == names


def test_groups_are_written_if_there_are_any(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "list.csv").write_text("path,label,group\na.png,x,p 1\nb.png,y,\nc.png,y,p 1\n")
    found = read_manifest(tmp_path / "list.csv")
    write_split(tmp_path / "split.csv", found.parts, found.class_names)
    assert (tmp_path / "split.csv").read_text().splitlines() == [
        "path,label,split,group",
        "a.png,x,train,p 1",
        "b.png,y,train,",
        "c.png,y,train,p 1",
    ]
    again = read_manifest(tmp_path / "split.csv")  # a split file is also a list of images
    assert contents(again.parts) == contents(found.parts)
    assert again.class_names == found.class_names
    applied = apply_split(read_split(tmp_path / "split.csv"), found.parts, found.class_names)
    assert contents(applied)["train"] == contents(found.parts)["train"]


def test_the_order_of_the_data_does_not_matter(data):
    shuffled = {
        "train": split_of(["e.png", "c.png", "a.png"], [1, 1, 0]),
        "test": split_of(["d.png", "b.png"], [0, 1]),
    }
    assert contents(apply_split(ROWS, shuffled, CLASSES)) == contents(apply_split(ROWS, data, CLASSES))


def test_labels_follow_the_class_order_of_the_data(data):
    turned = {name: split_of(part.names, 1 - part.labels) for name, part in data.items()}
    assert apply_split(ROWS, turned, CLASSES[::-1])["train"].labels.tolist() == [1, 0, 0]


def test_images_keep_the_order_of_rows(data):
    got = apply_split(ROWS[::-1], data, CLASSES)
    assert got["train"].names == ["c.png", "b.png", "a.png"]
    assert list(got["train"].images) == ["pixels of c.png", "pixels of b.png", "pixels of a.png"]


def test_arrays_and_resizing_are_kept():
    pixels = np.arange(4 * 12, dtype="uint8").reshape(4, 2, 2, 3)
    parts = {
        "train": Split(pixels[:3], np.array([0, 1, 0]), ["0", "1", "2"], resize="pad"),
        "test": Split(pixels[3:], np.array([1]), ["3"], resize="pad"),
    }
    got = apply_split([("3", "dog", "train"), ("0", "cat", "test")], parts, CLASSES)
    assert (got["train"].image(0, (2, 2)) == pixels[3]).all()
    assert (got["test"].image(0, (2, 2)) == pixels[0]).all()
    assert got["train"].resize == "pad" and len(got["val"]) == 0


def test_images_without_a_group_get_their_own(data):
    data["val"] = split_of(["d.png"], [0], ["p1"])
    got = apply_split(ROWS, data, CLASSES)
    assert list(got["val"].groups) == ["p1"]
    assert len(set(got["train"].groups) | {"p1"}) == 4


def test_composed_and_decomposed_accents_match(data, tmp_path):
    composed, decomposed = (normalize(form, "é.png") for form in ("NFC", "NFD"))
    names = {"NFC": normalize("NFC", "Zoë"), "NFD": normalize("NFD", "Zoë")}
    for in_data, in_file in (("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")):
        image = split_of([normalize(in_data, composed)], [0])
        write_split(
            tmp_path / "x.csv", {"train": split_of([normalize(in_file, composed)], [0])}, [names[in_file]]
        )
        rows = read_split(tmp_path / "x.csv")
        assert rows == [(composed, names["NFC"], "train")]
        assert len(apply_split(rows, {"train": image}, [names[in_data]])["train"]) == 1
        more = [*rows, (decomposed + "x", names["NFC"], "train")]
        apply_split(more, {"train": image}, [names[in_data]], skipped_names=[decomposed + "x"])


def test_images_that_the_data_lack_raise_an_error(data):
    rows = [*ROWS, *((f"a{i}.png", "cat", "train") for i in range(7))]
    rows = [row for row in rows if row[0] != "a.png"]
    assert error_of(rows, data, CLASSES) == (
        "Expected images of these data in the split file. Received 7 of 11 that are not in the data: 'a0.png', "
        "'a1.png', 'a2.png', 'a3.png', 'a4.png' and 2 more. Did you mean 'a.png'? Use the data that the split was "
        "made from."
    )


def test_other_labels_raise_an_error(data):
    rows = [("a.png", "dog", "train"), *ROWS[1:4], ("e.png", "cat", "test")]
    assert error_of(rows, data, CLASSES) == (
        "Expected the labels of the data in the split file. Received 2 of 5 that differ: 'a.png' is 'dog' in the "
        "file and 'cat' in the data; 'e.png' is 'cat' in the file and 'dog' in the data. Correct the file or the data."
    )


def test_classes_that_the_data_lack_raise_an_error(data):
    rows = [*ROWS[:4], ("e.png", "dogs", "test")]
    assert error_of(rows, data, CLASSES) == (
        "Unknown class 'dogs'. Did you mean 'dog'? Check the split file."
    )


def test_unknown_splits_raise_an_error(data, tmp_path):
    assert (
        error_of([("a.png", "cat", "trian")], data, CLASSES) == "Unknown split 'trian'. Did you mean 'train'?"
    )
    with pytest.raises(InputError, match=r"Unknown split 'tets'\. Did you mean 'test'"):
        write_split(tmp_path / "split.csv", {"tets": data["test"]}, CLASSES)
    assert not list(tmp_path.iterdir())


def test_an_image_that_occurs_twice_raises_an_error(data, tmp_path):
    (tmp_path / "split.csv").write_text(
        "path,label,split\na.png,cat,train\nb.png,dog,train\na.png,cat,test\n"
    )
    with pytest.raises(InputError) as raised:
        read_split(tmp_path / "split.csv")
    assert str(raised.value) == (
        "Expected every image once. Received 'a.png' twice: split.csv, line 2 and split.csv, line 4. Remove one."
    )
    assert "'a.png' twice: row 1 of the split and row 6 of the split" in error_of(
        [*ROWS, ROWS[0]], data, CLASSES
    )
    data["test"] = split_of(["a.png"], [0])
    assert "'a.png' twice: image 1 of the data and image 5 of the data" in error_of(ROWS, data, CLASSES)
    with pytest.raises(InputError, match=r"'a\.png' twice: image 1 of the data and image 5"):
        write_split(tmp_path / "new.csv", data, CLASSES)
    assert not (tmp_path / "new.csv").exists()


def test_a_split_without_training_images_raises_an_error(data):
    assert "none of these in train. Assign images to train." in error_of(ROWS[3:], data, CLASSES)
    assert "Received: 1 row, 0 of them with a readable image" in error_of(
        [("x.png", "cat", "train")], data, CLASSES, skipped_names=["x.png"]
    )


def test_skipped_rows_and_images_are_logged(data, caplog):
    rows = [*ROWS[:3], ("bad.png", "dog", "test")]
    with caplog.at_level(logging.WARNING):
        got = apply_split(rows, data, CLASSES, skipped_names=["bad.png", "other.png"])
    assert {name: len(part) for name, part in got.items()} == {"train": 3, "val": 0, "test": 0}
    assert caplog.messages == [
        "Skipped 1 row of the split file without a readable image.",
        "Left out 2 of 5 images that are not in the split file.",
    ]
    caplog.clear()
    apply_split(ROWS, data, CLASSES)
    assert not caplog.messages


def test_a_skipped_name_that_is_also_in_the_data_is_used(data):
    """One split may have a broken image with the name of a good image in another split."""
    assert len(apply_split(ROWS, data, CLASSES, skipped_names=["a.png"])["train"]) == 3


def test_a_file_without_splits_raises_an_error(tmp_path):
    (tmp_path / "split.csv").write_text("path,label\na.png,cat\n")
    with pytest.raises(InputError, match="expected a column 'split'"):
        read_split(tmp_path / "split.csv")
    (tmp_path / "split.csv").write_text("path,label,split\na.png,cat,\n")
    with pytest.raises(InputError, match=r"split\.csv, line 2: the split is empty\. Correct"):
        read_split(tmp_path / "split.csv")


class Failing(list):
    """Names that raise an error when they are read for the second time."""

    times = 0

    def __iter__(self):
        self.times += 1
        for i, name in enumerate(super().__iter__()):
            if self.times > 1 and i == 2:
                raise RuntimeError("broke off")
            yield name


@pytest.mark.parametrize("failing", ["names", "labels", "groups"])
def test_an_error_while_writing_keeps_the_old_file(data, tmp_path, failing):
    path = tmp_path / "split.csv"
    write_split(path, data, CLASSES)
    before = path.read_bytes()
    names = [f"{i}.png" for i in range(5000)]
    labels = [0] * 4999 + [7 if failing == "labels" else 0]
    groups = ["g"] * (4999 if failing == "groups" else 5000)
    broken = Split(names, np.array(labels), Failing(names) if failing == "names" else names, groups)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        write_split(path, {"train": broken}, CLASSES)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["split.csv"]


def test_names_that_no_encoding_can_write_raise_an_error(data, tmp_path):
    data["test"] = split_of(["\ud800.png"], [0])
    with pytest.raises(InputError, match="Cannot write the split to"):
        write_split(tmp_path / "split.csv", data, CLASSES)
    assert not list(tmp_path.iterdir())


def test_an_older_file_is_replaced(data, tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("x" * 100_000)
    with path.open() as reading:
        write_split(path, data, CLASSES)
        assert reading.read() == "x" * 100_000  # a reader still sees the whole old file
    assert read_split(path) == ROWS and os.listdir(tmp_path) == ["split.csv"]


def test_paths_that_cannot_be_written_raise_an_error(data, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, why in [
        (tmp_path / "none" / "split.csv", "No such file or directory"),
        (tmp_path / "file" / "split.csv", "Not a directory"),
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(InputError) as raised:
            write_split(path, data, CLASSES)
        assert str(raised.value) == (
            f"Cannot write {str(path)!r}: {why.lower()}. Choose a file in a writable folder."
        )
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_keeps_the_old_file(data, tmp_path):
    write_split(tmp_path / "split.csv", data, CLASSES)
    before = (tmp_path / "split.csv").read_bytes()
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            write_split(tmp_path / "split.csv", {"train": data["train"]}, CLASSES)
        assert (tmp_path / "split.csv").read_bytes() == before
    finally:
        tmp_path.chmod(0o700)
