"""Columns of a list are recognized by their names and their cells."""

import itertools

import pytest

from transfer.common.errors import InputError
from transfer.images.column_names import Column
from transfer.images.columns import AUTOMATIC, Given, choose, unused

N = 12
PATHS, LABELS = [f"{i}.png" for i in range(N)], ["cat", "dog"] * 6
PATIENTS = [f"P{i // 3}" for i in range(N)]
WORDS = ["train", "train", "val", "test"] * 3

GROUP_NAMES = (
    "patient, patient_id, PatientID, Patient ID, patientId, patientid, PATIENT-ID, Patient Number, "
    "patient no, patientnr, id_patient, anon_patient_id, subject_id, lesion_id, case_id, caseid, "
    "StudyInstanceUID, person_id, animal_id, video_id, clip, session, user_id, participant, author, "
    "patient_name, PatientenNr, paciente, пациент, 患者ID, subj, "
    "writer_id, location_id, sequence, seq_id, group, group_id, individual_id, MRN, slide_id"
)
OTHER_NAMES = (
    "patient_age, Patient Gender, n_patients, patients, animal, plant, location, image_id, site_id, "
    "SOPInstanceUID, id, study, grouping, subjective"
)
SPLIT_NAMES = (
    "split, set, subset, Usage, phase, partition, fold, dataset, data_split, Data Split, DataSplit, "
    "datasplit, ml_use, train_test, train_val_test, mode, split_name, set_type, image_set"
)
PATH_NAMES = (
    "path, Filename, file_name, filepaths, image_path, ImgPath, image, Image Index, id_code, "
    "isic_id, image file path, image_name, fname, uri, id, img, image_id"
)
LABEL_NAMES = (
    "label, Labels, class_name, ClassName, category_id, target, y, diagnosis, dx, breed, species, "
    "Finding Labels, cultivar, image_class, true_label, disease_name"
)
FLAG_NAMES = (
    "is_valid, is_val, isValidation, is_test, IsTest, is_train, test, train, is_training_image, for_testing"
)


def column(name, cells):
    made = Column(name)
    for cell in cells:
        made.add(str(cell))
    return made


def chosen(*more, given=AUTOMATIC, exists=lambda path: False, label=True, **options):
    """Return the names of the chosen columns, by kind; `more` are names and cells beside the path and label."""
    columns = [
        column("path", PATHS),
        *([column("label", LABELS)] if label else []),
        *itertools.starmap(column, more),
    ]
    return named(columns, given=given, exists=exists, **options)


def named(columns, **options):
    rows = {c.name: c for c in columns}
    pairs = {
        (i, j): set(zip(columns[i].cells, columns[j].cells, strict=True))
        for i, j in itertools.combinations(range(len(columns)), 2)
        if hasattr(columns[i], "cells") and hasattr(columns[j], "cells")
    }
    assert len(rows) == len(columns)
    roles = choose(columns, pairs, **options)
    return {
        "path": columns[roles.path].name,
        "label": [columns[i].name for i in roles.labels],
        "split": [(columns[i].name, split) for i, split in roles.splits],
        "group": [columns[i].name for i in roles.groups],
    }


def labeled(**cells):
    """Return columns that keep their cells, for lists with several label columns."""
    columns = [column(name, values) for name, values in cells.items()]
    for one, values in zip(columns, cells.values(), strict=True):
        one.cells = [str(value) for value in values]
    return columns


def refusal(*more, **options) -> str:
    with pytest.raises(InputError) as raised:
        chosen(*more, **options)
    return str(raised.value)


@pytest.mark.parametrize("name", GROUP_NAMES.split(", "))
def test_names_of_groups(name):
    assert chosen((name, PATIENTS))["group"] == [name]


@pytest.mark.parametrize("name", OTHER_NAMES.split(", "))
def test_names_of_other_properties_are_not_groups(name):
    assert chosen((name, PATIENTS))["group"] == []


def test_flags_and_constants_are_not_groups():
    assert chosen(("same_patient", [0, 1] * 6))["group"] == []
    assert chosen(("group", ["a"] * N))["group"] == []


def test_people_have_priority_over_their_parts():
    assert chosen(("lesion_id", PATIENTS), ("patient_id", PATIENTS))["group"] == ["patient_id", "lesion_id"]


@pytest.mark.parametrize("name", SPLIT_NAMES.split(", "))
def test_names_of_splits(name):
    assert chosen((name, WORDS))["split"] == [(name, "")]


@pytest.mark.parametrize("name", FLAG_NAMES.split(", "))
@pytest.mark.parametrize(
    "words",
    [
        ("True", "False"),
        ("TRUE", "FALSE"),
        ("1", "0"),
        ("1.0", "0.0"),
        ("yes", "no"),
        ("x", ""),
        ("1.0", "nan"),
    ],
)
def test_flags_of_splits(name, words):
    split = next(split for split in ("train", "val", "test") if split in name.lower())
    assert chosen((name, [words[i % 3 > 0] for i in range(N)]))["split"] == [(name, split)]


