"""Images with several labels and with numbers, from sources to splits and reports."""

import json

import numpy as np
import pytest
from helpers.images import write_image

from transfer.common.errors import InputError
from transfer.datasets import main
from transfer.images.data_report import DataReport
from transfer.images.datasets import load_data, load_test
from transfer.images.folds import fold_data
from transfer.images.split_file import read_split, write_split

NAMES = ("cat", "dog", "rare")
OPTIONS = {"near_duplicates": False}


def color(i) -> tuple[int, int, int]:
    return (i % 251, (i * 7) % 251, (i * 31) % 251)


def own_labels(i) -> list[str]:
    """Return the labels of an image: a third has a cat, a quarter a dog, one has the rare label."""
    return [name for name, has in zip(NAMES, (i % 3 == 0, i % 4 == 0, i == 24), strict=True) if has]


@pytest.fixture
def folder(tmp_path):
    """Write 120 images to a folder, and return it."""
    for i in range(120):
        write_image(tmp_path / "images" / f"{i:03}.png", color(i), size=4)
    return tmp_path


def write_list(folder, rows, columns="path,labels", name="list.csv"):
    (folder / name).write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return folder / name


@pytest.fixture
def several(folder):
    """Write a list of images with several labels beside their folder."""
    return write_list(folder, [(f"images/{i:03}.png", "|".join(own_labels(i))) for i in range(120)])


@pytest.fixture
def ages(folder):
    """Write a list of images with a number each."""
    return write_list(
        folder, [(f"images/{i:03}.png", i * 0.1 + 0.05) for i in range(120)], "path,age", "ages.csv"
    )


def by_name(data) -> dict[str, list]:
    return {
        name.rpartition("/")[2]: label
        for part in data.splits.values()
        for name, label in zip(part.names, part.labels.tolist(), strict=True)
    }


def where(data) -> dict[str, str]:
    return {name: split for split, part in data.splits.items() for name in part.names}


# Several labels


def test_a_list_beside_a_folder_of_images_gives_several_labels(several):
    data = load_data(str(several), **OPTIONS)
    assert data.task == "multi" and data.class_names == NAMES and not data.skipped
    expected = {f"{i:03}.png": [int(name in own_labels(i)) for name in NAMES] for i in range(120)}
    assert by_name(data) == expected
    assert repr(data).startswith("ImageData('list': 3 labels; ")


def test_every_label_has_its_fraction_in_every_split(several):
    data = load_data(str(several), val=0.2, test=0.25, **OPTIONS)
    whole = np.concatenate([part.labels for part in data.splits.values()])
    for part, fraction in ((data.val, 0.2), (data.test, 0.25)):
        assert len(part) == pytest.approx(120 * fraction, abs=3)
        assert np.abs(part.labels.sum(axis=0) - whole.sum(axis=0) * fraction).max() <= 1
        without = (~part.labels.any(axis=1)).sum()
        assert without == pytest.approx((~whole.any(axis=1)).sum() * fraction, abs=1)
    assert data.train.labels.sum(axis=0)[2] == 1, "the only image of a label trains"


def test_a_split_of_several_labels_depends_on_the_seed_and_not_on_the_order_of_rows(several, folder):
    first = where(load_data(str(several), seed=3, **OPTIONS))
    assert where(load_data(str(several), seed=3, **OPTIONS)) == first
    assert where(load_data(str(several), seed=4, **OPTIONS)) != first
    head, *rows = several.read_text().splitlines()
    other = folder / "other.csv"
    other.write_text("\n".join([head, *reversed(rows)]) + "\n")
    assert where(load_data(str(other), seed=3, **OPTIONS)) == first


def test_groups_and_duplicates_of_several_labels_stay_together(folder):
    for i in range(0, 120, 10):  # the next image is a copy
        (folder / "images" / f"{i + 1:03}.png").write_bytes((folder / "images" / f"{i:03}.png").read_bytes())
    rows = [(f"images/{i:03}.png", "|".join(own_labels(i - i % 10)), f"p{i // 5}") for i in range(120)]
    data = load_data(str(write_list(folder, rows, "path,labels,patient")), val=0.2, test=0.2, **OPTIONS)
    split_of = where(data)
    for group in range(24):
        assert len({split_of[f"images/{i:03}.png"] for i in range(5 * group, 5 * group + 5)}) == 1
    assert len(data.report.duplicates) == 12 and not data.report.conflicts
    assert all(len(part) for part in data.splits.values())


def test_copies_with_other_sets_of_labels_conflict_and_train(several, folder):
    (folder / "images" / "001.png").write_bytes((folder / "images" / "000.png").read_bytes())
    data = load_data(str(several), **OPTIONS)
    (conflict,) = data.report.conflicts
    assert conflict.names == ("images/000.png", "images/001.png") and conflict.classes == ("cat|dog", "")
    assert {where(data)[name] for name in conflict.names} == {"train"}


