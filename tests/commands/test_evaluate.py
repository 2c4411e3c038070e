"""`python -m transfer.evaluate` measures a run on its own test images, or on others."""

import json
import shutil

import numpy as np
import pytest
from helpers.images import STRANGE
from PIL import Image

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


def test_thresholds_are_measured_on_test_images_and_on_images_of_no_class(evaluated, strange_run, tmp_path):
    stored = json.loads((strange_run / "evaluation.json").read_text())
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 2, (24, 24, 1)) * np.full(3, 255)
        Image.fromarray(pixels.astype("uint8")).save(tmp_path / f"{i}.png")
    file = tmp_path / "out.json"
    code, out, _ = evaluated(
        "--unknown", tmp_path, "--coverage", 0.8, "--json", file, "--html", tmp_path / "page.html"
    )
    values = json.loads(file.read_text())
    assert code == 0 and values["unknown"]["num_unknown"] == values["unknown"]["num_detected"] == 4
    assert values["unknown"]["num_abstained"] == stored["unknown"]["num_abstained"]
    assert values["unknown"]["auroc"] > 0.95 and values["prediction_sets"]["coverage"] == 0.8
    assert "Of 4 images of no class, 100.0% are marked" in out
    assert "coverage of 80%" in out and "coverage of 80%" in (tmp_path / "page.html").read_text()
    report = (strange_run / "report.html").read_text()
    assert "test images" in report and "are marked as unknown" in report and "coverage of 90%" in report


def test_a_run_without_a_reference_is_evaluated(strange_run, tmp_path, capsys):
    old = shutil.copytree(strange_run, tmp_path / "old")
    (old / "reference.npz").unlink()
    assert main([str(old)]) == 0 and "unknown" not in capsys.readouterr().out
    assert main([str(old), "--coverage", "0.9"]) == 2
    shown = capsys.readouterr()
    assert "Train it again" in shown.err and not shown.out, "before the evaluation"
