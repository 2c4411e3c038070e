"""Common folder layouts: splits and classes are recognized, or the folder is refused."""

from pathlib import Path

import numpy as np
import pytest
from helpers.images import write_image

from transfer.common.errors import InputError
from transfer.datasets import main
from transfer.images.datasets import load_data, load_test
from transfer.images.folder_source import read_folder
from transfer.images.splitting import SourceData

PETS = ("cats", "dogs")


def make(root: Path, *places: str, name: str = "0.png", content: bytes = b"") -> Path:
    """Write a file into each place; a layout is read without opening images."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / name).write_bytes(content)
    return root


def inside(tops: tuple[str, ...], children: tuple[str, ...] = PETS) -> list[str]:
    return [f"{top}/{child}" for top in tops for child in children]


def read(root: Path, *places: str) -> SourceData:
    return read_folder(make(root, *places))


def first_names(data: SourceData) -> dict[str, set[str]]:
    """Return the first folder of the names in each split."""
    return {split: {name.split("/")[0] for name in part.names} for split, part in data.parts.items()}


# Splits


@pytest.mark.parametrize(("train", "other", "split"), [
    ("training_set", "test_set", "test"), ("seg_train", "seg_test", "test"), ("train_images", "test_images", "test"),
    ("train_images", "val_images", "val"), ("Train", "Hold-out", "test"), ("imgs_train", "imgs_valid", "val"),
    ("train2017", "val2017", "val"), ("trainset", "testset", "test"), ("TrainSet", "DevSet", "val"),
    ("Training Data", "Testing Data", "test"), ("train", "eval", "val"), ("TRN", "TST", "test"),
    ("train ", "test", "test"), ("ILSVRC2012_img_train", "ILSVRC2012_img_val", "val"), ("train", "test_data", "test"),
    ("dataset-train", "dataset-validate", "val"), ("1_train", "2_test", "test"),
])  # fmt: skip
def test_names_with_the_word_of_a_split_are_splits(train, other, split, tmp_path):
    data = read(tmp_path, *inside((train, other)))
    assert data.class_names == [*PETS] and not data.skipped and not data.notes
    assert first_names(data) == {"train": {train}, split: {other}}


def test_the_data_of_a_split_named_with_a_prefix_load(tmp_path):
    for i, place in enumerate(inside(("training_set", "test_set"))):
        for k in range(4):
            write_image(tmp_path / place / f"{k}.png", (90, 90, 90), size=8, seed=10 * i + k)
    data = load_data(tmp_path)
    assert data.class_names == PETS and len(data.test) == 8 and len(data.train) + len(data.val) == 8


@pytest.mark.parametrize("tops", [
    ("2023", "2024"), ("fold_0", "fold_1", "fold_2"), ("camera1", "camera2"), ("Site A", "Site B"),
    ("part I", "part II"), ("batch-a", "batch-b"),
])  # fmt: skip
def test_numbered_folders_with_the_same_sub_folders_are_refused(tops, tmp_path):
    message = (
        r"differ only in a number or letter and hold the same sub-folders: 'cats', 'dogs'\. "
        r"The classes would be .* rename them to train, val and test.* merge"
    )
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, *inside(tops))
    assert all(repr(top) in str(caught.value) for top in tops)


@pytest.mark.parametrize("tops", [("raw", "augmented"), ("robin", "finch"), ("Trainingsdaten", "Testdaten")])
def test_other_folders_with_the_same_sub_folders_are_classes_with_a_warning(tops, tmp_path):
    data = read(tmp_path, *inside(tops, ("Male", "female")), f"{tops[0]}/male", f"{tops[1]}/unknown")
    assert data.class_names == sorted(tops)
    ((text, serious),) = data.notes
    assert (
        serious and all(repr(top) in text for top in tops) and "hold the same sub-folders: 'female'" in text
    )


def test_sub_folders_are_compared_below_a_sole_folder_too(tmp_path):
    data = read(tmp_path, *inside(("amazon/images", "webcam/images")))
    assert "hold the same sub-folders: 'cats', 'dogs'" in data.notes[0][0]
    with pytest.raises(InputError, match="differ only in a number"):
        read(tmp_path / "folds", *inside(("fold1/images", "fold2/images")))


@pytest.mark.parametrize(("tops", "result"), [
    (("train_station", "test_tube"), "The classes would be 'test_tube', 'train_station'"),
    (("entrainement", "validation"), "The classes would be 'entrainement', 'validation'"),
    (("train", "augmented"), "Only 'train' would be used"),
    (("train", "car", "plane"), "Only 'train' would be used"),
])  # fmt: skip
def test_folders_that_are_partly_named_like_splits_are_refused(tops, result, tmp_path):
    with pytest.raises(InputError, match=rf"partly named like splits and hold .*{result}"):
        read(tmp_path, *inside(tops))


@pytest.mark.parametrize("tops", [
    ("train", "test_a", "test_b"), ("train", "val", "validation"), ("train", "Train"),
    ("cats_train", "cats_test", "dogs_train", "dogs_test"),
])  # fmt: skip
def test_several_folders_of_a_split_are_refused(tops, tmp_path):
    with pytest.raises(InputError, match=r"one folder per split in .* Merge or rename one"):
        read(tmp_path, *inside(tops))


@pytest.mark.parametrize("places", [
    ("train", "test"), ("train", "test1"), ("train_images", "test_images"), ("train2017", "val2017"),
    ("cats_train", "cats_test", "dogs_train", "dogs_test"), ("val/cats", "test/cats"), ("seg_test/a", "seg_val/a"),
])  # fmt: skip
def test_splits_without_classes_or_without_train_are_refused(places, tmp_path):
    with pytest.raises(
        InputError, match=r"Expected a folder 'train' in .*, with a sub-folder per class\. Received"
    ):
        read(tmp_path, *places)


def test_an_error_names_a_list_in_the_folder(tmp_path):
    make(tmp_path, ".", name="train.csv")
    with pytest.raises(InputError, match=r"If a list has the labels, pass it instead: '.*train\.csv'\."):
        read(tmp_path, "train", "test1")
    with pytest.raises(InputError, match=r"at least 2 classes.* pass it instead: '.*list\.csv'"):
        load_data(make(make(tmp_path / "one", ".", name="list.csv"), "images"))


@pytest.mark.parametrize("places", [
    ("train_station", "test_tube"), ("train", "bus", "car"), ("crash_test", "bus"), ("train_station/a", "test_tube/b"),
])  # fmt: skip
def test_classes_may_have_words_of_splits_in_their_names(places, tmp_path):
    data = read(tmp_path, *places)
    assert data.class_names == sorted(place.split("/")[0] for place in places) and not data.notes


def test_classes_named_like_several_splits_are_reported(tmp_path):
    data = read(tmp_path, "train", "test", "bus")
    assert data.class_names == ["bus", "test", "train"]
    assert data.notes[0][0].endswith(
        "If 'test', 'train' are splits, sort their images into a sub-folder per class."
    )


def test_splits_inside_each_class_are_read(tmp_path):
    data = read(tmp_path, *inside(PETS, ("Train", "test_set")))
    assert data.class_names == [*PETS]
    assert {split: part.names for split, part in data.parts.items()} == {
        "train": ["cats/Train/0.png", "dogs/Train/0.png"],
        "test": ["cats/test_set/0.png", "dogs/test_set/0.png"],
    }


@pytest.mark.parametrize(
    "places", [(*inside(PETS, ("train", "test")), "birds"), inside(PETS, ("val", "test"))]
)
def test_splits_inside_some_classes_or_without_train_are_refused(places, tmp_path):
    with pytest.raises(
        InputError, match=r"at the top of .* Received splits inside .* Move the splits to the top"
    ):
        read(tmp_path, *places)


@pytest.mark.parametrize(("places", "inner"), [
    ([*inside(("plants/plants/train", "plants/plants/valid")), "test/test"], "plants/plants"),
    (inside(("small/Training", "small/Test", "original/Training", "original/Test")), "original"),
    (inside(("bottle", "cable"), ("train/good", "test/good", "test/broken")), "bottle"),
])  # fmt: skip
def test_a_data_set_beside_other_folders_is_refused_with_its_place(places, inner, tmp_path):
    with pytest.raises(InputError, match=rf"Pass the folder that contains the splits, such as '.*{inner}'\."):
        read(tmp_path, *places)


def test_flat_parts_of_one_data_set_are_reported(tmp_path):
    make(tmp_path, ".", name="metadata.csv")
    ((text, serious),) = read(tmp_path, "HAM_images_part_1", "HAM_images_part_2").notes
    assert serious and "seem to be parts of one data set. If a list has the labels, pass it" in text
    assert not read(tmp_path / "digits", *"0123456789").notes
    assert not read(tmp_path / "codes", "c0", "c1", "c2").notes


@pytest.mark.parametrize(("file", "hint"), [
    ("train.zip", r"It contains 'train\.zip', an archive\. Unpack it"), ("0.tfrec", r"'0\.tfrec', TFRecord\. Read"),
    (r"train\cats\1.jpg", "contain backslashes instead of folders: unpack"),
    ("0.png", r"If 'cats' is a class, pass the folder that contains it"), ("README.md", r"own sub-folder\.$"),
])  # fmt: skip
def test_an_error_about_missing_classes_gives_advice_on_the_files(file, hint, tmp_path):
    with pytest.raises(InputError, match=rf"at least 2 classes in 'cats'.*{hint}"):
        load_data(make(tmp_path / "cats", ".", name=file))


# Archives and competitions


@pytest.mark.parametrize(("places", "used"), [
    (inside(("train/train", "test/test")), "train/train"), (inside(("dataset/dataset/train", "dataset/dataset/test")),
    "dataset/dataset"), (["archive/PetImages/cats", "archive/PetImages/dogs"], "archive/PetImages"),
    (inside(("train/images", "test/images")), "train/images"),
])  # fmt: skip
def test_folders_around_the_data_are_noted(places, used, tmp_path):
    make(tmp_path, "__MACOSX/train/cats", "__MACOSX/x")
    data = read(tmp_path, *places)
    assert data.class_names == [*PETS] and not data.skipped
    assert data.notes == [(f"Using the folder {used!r}: the folders above it contain nothing else.", False)]
    assert "/".join(data.parts["train"].names[0].split("/")[:2]) == "/".join(places[0].split("/")[:2])


def test_a_single_class_is_refused_at_any_depth(tmp_path):
    for place in ("cats", "archive/cats", "train/cats"):
        with pytest.raises(InputError, match=r"at least 2 classes in .* Put the images of each class"):
            load_data(make(tmp_path / place.replace("/", " "), place))


def test_an_empty_folder_beside_a_class_with_sub_folders_is_refused(tmp_path):
    """It may be a class, so that the other folder is not a wrapper."""
    (tmp_path / "dogs").mkdir()
    with pytest.raises(InputError, match=r"every sub-folder of .* Received none in: dogs"):
        read(tmp_path, "cats/indoor", "cats/outdoor")


@pytest.mark.parametrize("place", ["test", "test/test", "test1", "test/unknown", "test/all_classes"])
def test_unlabeled_test_images_are_reported_but_not_used(place, tmp_path):
    data = read(tmp_path, *inside(("train",)), place)
    assert data.class_names == [*PETS] and [*data.parts] == ["train"] and not data.skipped
    assert data.notes == [(
        f"Not used: 1 image in {place!r}, which has no sub-folders of classes. The test set is drawn from labeled "
        "images instead. To classify such images, use `python -m transfer.predict`.", False,
    )]  # fmt: skip


def test_unlabeled_images_may_lie_in_a_folder_of_the_same_name(tmp_path):
    data = read(tmp_path, "asl_train/asl_train/A", "asl_train/asl_train/B", "asl_test/asl_test")
    assert data.class_names == ["A", "B"] and "1 image in 'asl_test/asl_test'" in data.notes[1][0]


def test_unlabeled_validation_images_need_action(tmp_path):
    data = read(tmp_path, *inside(("train", "test")), "val")
    assert [*data.parts] == ["test", "train"] and data.notes[0][1]


@pytest.mark.parametrize("place", ["test/cat", "test/5", "test/Cats"])
def test_a_class_that_train_lacks_is_refused(place, tmp_path):
    with pytest.raises(InputError, match=r"Unknown class .* It is in .*test but not in .*train"):
        read(tmp_path, *inside(("train",)), place)


def test_a_copy_of_the_data_inside_is_not_a_class(tmp_path):
    data = read(tmp_path, *PETS, *inside(("pets",)))
    assert data.class_names == [*PETS]
    assert data.notes == [
        ("The folder 'pets' (2 images) repeats the folders beside it. It is not used.", True)
    ]
    chest = read(tmp_path / "x-ray", *inside(("train", "test", "x-ray/train", "x-ray/test")))
    assert chest.class_names == [*PETS] and len(chest.skipped) == 4


# Detection and segmentation


@pytest.mark.parametrize("places", [
    ("train/images", "valid/images"), ("images/train", "images/val"), ("JPEGImages",),
])  # fmt: skip
def test_data_sets_for_detection_are_refused(places, tmp_path):
    for place in places:
        make(tmp_path, place.replace("JPEGImages", "Annotations").replace("images", "labels"), name="0.txt")
    with pytest.raises(InputError, match="a data set for object detection or segmentation"):
        read(tmp_path, *places)


def test_masks_beside_the_images_of_a_class_are_skipped(tmp_path):
    data = read(tmp_path, *inside(("COVID", "Normal"), ("images", "masks")))
    assert data.parts["train"].names == ["COVID/images/0.png", "Normal/images/0.png"]
    assert dict(data.skipped) == dict.fromkeys(
        ["COVID/masks/0.png", "Normal/masks/0.png"], "in a folder of masks or labels"
    )


def test_annotations_beside_folders_of_classes_are_ignored(tmp_path):
    make(tmp_path, "Annotation/cats", "Annotation/dogs", name="0.xml")
    data = read(tmp_path, *inside(("Images",)))
    assert data.class_names == [*PETS] and len(data.ignored) == 0


# Other files


def arrays(path: Path) -> None:
    np.savez(path, x=np.zeros(3))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("data.yaml", "train: images/train\nval: images/val\nnames: [a, b]\n", "YOLO data set for object detection. This"),
    ("data.yml", "path: ../x\ntrain: [a, b]\nnc: 2\n", "YOLO data set for object detection"),
    ("data.yaml", "path: .\ntrain: pets/train\nval: pets/val\n", r"YOLO data set. Pass its folder instead: '.*pets'\."),
    ("config.yaml", "data: emoji\nmodel: DemoCNN\n", "the options of a run. Pass them with --config"),
    ("x.yaml", "[1, 2", "a YAML file. Pass a folder"),
    ("coco.json", '{"images": [], "annotations": []}', "annotations of COCO or a similar format. They describe object"),
    ("list.json", '[{"path": "a.png"}]', "JSON. Save it as a CSV list"),
    ("a.zip", "PK", "an archive. Unpack it"), ("a.tar.gz", "", "an archive. Unpack it"),
    ("a.xlsx", "PK", "a spreadsheet. Save it as CSV in UTF-8"), ("a.npz", "", "arrays in a NumPy file"),
    ("A.H5", "", "a model belongs to --model"), ("a.tfrecord", "", "TFRecord. Read it in Python"),
    ("a.xml", "<a/>", "annotations in XML"), ("a.pkl", "", "a pickle"), ("a.pdf", "%PDF", "a document"),
])  # fmt: skip
def test_other_files_are_refused_with_advice(name, content, message, tmp_path, capsys):
    make(tmp_path / "pets", *inside(("train", "val")))
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"Expected a folder with .* Received '.*{name}', .*{message}"):
        load_data(tmp_path / name)
    assert main([str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_url_is_refused():
    with pytest.raises(
        InputError, match=r"Received a URL: 'https://x\.org/a\.zip'\. Download the images first"
    ):
        load_data("https://x.org/a.zip")
    with pytest.raises(InputError, match="a URL"):
        load_data(Path("s3://bucket/images"))


# The report


def test_notes_are_findings_that_are_logged(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    for i, place in enumerate(inside(("archive/raw", "archive/new"))):
        for k in range(3):
            write_image(tmp_path / place / f"{k}.png", (90, 90, 90), size=8, seed=10 * i + k)
    data = load_data(tmp_path)
    assert [(finding.kind, finding.serious) for finding in data.report.findings] == [
        ("source", True),
        ("source", False),
    ]
    levels = {record.getMessage().split(" ")[0]: record.levelname for record in caplog.records}
    assert levels == {"The": "WARNING", "Using": "INFO"}
    assert type(data.report).from_dict(data.report.to_dict()) == data.report
    main([str(tmp_path)])
    assert "! The classes are the folders 'new', 'raw'" in capsys.readouterr().out


def test_notes_on_other_images_to_evaluate_are_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    for k, place in enumerate((*inside(("train",)), "test")):
        write_image(tmp_path / place / "0.png", (90, 90, 90), size=8, seed=k)
    assert len(load_test(tmp_path, PETS).test) == 2
    assert "Not used: 1 image in 'test'" in caplog.text


def test_the_report_counts_skipped_images_by_reason(tmp_path):
    for name in PETS:
        for k in range(4):
            write_image(
                tmp_path / name / f"{k}.png",
                (90, 90, 90),
                size=8,
                seed=len(name) * 10 + k + (name == "cats") * 7,
            )
            (tmp_path / name / f"{k}.svg").write_bytes(b"<svg/>")
    make(tmp_path, "cats", name="empty.png")
    texts = [finding.text for finding in load_data(tmp_path).report.findings if finding.kind == "skipped"]
    assert len(texts) == 1 and texts[0].startswith("Skipped 9 images that cannot be used (SVG")
    assert texts[0].endswith(": 8).")


def test_formats_that_need_an_installation_are_reported_by_kind_and_count(tmp_path, monkeypatch):
    monkeypatch.setattr("transfer.images.formats.find_spec", lambda name: None)
    for k, name in enumerate(PETS):
        for i in range(7):
            make(tmp_path, f"scans/{name}", name=f"IM{i:04}", content=bytes(128) + b"DICM")
            write_image(tmp_path / "mixed" / name / f"{i}.png", (90, 90, 90), size=8, seed=10 * k + i)
        make(tmp_path, f"mixed/{name}", name="scan.dcm", content=bytes(128) + b"DICM")
        make(tmp_path, f"mixed/{name}", name="photo.heic", content=b"\0\0\0\x18ftypheic" + bytes(99))
        make(
            tmp_path, f"mixed/{name}", name="lfs.png", content=b"version https://git-lfs.github.com/spec/v1\n"
        )
    assert [finding.text for finding in load_data(tmp_path / "mixed").report.findings if finding.serious] == [
        'Skipped 2 images: HEIC needs the package pillow-heif: pip install "transfer-cases[formats]".',
        'Skipped 2 images: DICOM needs the package pydicom: pip install "transfer-cases[formats]".',
        "Skipped 2 images that cannot be used (not an image but a pointer of Git LFS (run "
        "`git lfs pull`): 2).",
    ]
    with pytest.raises(InputError, match=r"Skipped: cats/IM0000 and 13 more \(DICOM needs .*formats"):
        load_data(tmp_path / "scans")


def test_numbered_folders_inside_classes_are_reported_as_possible_groups(tmp_path):
    data = read(tmp_path, "normal/patient_1", "normal/patient_2", "tumor/patient_3", "tumor/patient_4")
    ((text, serious),) = data.notes
    assert serious
    assert "groups, such as patients" in text


def test_other_folders_inside_classes_are_no_groups(tmp_path):
    data = read(tmp_path, "cats/siamese", "cats/persian", "dogs/poodle", "dogs/pug")
    ((text, serious),) = data.notes
    assert not serious
    assert "groups" not in text