def test_one_image_in_folders_of_two_classes_has_both_labels(tmp_path):
    for i in range(30):
        write_image(tmp_path / "cats" / f"{i}.png", color(i), size=4)
        write_image(tmp_path / "dogs" / f"{i}.png", color(i if i < 5 else i + 100), size=4)
    data = load_data(str(tmp_path), task="multi", **OPTIONS)
    sums = {name: sum(row) for name, row in by_name(data).items()}
    assert sum(len(part) for part in data.splits.values()) == 55 and sorted(sums.values())[-5:] == [2] * 5
    texts = [finding.text for finding in data.report.findings]
    assert "Merged 5 images with exact copies: each image has the labels of all its copies." in texts
    assert len(load_data(str(tmp_path), **OPTIONS).report.conflicts) == 5, "as classes, they conflict"


def test_paths_that_are_listed_once_per_label_are_one_image(folder):
    rows = [(f"images/{i:03}.png", label) for i in range(120) for label in own_labels(i)]
    data = load_data(str(write_list(folder, rows)), task="multi", **OPTIONS)
    expected = {
        f"{i:03}.png": [int(name in own_labels(i)) for name in NAMES] for i in range(120) if own_labels(i)
    }
    assert by_name(data) == expected


def test_images_without_any_label_are_refused(folder):
    path = write_list(folder, [(f"images/{i:03}.png", 0, 0) for i in range(9)], "path,cat,dog")
    with pytest.raises(InputError, match="Received 9 training images without labels"):
        load_data(str(path), task="multi")


def test_the_task_single_refuses_several_labels(several):
    with pytest.raises(InputError, match=r"line 3: the label is empty.* Remove the \d+ rows without a label"):
        load_data(str(several), task="single")


def test_folds_test_each_image_with_several_labels_once(several):
    folded = fold_data(load_data(str(several), **OPTIONS), 4, seed=0)
    pool = folded.data.train
    assert len(pool) == 120 and folded.count == 4
    assert folded.folds[pool.labels[:, 2] == 1].tolist() == [-1], "the only image of a label trains"
    for fold in range(4):
        counts = pool.labels[folded.folds == fold].sum(axis=0)
        assert np.abs(counts[:2] - pool.labels.sum(axis=0)[:2] / 4).max() < 2
    final = folded.final()
    assert final.report.images["train"] == 120 and sum(final.report.label_numbers) == 120


# Numbers


def test_numbers_of_a_list_are_those_of_a_regression(ages):
    data = load_data(str(ages), task="regression", val=0.1, test=0.2, **OPTIONS)
    assert data.task == "regression" and data.class_names == ("age",) and data.num_classes == 1
    assert by_name(data) == {f"{i:03}.png": i * 0.1 + 0.05 for i in range(120)}
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 84, "val": 12, "test": 24}
    for band in range(10):  # of 12 images each
        low, high = band * 1.2, band * 1.2 + 1.2
        assert 2 <= ((data.test.labels > low) & (data.test.labels < high)).sum() <= 3
    assert repr(data).startswith("ImageData('ages': numbers (age); ")


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("path,age,weight_kg", (3, 4), "Received: 'age', 'weight_kg'. Use --label-column age"),
        ("path,height", ("tall",), r"expected a column 'label' \(or target, age, price, score\)"),
        ("path;age", ("30,5",), "Received: '30,5'. Write decimal points instead of commas"),
        ("path,label", ("NA",), "Expected finite numbers as labels, .* Received: 'NA'"),
        ("path,label", ("inf",), "Expected finite numbers as labels, .* Received: 'inf'"),
        ("path,label", (3,), "different numbers in 'list'. Received 120 images with the number 3"),
    ],
)
def test_lists_without_numbers_are_refused(folder, columns, cells, message):
    separator = ";" if ";" in columns else ","
    rows = [separator.join(map(str, (f"images/{i:03}.png", *cells))) for i in range(120)]
    (folder / "list.csv").write_text("\n".join([columns, *rows]) + "\n")
    with pytest.raises(InputError, match=message):
        load_data(str(folder / "list.csv"), task="regression")


def test_the_label_column_comes_before_quantities_and_numbers_before_words(folder):
    rows = [(f"images/{i:03}.png", i, 2 * i, f"c{i}") for i in range(120)]
    path = write_list(folder, rows, "path,age,label,label_name")
    data = load_data(str(path), task="regression", **OPTIONS)
    assert data.class_names == ("label",) and max(data.train.labels.max(), data.test.labels.max()) == 238
    data = load_data(str(path), task="regression", label_column="age", **OPTIONS)
    assert data.class_names == ("age",)


def test_class_folders_that_are_numbers_become_numbers(tmp_path):
    for i in range(60):
        write_image(tmp_path / ["1", "2.5", "10"][i % 3] / f"{i}.png", color(i), size=4)
    data = load_data(str(tmp_path), task="regression", **OPTIONS)
    assert data.class_names == ("value",) and {*data.train.labels.tolist()} == {1.0, 2.5, 10.0}
    (tmp_path / "10").rename(tmp_path / "ten")
    with pytest.raises(InputError, match="Received: 'ten'"):
        load_data(str(tmp_path), task="regression")


