"""Lists of images as a source: images, labels, splits, groups, and how paths are resolved."""

import os
import tracemalloc
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pytest
from helpers.images import COLORS, write_image
from pyarrow import parquet

from transfer.common.errors import InputError
from transfer.images.columns import Given
from transfer.images.manifest import read_manifest

COMPOSED, DECOMPOSED = normalize("NFC", "Zoë é.png"), normalize("NFD", "Zoë é.png")


@pytest.fixture
def write(tmp_path):
    """Write a list, and an empty file for each given image."""

    def written(content: str | bytes, *files: str, name="list.csv"):
        for file in files:
            target = tmp_path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        path = tmp_path / name
        path.write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        )
        return path

    return written


def refusal(path, task="auto") -> str:
    with pytest.raises(InputError) as raised:
        read_manifest(path, task=task)
    return str(raised.value)


def opened(found, part="train") -> list[str]:
    return list(found.parts[part].images)


def flat(found):
    """Return everything that a source holds, in a form that can be compared."""
    return found.class_names, {
        name: (list(part.names), part.labels.tolist(), list(part.groups), list(part.images))
        for name, part in found.parts.items()
    }


def test_paths_are_relative_to_the_folder_of_the_list(tmp_path, monkeypatch):
    for i, color in enumerate(COLORS.values()):
        write_image(tmp_path / "data" / f"{i}.png", color, size=8)
    (tmp_path / "data" / "list.csv").write_text("path,label\n2.png,red\n0.png,blue\n1.png,green\n")
    monkeypatch.chdir(tmp_path)
    train = read_manifest(Path("data/list.csv")).parts["train"]
    colors = [train.image(i, (8, 8)).mean(axis=(0, 1)) for i in range(3)]
    assert [int(color.argmax()) for color in colors] == [0, 2, 1]


def test_names_labels_and_classes(write):
    found = read_manifest(write("path,label,x\nb/1.png,dog,3\na.png, cat ,4\nc.png,dog,5\n", "a.png"))
    train = found.parts["train"]
    assert list(found.parts) == ["train"] and found.class_names == ["cat", "dog"]
    assert train.names == ["b/1.png", "a.png", "c.png"] and train.labels.tolist() == [1, 0, 1]
    assert train.labels.dtype == np.int64 and len(train.groups) == 0
    assert list(found.skipped) == list(found.ignored) == []


def test_rows_are_sorted_into_splits(write):
    text = "path,label,split\nt.png,b,Testing\nv.png,a,dev\na.png,a,train\nb.png,b,Training\nw.png,b,valid\n"
    found = read_manifest(write(text, "a.png"))
    assert {name: part.names for name, part in found.parts.items()} == {
        "train": ["a.png", "b.png"],
        "val": ["v.png", "w.png"],
        "test": ["t.png"],
    }
    assert list(found.parts) == ["train", "val", "test"]
    assert found.parts["val"].labels.tolist() == [0, 1]
    assert [Path(p).name for p in opened(found, "val")] == ["v.png", "w.png"]


def test_an_empty_split_column_is_ignored(write):
    assert list(read_manifest(write("path,label,split\na.png,x,\nb.png,y, \n", "a.png")).parts) == ["train"]


def test_rows_without_a_split_among_others_are_refused(write):
    assert refusal(write("path,label,split\na.png,x,train\nb.png,y,\nc.png,y,\n", "a.png")) == (
        "list.csv, line 3: expected a split, since other rows have one. Received 2 rows without a split. Write train, "
        "val or test in these, or remove the column."
    )


def test_splits_without_train_are_refused(write):
    message = refusal(write("path,label,split\na.png,x,val\nb.png,y,test\n", "a.png"))
    assert message == (
        "list.csv: expected rows with the split train. Received only: val, test. Assign some rows to train, or "
        "remove the column."
    )


def test_a_class_without_training_images_is_refused(write):
    text = "path,label,split\na.png,cat,train\nb.png,dog,train\nc.png,cat,test\nd.png,cats,test\n"
    assert refusal(write(text, "a.png")) == (
        "Unknown class 'cats'. Did you mean 'cat'? It is in list.csv, line 5, for test, but not in train."
    )


