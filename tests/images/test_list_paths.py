"""Paths of a list that do not exist as written: without extension, in sub-folders, or from another machine."""

import os

import pytest

from transfer.images.list_paths import PathFinder


@pytest.fixture
def finder(tmp_path):
    def made(*files, content=None):
        for file in files:
            target = tmp_path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content or file)
        return PathFinder(str(tmp_path))

    return made


def found(finder, written, label="", split=None):
    file, problem = finder.find(written, label, split)
    assert not problem
    return os.path.relpath(file, finder.folder) if file else ""


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("a/1.png", "a/1.png"),
        ("a/1", "a/1.jpg"),
        ("a/1.v2", "a/1.v2.PNG"),
        ("A/1.JPG", "A/1.jpg"),
        ("Train/Cats/1.JPG", "train/cats/1.jpg"),
        ("a\\1", "a/1.jpeg"),
        (" a/1.png ", "a/1.png"),
        ("ISIC_1", "images/part 2/ISIC_1.jpg"),
        ("ISIC_1.jpg", "images/ISIC_1.JPG"),
    ],
)
def test_files_are_found_without_extension_and_below_the_folder(finder, written, file):
    assert found(finder(file), written) == file


def test_a_file_uri_is_a_path(finder, tmp_path):
    assert found(finder("a b.png"), f"file://{tmp_path}/a b.png") == "a b.png"


@pytest.mark.parametrize("written", ["a/1.png", "1.png", "a/1", "1", ""])
def test_files_of_other_names_are_not_found(finder, written):
    assert found(finder("b/11.png", "b/1.txt", ".hidden/1.png"), written) == ""


def test_a_name_in_another_folder_than_the_written_one_is_not_used(finder):
    assert found(finder("test/1.png"), "train/1.png") == ""


def test_a_name_of_several_files_is_a_problem(finder):
    made = finder("a/1.jpg", "b/1.jpg", "c/2.jpg", "c/2.png")
    assert made.find("1") == ("", "2 files have this name: a/1.jpg and b/1.jpg")
    assert made.find("c/2") == ("", "2 files have this name: c/2.jpg and c/2.png")
    assert found(made, "c/2.png") == "c/2.png"


def test_the_folder_of_the_class_decides_between_files_of_one_name(finder):
    assert found(finder("train/cat/1.jpg", "train/dog/1.jpg"), "1.jpg", "dog") == "train/dog/1.jpg"


def test_the_folder_of_the_split_decides_between_files_of_one_name(finder):
    assert (
        found(finder("train_images/1.jpg", "test_images/1.jpg"), "1", split="train") == "train_images/1.jpg"
    )


def test_masks_of_the_same_name_are_not_images(finder):
    assert found(finder("images/1.jpg", "masks/1.png"), "1") == "images/1.jpg"


def test_copies_of_a_file_are_not_a_problem(finder):
    assert found(finder("Part_1/1.jpg", "part_1 copy/1.jpg", content="same"), "1") == "Part_1/1.jpg"


@pytest.mark.parametrize(
    "prefix",
    ["C:\\Users\\me\\data\\", "/kaggle/input/pets/", "/content/drive/My Drive/", "data\\", "\\\\server\\x\\"],
)
@pytest.mark.parametrize("ending", [".png", ""])
def test_paths_of_another_machine(finder, prefix, ending):
    made = finder("cats/1.png", "dogs/2.png")
    sample = [
        prefix + path.replace("/", "\\" if "\\" in prefix else "/") + ending for path in ("cats/0", "dogs/2")
    ]
    assert made.move(sample)
    assert found(made, sample[1]) == "dogs/2.png"
    assert found(made, sample[0]) == ""  # only skipped
    assert found(made, "/elsewhere/dogs/2.png") == ""  # not the same prefix


def test_a_name_alone_is_enough_only_if_all_files_are_in_one_folder(finder):
    made = finder("1.png", "2.png")
    assert not made.move(["/x/cats/1.png", "/x/dogs/2.png"])
    assert made.move(["/x/y/1.png", "/x/y/2.png"]) and found(made, "/x/y/2.png") == "2.png"


def test_the_folder_above_the_list_and_the_current_one_are_tried(finder, tmp_path, monkeypatch):
    finder("images/a/1.png")
    (tmp_path / "lists" / "new").mkdir(parents=True)
    assert PathFinder(str(tmp_path / "lists")).move(["images/a/1.png"])
    deeper = PathFinder(str(tmp_path / "lists" / "new"))
    assert not deeper.move(["images/a/1.png"])
    monkeypatch.chdir(tmp_path)
    assert deeper.move(["images/a/1.png"])
    assert os.path.samefile(deeper.find("images/a/1.png")[0], "images/a/1.png")


def test_examples_of_images(finder):
    assert finder("b/2.png", "a/1.jpg", "a/x.txt").examples() == ["a/1.jpg", "b/2.png"]