def test_copies_with_other_numbers_conflict(ages, folder):
    (folder / "images" / "001.png").write_bytes((folder / "images" / "000.png").read_bytes())
    data = load_data(str(ages), task="regression", **OPTIONS)
    assert [one.classes for one in data.report.conflicts] == [("0.05", "0.15000000000000002")]


def test_folds_of_numbers_have_all_bands(ages):
    folded = fold_data(load_data(str(ages), task="regression", **OPTIONS), 4, seed=0)
    means = [folded.data.train.labels[folded.folds == fold].mean() for fold in range(4)]
    assert np.ptp(means) < 0.5 and np.bincount(folded.folds).tolist() == [30] * 4


# Split files, test data and reports


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_split_files_give_the_same_split_again(task, several, ages, tmp_path):
    source, file = str(several if task == "multi" else ages), tmp_path / "split.csv"
    data = load_data(source, task=task, seed=5, **OPTIONS)
    write_split(file, data.splits, data.class_names)
    again = load_data(source, task=task, split_file=file, **OPTIONS)
    for split, part in data.splits.items():
        assert again.splits[split].names == list(part.names)
        assert np.array_equal(again.splits[split].labels, part.labels)
    if task == "regression":
        assert {float(label) for _, label, _ in read_split(file)} == {i * 0.1 + 0.05 for i in range(120)}
    # A split file is a list, too.
    (tmp_path / "images" / "split.csv").write_text(file.read_text().replace("images/", ""))
    listed = load_data(str(tmp_path / "images" / "split.csv"), task=task, **OPTIONS)
    assert np.array_equal(np.sort(listed.test.labels, axis=0), np.sort(data.test.labels, axis=0))


def test_a_list_of_test_images_has_the_labels_of_the_run(several, folder):
    order = ("rare", "dog", "bird", "cat")
    data = load_test(str(several), order, task="multi")
    assert data.task == "multi" and data.class_names == order and data.test.labels.shape == (120, 4)
    assert data.test.labels[0].tolist() == [0, 1, 0, 1] and data.test.labels[1].tolist() == [0, 0, 0, 0]
    rows = [(f"images/{i:03}.png", i % 2, 1) for i in range(9)]
    data = load_test(str(write_list(folder, rows, "path,dog,cat", "hot.csv")), order, task="multi")
    assert data.test.labels[1].tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match=r"Unknown class 'rare'.* 'list' has this class, the model does not"):
        load_test(str(several), ("cat", "dog"), task="multi")


def test_test_images_with_one_label_each_suit_a_run_with_several(folder):
    path = write_list(folder, [(f"images/{i:03}.png", NAMES[i % 2]) for i in range(9)])
    data = load_test(str(path), NAMES, task="multi")
    assert data.test.labels.tolist() == [[1, 0, 0] if i % 2 == 0 else [0, 1, 0] for i in range(9)]


def test_numbers_of_test_images(ages):
    data = load_test(str(ages), ("age",), task="regression")
    assert data.task == "regression" and data.test.labels.tolist() == [i * 0.1 + 0.05 for i in range(120)]
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype("uint8")
    assert load_test((x, [1.5, 2, 3]), ("age",), task="regression").test.labels.tolist() == [1.5, 2, 3]


def test_the_report_counts_labels_and_images(several, tmp_path, capsys):
    page, values = tmp_path / "page.html", tmp_path / "report.json"
    assert main([str(several), "--task", "multi", "--html", str(page), "--json", str(values)]) == 0
    text = capsys.readouterr().out
    assert "list: 3 labels  train  val  test" in text and "0 in 60 images, 1 in 50 images" in text
    found = DataReport.from_dict(json.loads(values.read_text()))
    assert found.label_numbers == (60, 50, 9, 1) and sum(found.images.values()) == 120
    assert {name: sum(c[i] for c in found.counts.values()) for i, name in enumerate(NAMES)} == {
        "cat": 40, "dog": 30, "rare": 1,
    }  # fmt: skip
    html = page.read_text()
    assert "120 readable images with 3 labels." in html and "Images per label" in html
    assert "class" not in html[html.index("Images per label") :].replace('class="', "")


def test_the_report_has_bands_of_numbers(ages, tmp_path, capsys):
    page, values = tmp_path / "page.html", tmp_path / "report.json"
    assert (
        main(
            [
                str(ages),
                "--task",
                "regression",
                "--near-duplicates",
                "false",
                "--html",
                str(page),
                "--json",
                str(values),
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "ages: numbers (age)" in text and "0.05 to 11.95, median 6" in text
    found = DataReport.from_dict(json.loads(values.read_text()))
    assert found.bands == (0, 2, 4, 6, 8, 10, 12) and found.row_names[0] == "0 to 2"
    assert np.sum([*found.band_counts.values()], axis=0).tolist() == [20] * 6
    html = page.read_text()
    assert "120 readable images with numbers (age)." in html and "<td>10 to 12</td>" in html