def test_a_column_of_groups_is_read(write):
    text = "path,label,Patient\na.png,x,p1\nb.png,x,\nc.png,y, p1 \nd.png,y,\n"
    groups = read_manifest(write(text, "a.png")).parts["train"].groups
    assert groups[0] == groups[2] == "p1"
    assert len(set(groups)) == 3  # a row without a group is a group of its own
    assert len(read_manifest(write("path,label,group\na.png,x,\nb.png,y,\n")).parts["train"].groups) == 0


def test_groups_follow_their_images_into_splits(write):
    text = "path,label,group,split\na.png,x,1,test\nb.png,x,2,train\nc.png,x,3,test\n"
    parts = read_manifest(write(text, "a.png")).parts
    assert list(parts["train"].groups) == ["2"] and list(parts["test"].groups) == ["1", "3"]


def test_lesions_and_patients_are_one_column_of_groups(write):
    text = "path,label,lesion_id,PatientID\na.png,x,1,p\nb.png,y,2,p\nc.png,y,3,q\nd.png,x,4,unknown\ne.png,x,4,\n"
    found = read_manifest(write(text, "a.png"))
    groups = found.parts["train"].groups
    assert groups[0] == groups[1] != groups[2] and groups[3] == groups[4] != groups[2]
    assert found.notes == [
        (
            "Columns of the list: path from 'path', label from 'label', group from 'PatientID', 'lesion_id'.",
            False,
        )
    ]


def test_visits_that_start_again_for_each_patient_are_reported(write):
    rows = "".join(f"{i}.png,{'xy'[i % 2]},p{i // 4},{i % 4}\n" for i in range(12))
    found = read_manifest(write(f"path,label,patient,visit_no\n{rows}", "0.png"))
    assert len(set(found.parts["train"].groups)) == 3
    assert found.notes[-1] == (
        "The column 'visit_no' ('patient' is used, which shares its values) is not used. The options --label-column, "
        "--split-column and --group-column use a column.",
        False,
    )


def test_a_column_that_may_hold_groups_is_reported_as_serious(write):
    rows = "".join(f"{i}.png,{'xy'[i % 2]},S{i // 4},{20 + i}\n" for i in range(12))
    path = write(f"path,label,site_id,age\n{rows}", "0.png")
    assert read_manifest(path).notes == [
        (
            "The column 'site_id' ('S0', 'S1' and 1 more) may name groups, such as patients, but is not used: images "
            "of one group may be in several splits. Use --group-column NAME, or --group-column none if no images "
            "belong together.",
            True,
        ),
        (
            "The column 'age' is not used. The options --label-column, --split-column and --group-column use a column.",
            False,
        ),
    ]
    assert len(set(read_manifest(path, Given(group="site_id")).parts["train"].groups)) == 3
    assert not any(serious for _, serious in read_manifest(path, Given(group="none")).notes)


def test_test_images_need_no_training_images(write):
    path = write("path,label,split,patient\na.png,x,test,1\nb.png,y,test,1\n", "a.png")
    assert list(read_manifest(path, for_test=True).parts) == ["test"]


def test_one_hot_columns_give_the_classes(write):
    path = write("image,MEL,NV,BCC\na,1.0,0.0,0.0\nb,0.0,0.0,1.0\n", "a.jpg", "b.jpg")
    found = read_manifest(path)
    assert found.class_names == ["BCC", "MEL"] and found.parts["train"].labels.tolist() == [1, 0]
    message = refusal(write("image,MEL,NV,BCC\na,1,1,0\nb,0,0,1\nc,0,0,0\n", "a.jpg"), "single")
    assert message == (
        "list.csv, line 2: 2 classes are marked: 'MEL', 'NV'; list.csv, line 4: no class is marked among 'MEL', 'NV', "
        "'BCC'. Images with several labels, or none, need --task multi; --label-column A,B names the columns."
    )


def test_several_labels_are_refused_with_the_task_single(write):
    assert refusal(write("image,labels\na,scab\nb,rust\nc,rust scab\n", "a.jpg"), "single") == (
        "list.csv: expected one class for each image. Received 1 label of several classes: 'rust scab'. Use --task "
        "multi for images with several labels. If such a label is one class, write it with underscores."
    )


