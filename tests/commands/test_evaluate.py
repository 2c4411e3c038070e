"""`python -m transfer.evaluate` measures a run on its own test images, or on others."""

import json
import shutil

import pytest
from helpers.images import STRANGE

from transfer.evaluate import main
from transfer.images.split_file import read_split
from transfer.results.prediction_files import read_predictions


@pytest.fixture
def evaluated(strange_run, tmp_path, capsys):
    def run(*arguments):
        code = main([str(strange_run), *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_the_metrics_are_those_of_the_run(evaluated, strange_run, tmp_path):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    code, out, _ = evaluated(*(part for kind, file in files.items() for part in (f"--{kind}", file)))
    accuracy = json.loads((strange_run / "metrics.json").read_text())["test_accuracy"]
    assert code == 0 and f"Accuracy: {accuracy:.1%}" in out
    assert json.loads(files["json"].read_text())["accuracy"] == pytest.approx(accuracy)
    assert read_predictions(files["csv"]).accuracy == pytest.approx(accuracy)
    assert "<script" not in files["html"].read_text() and "Mistakes" in files["html"].read_text()


@pytest.mark.parametrize(("least", "code"), [("0.1", 0), ("1", 1), ("2", 2)])
def test_the_exit_code_depends_on_the_asserted_accuracy(least, code, evaluated):
    exit_code, _, err = evaluated("--assert-accuracy-at-least", least)
    assert exit_code == code
    assert ("is below" in err) == (code == 1)


def test_training_images_are_reported(evaluated, strange_folder, tmp_path):
    code, out, err = evaluated("--data", strange_folder)
    assert code == 0 and "on 90 images" in out
    assert (out + err).count("of these images were used for training or validation") == 1
    renamed = tmp_path / "renamed" / STRANGE[2]  # the names do not matter
    renamed.mkdir(parents=True)
    for i, file in enumerate((strange_folder / STRANGE[2]).iterdir()):
        shutil.copy(file, renamed / f"{i}.png")
    code, out, _ = evaluated("--data", renamed.parent)
    assert code == 0 and "were used for training or validation" in out


def test_a_page_does_not_call_training_images_held_out(evaluated, strange_folder, strange_run, tmp_path):
    page, figures = tmp_path / "out.html", tmp_path / "out.json"
    copied, rows = shutil.copytree(strange_folder, tmp_path / "twice"), read_split(strange_run / "split.csv")
    name = next(name for name, _, split in rows if split == "train")
    shutil.copy(copied / name, (copied / name).with_name("again.png"))  # each copy counts
    assert evaluated("--data", copied, "--html", page, "--json", figures)[0] == 0
    seen = json.loads(figures.read_text())["num_seen"]
    assert seen == sum(split != "test" for _, _, split in rows) + 1
    assert f"{seen} of these images were used for training or validation" in page.read_text()
    assert "held-out" not in page.read_text() and "not trained on" not in page.read_text()
    assert evaluated("--html", page)[0] == 0 and "held-out" in page.read_text()


def test_new_images_cause_no_warning(evaluated, strange_folder, strange_run, tmp_path):
    for name, label, split in read_split(strange_run / "split.csv"):
        if split == "test":
            place = tmp_path / "new" / label
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(strange_folder / name, place)
    code, out, err = evaluated("--data", tmp_path / "new")
    accuracy = json.loads((strange_run / "metrics.json").read_text())["test_accuracy"]
    assert code == 0 and f"Accuracy: {accuracy:.1%}" in out and "training" not in err


def test_missing_data_are_reported(evaluated, tmp_path):
    code, _, err = evaluated("--data", tmp_path / "nothing")
    assert code == 2 and "nothing" in err