def test_one_flag_for_each_split():
    flags = [(name, [int(i % 3 == n) for i in range(N)]) for n, name in enumerate(("train", "valid", "test"))]
    assert chosen(*flags)["split"] == [("train", "train"), ("valid", "val"), ("test", "test")]


def test_a_flag_of_validation_that_most_images_have_is_refused():
    message = refusal(("valid", [1, 1, 1, 0] * 3))
    assert message == (
        "the column 'valid' marks most images, so that its meaning is unclear. If these are for validation, use "
        "--split-column valid. Otherwise use --split-column none."
    )
    assert chosen(("valid", [1, 1, 1, 0] * 3), given=Given(split="none"))["split"] == []
    assert chosen(("valid", [1, 1, 1, 0] * 3), given=Given(split="valid"))["split"] == [("valid", "val")]


@pytest.mark.parametrize(
    "cells", [["train", "test"] * 6, ["Training", ""] * 6, ["seg_train", "seg_test"] * 6]
)
def test_a_column_of_split_words_with_an_unknown_name_is_refused(cells):
    assert refusal(("Datensatz", cells)) == (
        "the column 'Datensatz' states the split of each image. Use --split-column Datensatz, or --split-column none "
        "to draw another split."
    )
    assert chosen(("Datensatz", cells), given=Given(split="none"))["split"] == []
    assert chosen(("Datensatz", cells), given=Given(split="datensatz"))["split"] == [("Datensatz", "")]
    assert chosen(("Datensatz", cells), given=Given(group="Datensatz"))["group"] == ["Datensatz"]


def test_two_columns_of_split_words_are_refused():
    assert "the columns 'split', 'Usage' state the split of each image" in refusal(
        ("split", WORDS), ("Usage", WORDS)
    )
    assert chosen(("split", WORDS), ("dataset", ["train"] * N))["split"] == [("split", "")]


def test_other_words_under_the_name_of_a_split_are_not_splits():
    assert chosen(("mode", ["RGB", "L"] * 6))["split"] == []
    assert chosen(("dataset", ["A", "B"] * 6))["split"] == []


def test_a_flag_without_a_split_in_its_name_is_refused():
    assert "the name does not say for which split" in refusal(("held", [0, 1] * 6), given=Given(split="held"))


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("image_id", "image"),
        ("id", "image_id"),
        ("image", "filename"),
        ("filename", "path"),
        ("image_name", "image"),
    ],
)
def test_the_best_name_of_a_path_is_chosen(name, better):
    columns = labeled(**{name: PATHS, better: PATHS, "label": LABELS})
    assert named(columns)["path"] == better
    files = set(PATHS)
    columns = labeled(**{better: range(N), name: PATHS, "label": LABELS})
    assert named(columns, exists=files.__contains__)["path"] == name  # the files decide


@pytest.mark.parametrize("name", PATH_NAMES.split(", "))
def test_names_of_paths(name):
    assert named(labeled(**{"label": LABELS, name: PATHS}))["path"] == name


@pytest.mark.parametrize("name", LABEL_NAMES.split(", "))
def test_names_of_labels(name):
    assert named(labeled(**{"path": PATHS, name: LABELS}))["label"] == [name]


def test_a_label_has_priority_over_a_topic():
    assert named(labeled(path=PATHS, label=LABELS, variety=PATIENTS))["label"] == ["label"]


def test_words_have_priority_over_numbers_of_the_same_classes():
    numbers = [int(label == "dog") for label in LABELS]
    assert named(labeled(path=PATHS, label=numbers, class_name=LABELS))["label"] == ["class_name"]
    with pytest.raises(
        InputError, match=r"which are not the same classes\. Use --label-column label, or the other"
    ):
        named(labeled(path=PATHS, label=range(N), class_name=LABELS))
    columns = labeled(path=PATHS, label=range(N), class_name=LABELS)
    assert named(columns, given=Given(label="label"))["label"] == ["label"]


def test_an_empty_label_column_is_not_used():
    assert named(labeled(path=PATHS, label=[""] * N, **{"class": LABELS}))["label"] == ["class"]


@pytest.mark.parametrize("words", [("0", "1"), ("0.0", "1.0"), ("False", "True")])
def test_one_hot_columns(words):
    hot = {c: [words[i % 3 == n] for i in range(N)] for n, c in enumerate(("MEL", "NV", "BCC"))}
    columns = labeled(image=PATHS, patient_id=PATIENTS, age=range(N), **hot)
    assert named(columns)["label"] == ["MEL", "NV", "BCC"]
    assert named(columns, given=Given(label="MEL, NV"))["label"] == ["MEL", "NV"]