def test_equal_numbers_are_one_class(write, caplog):
    caplog.set_level("INFO")
    found = read_manifest(write("image,label\na,0\nb,0.0\nc,1.0\nd,1\n", "a.jpg"))
    assert found.class_names == ["0", "1"] and found.parts["train"].labels.tolist() == [0, 0, 1, 1]
    assert "Some labels are the same number: 0.0 is 0, 1.0 is 1." in caplog.text


def test_names_without_extension_are_found_in_folders(write, tmp_path):
    path = write(
        "lesion_id,image_id,dx\n1,ISIC_1,nv\n1,ISIC_2,nv\n2,ISIC_3,mel\n3,ISIC_4,mel\n",
        *("part_1/ISIC_1.jpg", "part_2/ISIC_2.jpg", "part_1/ISIC_3.jpg", "part_2/ISIC_3.JPG"),
    )
    (tmp_path / "part_1/ISIC_3.jpg").write_text("another image")
    found = read_manifest(path)
    assert opened(found) == [str(tmp_path / f) for f in ("part_1/ISIC_1.jpg", "part_2/ISIC_2.jpg", "ISIC_4")]
    assert found.skipped == [("ISIC_3", "2 files have this name: part_1/ISIC_3.jpg and part_2/ISIC_3.JPG")]
    assert found.parts["train"].names == ["ISIC_1", "ISIC_2", "ISIC_4"]


def test_a_list_named_like_a_split_means_the_images_of_that_split(write, tmp_path):
    path = write(
        "id,label\n1,a\n2,b\n", *(f"{s}/{i}.jpg" for s in ("train", "test") for i in (1, 2)), name="train.csv"
    )
    assert opened(read_manifest(path)) == [str(tmp_path / "train/1.jpg"), str(tmp_path / "train/2.jpg")]


def test_paths_of_another_machine_are_moved_with_a_log_line(write, tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(
        "path,label\nC:\\me\\data\\cat\\1.png,cat\nC:\\me\\data\\dog\\2.png,dog\n", "cat/1.png", "dog/2.png"
    )
    assert opened(read_manifest(path)) == [str(tmp_path / "cat/1.png"), str(tmp_path / "dog/2.png")]
    assert f"Using the files below {str(tmp_path)!r}, without 'C:/me/data' at the beginning." in caplog.text


def test_the_error_for_missing_images_shows_images_that_are_there(write):
    message = refusal(write("id,label\n7,a\n8,b\n", "images/0007.png"))
    assert "None of the 2 paths is a file." in message
    assert "The folder has images such as 'images/0007.png'. Correct the paths" in message


def test_missing_labels_are_refused_with_their_number(write):
    message = refusal(write("path,label\na.png,x\n" + "b.png,nan\nc.png,\n" * 4, "a.png"))
    assert message.endswith(
        "; and 3 more. Remove the 8 rows without a label; transfer.predict can label them."
    )


def test_a_path_that_is_listed_twice_gives_two_images(write):
    text = "path,label,split\na.png,x,train\na.png,y,train\nb.png,y,train\na.png#2,y,train\na.png,x,test\n"
    found = read_manifest(write(text, "a.png"))
    names = [name for part in found.parts.values() for name in part.names]
    assert names[:2] == ["a.png", "a.png#2"] and names[-1] == "a.png#3"
    assert len(set(names)) == 5
    assert opened(found)[0] == opened(found)[1] == opened(found, "test")[0]
    assert found.parts["train"].labels.tolist() == [
        0,
        1,
        1,
        1,
    ]  # two labels, which the check reports


def test_numeric_labels_are_sorted_as_text(write):
    found = read_manifest(write("path,label\na.png,10\nb.png,9\nc.png,1\n", "a.png"))
    assert found.class_names == ["1", "10", "9"] and found.parts["train"].labels.tolist() == [1, 2, 0]


def test_absolute_and_home_paths_are_resolved(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    absolute = str(tmp_path / "far" / "a.png")
    path = write(
        f"path,label\n{absolute},x\n~/b.png,y\n../c.png,y\n", "far/a.png", "home/b.png", name="list.csv"
    )
    found = read_manifest(path)
    assert opened(found) == [absolute, str(tmp_path / "home/b.png"), str(tmp_path / "../c.png")]
    assert found.parts["train"].names == [absolute, "~/b.png", "../c.png"]


def test_backslashes_of_windows_are_accepted(write, tmp_path):
    path = write("path,label\nsub\\a.png,x\nsub\\none.png,y\n", "sub/a.png")
    found = read_manifest(path)
    assert opened(found) == [str(tmp_path / "sub/a.png"), str(tmp_path / "sub\\none.png")]
    write("", "sub\\a.png")
    assert opened(found)[0] == str(tmp_path / "sub\\a.png")  # as written, if that exists


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED], ids=["stored NFC", "stored NFD"])
@pytest.mark.parametrize("listed", [COMPOSED, DECOMPOSED], ids=["listed NFC", "listed NFD"])
def test_accents_match_in_either_normal_form(write, tmp_path, stored, listed):
    text = (
        f"path,label,group\nsub\\{listed},{Path(listed).stem},{listed}\nb.png,y,{COMPOSED}\nc.png,y,other\n"
    )
    found = read_manifest(write(text, f"sub/{stored}"))
    assert opened(found)[0] == str(tmp_path / "sub" / stored)
    assert found.parts["train"].names[0] == f"sub\\{COMPOSED}"
    assert found.class_names == sorted([Path(COMPOSED).stem, "y"])
    assert list(found.parts["train"].groups) == [COMPOSED, COMPOSED, "other"]


