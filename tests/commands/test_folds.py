"""`python -m transfer.train --folds`: a run with its cross-validated accuracy, whose model trains on all images."""

import csv
import json

import pytest
from helpers.images import COLORS, write_image

from transfer import report
from transfer.evaluate import main as evaluate
from transfer.results import cross_validated_runs
from transfer.results.finished_runs import load_run
from transfer.train import main

QUICK = ["--image-size", "32", "--strategy", "default", "--model", "DemoCNN"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_a_run_shows_the_cross_validated_accuracy_and_no_test_accuracy(color_folder, elsewhere, capsys):
    flags = ["--data", str(color_folder), "--folds", "3", "--output", "run", *QUICK]
    assert main(flags) == 0
    run, out = elsewhere / "run", capsys.readouterr().out
    assert "90 images in 3 folds. 3 trainings and the final one take about" in out
    assert (
        all(f"Fold {number} of 3: accuracy" in out for number in (1, 2, 3))
        and "Cross-validated accuracy" in out
    )
    metrics, folds = read(run, "metrics.json"), read(run, "cross_validation.json")
    assert (metrics["num_train"], metrics["num_val"], metrics["num_test"]) == (90, 0, 0)
    assert metrics["test_accuracy"] is None and metrics["cross_validated_accuracy"] == folds["accuracy"] > 0.9
    rows = list(csv.DictReader((run / "out_of_fold.csv").open()))
    assert len({row["path"] for row in rows}) == 90 and {row["fold"] for row in rows} == {"1", "2", "3"}
    assert not (run / "predictions.csv").exists() and not (run / "evaluation.json").exists()
    assert len(load_run(run).reference.scores) == 90, (
        "out-of-fold predictions set the sizes of prediction sets"
    )
    page, card = (run / "report.html").read_text(), (run / "README.md").read_text()
    assert (
        "Cross-validation</h2>" in page and "cross-validated accuracy" in page and "test accuracy" not in page
    )
    assert "By 3-fold cross-validation on 90 images" in card and "held-out" not in card
    assert (run / "confusion_matrix.png").exists() and not (run / "predictions.png").exists()
    assert report.main([str(run)]) == 0 and (run / "report.html").read_text() == page
    loaded = load_run(run)
    assert "cross-validated accuracy" in repr(loaded) and len(loaded.predict(color_folder)) == 90
    assert main(flags) == 0 and "This run is complete" in capsys.readouterr().out


def test_evaluate_does_not_measure_the_model_on_its_training_images(
    color_folder, elsewhere, tmp_path, capsys
):
    assert main(["--data", str(color_folder), "--folds", "3", "--case", "1", "--output", "run", *QUICK]) == 0
    assert evaluate(["run"]) == 2
    assert (
        "used for training or validation" in (text := capsys.readouterr().err)
        and "path/to/new-images" in text
    )
    for name, color in COLORS.items():
        write_image(tmp_path / "new" / name / "1.png", color, seed=4711)
    assert evaluate(["run", str(tmp_path / "new")]) == 0
    assert "on 3 held-out images" in capsys.readouterr().out


def test_a_test_set_of_the_data_stays_the_test_set(tmp_path, elsewhere, capsys):
    for split, count in (("train", 8), ("test", 3)):
        for number, (name, color) in enumerate(COLORS.items()):
            for i in range(count):
                write_image(
                    tmp_path / "d" / split / name / f"{i}.png", color, seed=100 * number + 9 * count + i
                )
    assert (
        main(["--data", str(tmp_path / "d"), "--folds", "4", "--case", "1", "--output", "run", *QUICK]) == 0
    )
    assert "24 images in 4 folds, and 9 given test images" in capsys.readouterr().out
    metrics = read(elsewhere / "run", "metrics.json")
    assert metrics["test_accuracy"] is not None and metrics["cross_validated_accuracy"] is not None
    page = (elsewhere / "run" / "report.html").read_text()
    assert "Test</h2>" in page and "Cross-validation</h2>" in page and "test accuracy" in page
    assert evaluate(["run"]) == 0


def test_a_trained_network_needs_validation_images_and_resumes(color_folder, elsewhere, capsys, monkeypatch):
    flags = [
        "--data",
        str(color_folder),
        "--folds",
        "2",
        "--case",
        "3",
        "--epochs",
        "1",
        "--output",
        "run",
        *QUICK,
    ]
    describe = cross_validated_runs._describe_final

    def stop(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validated_runs, "_describe_final", stop)  # after the final training
    assert main(flags) == 130
    monkeypatch.setattr(cross_validated_runs, "_describe_final", describe)
    capsys.readouterr()
    assert main([*flags, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "Epoch 1/1" not in out and "Fold 2 of 2" in out  # nothing is trained again
    assert "Trained the model of the run on 81 images. 9 more images for validation." in out
    assert read(elsewhere / "run", "metrics.json")["num_val"] == 9


def test_options_that_do_not_fit_are_refused_or_reported(color_folder, capsys):
    data = ["--data", str(color_folder), "--folds", "2", *QUICK]
    assert main([*data, "--calibrate"]) == 2 and "--folds without --calibrate" in capsys.readouterr().err
    assert (
        main([*data, "--model", "DemoCNN", "EfficientNetLite0"]) == 2
        and "one model" in capsys.readouterr().err
    )
    assert main([*data, "--folds", "31"]) == 2 and "Expected 2 to 30 folds" in capsys.readouterr().err
    assert main([*data, "--time-budget", "5m", "--mix", "mixup", "--output", "run"]) == 0
    out = capsys.readouterr().out
    assert "Ignored --mix" in out and "Ignored --time-budget: cross-validation with --case auto" in out