def test_probabilities_are_refused():
    with pytest.raises(
        InputError, match=r"in the columns 'cat', 'dog': probabilities cannot be trained on\. Write"
    ):
        named(labeled(image=PATHS, cat=[0.3, 0.6] * 6, dog=[0.7, 0.4] * 6))


def test_columns_of_pixels_are_refused():
    with pytest.raises(InputError, match=r"Pixels in a list are not read: load them as arrays"):
        named(labeled(emotion=LABELS, pixels=["1 2 3"] * N))


def test_a_column_that_does_not_exist_is_refused_unless_it_is_optional():
    assert refusal(("patient_id", PATIENTS), given=Given(group="patientid")) == (
        "Unknown column 'patientid'. Did you mean 'patient_id'? The group column is set to 'patientid'."
    )
    assert chosen(given=Given(label="dx", optional=True))["label"] == ["label"]


def test_several_chosen_groups_are_kept_in_order():
    more = [("patient", PATIENTS), ("site", PATIENTS)]
    assert chosen(*more, given=Given(group="site,patient"))["group"] == ["site", "patient"]
    assert chosen(*more, given=Given(group="none"))["group"] == []


def notes(*more, given=AUTOMATIC):
    columns = [column("path", PATHS), column("label", LABELS), *itertools.starmap(column, more)]
    return {
        note.name: (note.like, note.reason)
        for note in unused(columns, choose(columns, {}, given=given), given)
    }


def test_unused_columns_are_noted_with_their_probable_kind():
    found = notes(
        ("age", [20 + i % 5 for i in range(N)]),
        ("site_id", PATIENTS),
        ("Patientin", PATIENTS),
        ("fold", [0, 1, 2] * 4),
        ("partition", [0, 1] * 6),
        ("group", ["a"] * N),
        ("", range(N)),
        ("Unnamed: 0", range(N)),
        ("notes", [""] * N),
    )
    assert found == {
        "age": ("", ""),
        "site_id": ("group", "'P0', 'P1' and 2 more"),
        "Patientin": ("group", "'P0', 'P1' and 2 more"),
        "fold": ("split", "'0', '1', '2'"),
        "partition": ("split", "'0', '1'"),
        "group": ("", "the same in all rows"),
    }


def test_a_flag_beside_a_column_of_splits_is_noted():
    assert notes(("split", WORDS), ("is_valid", [0, 1] * 6)) == {"is_valid": ("split", "'0', '1'")}


def test_numbers_under_the_name_of_a_whole_look_like_groups_and_boxes_are_noted():
    found = notes(
        ("location", [i // 3 for i in range(N)]), ("eye", ["left", "right"] * 6), ("xmin", range(N))
    )
    assert {name: like for name, (like, _) in found.items()} == {
        "location": "group",
        "eye": "",
        "xmin": "box",
    }


def test_columns_that_a_choice_replaces_have_no_probable_kind():
    more = [("site_id", PATIENTS), ("fold", [0, 1, 2] * 4)]
    assert {like for like, _ in notes(*more, given=Given(group="none", split="none")).values()} == {""}
    assert notes(*more, ("patient", PATIENTS))["site_id"] == ("", "")  # groups are used


def test_a_number_of_the_class_does_not_look_like_a_group():
    assert notes(("code_id", [int(label == "dog") for label in LABELS]))["code_id"] == ("", "")


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("subset", ["apprentissage", "essai"]),
        ("set", ["A", "B"]),
        ("conjunto", ["entrenamiento", "prueba"]),
        ("partition", ["T", "V", "E"]),
        ("comment", ["TRAINING", "UNASSIGNED", "TEST"]),
        ("kfold", ["0", "1", "2"]),
    ],
)
def test_columns_that_may_state_the_split_in_other_words_are_reported(name, cells):
    columns = [Column("path"), Column("label"), Column(name)]
    for column, own in zip(columns, (PATHS, LABELS, cells * (N // len(cells))), strict=True):
        for cell in own:
            column.add(cell)
    found = unused(columns, choose(columns, {}), AUTOMATIC)
    assert [(one.name, one.like) for one in found] == [(name, "split")]


@pytest.mark.parametrize(
    ("names", "path"),
    [
        (("Bild", "label"), 0),
        (("Bild", "name", "label"), None),  # two columns of files
    ],
)
def test_a_column_of_files_needs_no_usual_name(names, path):
    columns = [*map(Column, names)]
    for column in columns:
        for cell in PATHS:
            column.add(cell)
    try:
        found = choose(columns, {(0, 1): set()}, exists=lambda text: text in PATHS).path
    except InputError:
        found = None
    assert found == path


def test_one_of_several_findings_is_not_the_label():
    columns = [*map(Column, ("image", "No Finding", "Edema", "Mass"))]
    for i, file in enumerate(PATHS):
        for column, cell in zip(columns, (file, *(str(int(i % 3 == k)) for k in range(3))), strict=True):
            column.add(cell)
    assert choose(columns, {}).labels == (1, 2, 3)