def test_both_normal_forms_of_a_name_in_one_folder_stay_distinct(write, tmp_path):
    text = f"path,label\n{DECOMPOSED},{DECOMPOSED}\n{COMPOSED},{COMPOSED}\n"
    found = read_manifest(write(text, DECOMPOSED, COMPOSED))
    assert opened(found) == [str(tmp_path / DECOMPOSED), str(tmp_path / COMPOSED)]
    assert found.parts["train"].names == [COMPOSED, f"{COMPOSED}#2"]
    assert found.class_names == [COMPOSED]


def test_file_names_that_are_not_utf_8_are_read(write, tmp_path):
    name = "caf\udce9.png"
    found = read_manifest(write(f"path,label\n{name},x\nb.png,y\n", name))
    assert os.path.exists(opened(found)[0]) and found.parts["train"].names[0] == name


@pytest.mark.parametrize(
    "row",
    ["café.png,x,", "a.png,café,", "a.png,x,José"],
    ids=["path", "label", "group"],
)
def test_a_list_in_latin_1_is_refused(write, row):
    message = refusal(write(f"path,label,group\na.png,x,\n{row}\n".encode("latin-1"), "a.png"))
    assert message.startswith(
        "list.csv, line 3: expected text in UTF-8, or the name of an existing file. Received"
    )
    assert message.endswith("Save the list as UTF-8; in Excel, choose 'CSV UTF-8'.")
    message.encode("utf-8")  # it can be printed


def test_a_path_or_label_of_spaces_is_empty(write):
    message = refusal(write("path,label\na.png,x\n  ,x\nb.png, \n", "a.png"))
    assert message == (
        "list.csv, line 3: the path is empty; list.csv, line 4: the label is empty. Correct or remove these rows."
    )


def test_urls_are_refused(write):
    message = refusal(
        write("path,label\na.png,x\nhttps://example.org/b.png,x\ns3://bucket/c.png,y\n", "a.png")
    )
    assert message.startswith(
        "list.csv, line 3: 'https://example.org/b.png' is a URL; download the images first; list.csv, line 4: 's3://"
    )


def test_some_missing_images_are_no_error(write):
    text = "path,label\n" + "".join(f"{i}.png,{'xy'[i % 2]}\n" for i in range(900))
    found = read_manifest(write(text, "899.png"))
    assert len(found.parts["train"]) == 900 and len(found.skipped) == 0


def test_a_list_of_missing_images_is_refused(write, tmp_path):
    text = "path,label\n" + "".join(f"img/{i}.png,{'xy'[i % 2]}\n" for i in range(2000))
    path = write(text, "other/1500.png")
    (tmp_path / "img" / "3.png").mkdir(parents=True)  # a folder is not an image
    assert refusal(path) == (
        f"list.csv, line 2: 'img/0.png' means {str(tmp_path / 'img/0.png')!r}, which is not a file. None of "
        f"the 2,000 paths is a file. Expected paths that are absolute, or relative to the folder of the list, "
        f"{str(tmp_path)!r}. The folder has images such as 'other/1500.png'. Correct the paths, or move the list."
    )


def test_parquet_gives_the_same_images_as_csv(write, tmp_path):
    columns = {
        "file_name": ["b.png", "a.png", COMPOSED, "a.png"],
        "category": [3, 1, 3, 1],
        "subset": ["train", "train", "validation", "test"],
        "subject": ["s1", None, "s2", None],
    }
    rows = [
        "file_name,category,subset,subject",
        *(",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)),
    ]
    csv = read_manifest(write("\n".join(rows), "b.png"))
    parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert flat(read_manifest(tmp_path / "list.parquet")) == flat(csv)
    columns["category"] = [3.0, 1.0, 3.0, 1.0]
    columns["subset"] = pa.array(columns["subset"]).dictionary_encode()
    parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert flat(read_manifest(tmp_path / "list.parquet")) == flat(csv)


def test_errors_in_parquet_name_the_row(write, tmp_path):
    write("", "a.png")
    path = tmp_path / "list.parquet"
    parquet.write_table(
        pa.table({"path": ["a.png", "b.png"], "label": ["x", "y"], "split": ["train", None]}), path
    )
    assert refusal(path).startswith("list.parquet, row 2: expected a split")


def test_labels_do_not_depend_on_the_order_of_rows(write):
    rows = [f"{i}.png,{'zebra' if i % 3 else 'ant'}" for i in range(20)]
    found = [read_manifest(write("\n".join(["path,label", *order]), "7.png")) for order in (rows, rows[::-1])]
    pairs = [dict(zip(f.parts["train"].names, f.parts["train"].labels.tolist(), strict=True)) for f in found]
    assert pairs[0] == pairs[1] and found[0].class_names == found[1].class_names == ["ant", "zebra"]


def test_memory_per_row_is_modest(write):
    count = 20_000
    rows = (f"images/{i:07}.png,class{i % 100},train,patient{i // 50}" for i in range(count))
    path = write("path,label,split,group\n" + "\n".join(rows), "images/0000000.png")
    read_manifest(path)  # imports and caches of the first call are not counted
    tracemalloc.start()
    found = read_manifest(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.parts["train"]) == count
    assert peak / count < 230  # bytes; 198 were measured


def test_classes_that_may_stand_for_missing_labels_are_reported(write):
    list_of_r = write("path,label\na.png,cat\nb.png,NA\nc.png,none\n", "a.png", "b.png", "c.png")
    found = read_manifest(list_of_r)
    assert found.class_names == ["NA", "cat", "none"]
    assert [text for text, serious in found.notes if serious] == [
        "Some class names may stand for missing labels: 'NA'. If so, remove these rows."
    ]


def labels_of(found, part="train") -> list[set[str]]:
    """Return the labels of each image by name."""
    rows = found.parts[part].labels
    return [{found.class_names[i] for i in np.flatnonzero(row)} for row in rows]


@pytest.mark.parametrize(
    ("cell", "separator"),
    [
        ("scab|rust", " Cells are separated at '|'."),
        ("scab; rust", " Cells are separated at ';'."),
        ('"scab,rust"', " Cells are separated at ','."),
        ("rust scab", " Cells are separated at ' '."),
        ('"[""rust"", ""scab""]"', ""),
        ("['rust' 'scab']", ""),
    ],
)
def test_cells_with_several_labels_are_found_and_separated(write, cell, separator):
    found = read_manifest(write(f"image,labels\na,scab\nb,rust\nc,{cell}\nd,\ne,none\n", "a.jpg"))
    assert found.task == "multi" and found.class_names == ["rust", "scab"]
    assert found.parts["train"].labels.dtype == np.int8
    assert labels_of(found) == [{"scab"}, {"rust"}, {"rust", "scab"}, set(), set()]
    note = f"Found 1 image with several labels and 2 without labels: task multi.{separator}"
    assert found.notes[-1] == (note, False)


def test_a_cell_of_several_labels_separates_all_cells_of_the_list(write):
    text = "image,labels\na,cat|dog\nb,cat\nc,dog\nd,cow|pig\n"
    assert labels_of(read_manifest(write(text, "a.jpg")))[3] == {"cow", "pig"}


def test_without_evidence_only_the_task_multi_separates_cells(write):
    path = write("image,labels\na,cat|dog\nb,cow|pig\nc,\n", "a.jpg")
    assert "line 4: the label is empty" in refusal(path)
    found = read_manifest(path, task="multi")
    assert labels_of(found) == [{"cat", "dog"}, {"cow", "pig"}, set()]
    plain = write("image,labels\na,golden retriever\nb,hot dog\n", "a.jpg")
    assert read_manifest(plain, task="multi").class_names == ["golden retriever", "hot dog"]


def test_the_labels_of_a_model_are_not_separated_and_separate_others(write):
    path = write('image,labels\na,"dog, small"\nb,scab rust\n', "a.jpg")
    known = ["dog, small", "rust", "scab"]
    found = read_manifest(path, task="multi", for_test=True, known_labels=known)
    assert labels_of(found) == [{"dog, small"}, {"rust", "scab"}]


def test_one_hot_columns_with_several_marks_or_none_are_several_labels(write):
    found = read_manifest(write("image,MEL,NV,A|B\na,1,1,0\nb,0,0,1\nc,0,0,0\n", "a.jpg"))
    assert found.task == "multi" and labels_of(found) == [{"MEL", "NV"}, {"A|B"}, set()]


def test_a_few_images_with_several_labels_need_action(write):
    rows = "".join(f"{i},{'cat' if i % 2 else 'dog'}\n" for i in range(200))
    notes = read_manifest(write(f"image,labels\n{rows}x,cat|dog\n", "1.jpg")).notes
    assert notes[-1] == (
        "Found 1 image with several labels: task multi. Cells are separated at '|'. If these are mistakes, "
        "correct them.",
        True,
    )


def test_a_label_of_test_images_only_is_refused(write):
    path = write("image,labels,split\na,cat|dog,train\nb,cat,train\nc,dog,train\nd,cat|cow,test\n", "a.jpg")
    message = refusal(path, "multi")
    assert message.startswith("Unknown class 'cow'. ")
    assert message.endswith("It is in list.csv, line 5, for test, but not in train.")


def test_numbers_of_a_regression_may_differ_between_splits(write):
    path = write("image,age,split\na,30.5,train\nb,41,train\nc,7,test\n", "a.jpg")
    found = read_manifest(path, task="regression")
    assert found.task == "single" and found.target == "age"
    assert found.class_names == ["30.5", "41", "7"]
    assert "line 3: the label is empty" in refusal(write("image,age\na,1\nb,\nc,2\n", "a.jpg"), "regression")


def test_lists_of_text_in_parquet_are_several_labels(tmp_path):
    (tmp_path / "a.png").touch()
    table = pa.table({"path": ["a.png", "b.png", "c.png"], "labels": [["cat", "dog"], [], ["cat"]]})
    parquet.write_table(table, tmp_path / "x.parquet")
    found = read_manifest(tmp_path / "x.parquet")
    assert labels_of(found) == [{"cat", "dog"}, set(), {"cat"}]


def test_other_cells_than_0_and_1_in_columns_of_labels_are_refused(write):
    path = write("image,edema,mass\na,1.0,-1.0\nb,,1\nc,2,0\n", "a.jpg")
    with pytest.raises(InputError) as raised:
        read_manifest(path, Given(label="edema,mass"), task="multi")
    assert str(raised.value) == (
        "list.csv, line 2: expected 0 or 1 in the column 'mass', not '-1.0'; list.csv, line 4: expected 0 or 1 in the "
        "column 'edema', not '2'. Correct or remove these rows."
    )
