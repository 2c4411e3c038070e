"""`--task multi` and `--task regression` in the commands that use a finished run."""

import csv
import io
import json

import keras
import numpy as np
import pytest
from helpers.task_images import LABELS, write_labels, write_numbers

import transfer
from transfer import report
from transfer.evaluate import main as evaluate_command
from transfer.export import main as export_command
from transfer.predict import main as predict_command
from transfer.results.prediction_files import read_predictions


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run and the list of its images, for each task."""
    place = tmp_path_factory.mktemp("runs")
    keras.utils.set_random_seed(0)
    found = {}
    for task, path, column in (
        ("multi", write_labels(place / "labels"), "label"),
        ("regression", write_numbers(place / "numbers"), "age"),
    ):
        options = {"val": 0.25, "test": 0.3, "near_duplicates": False, "label_column": column}
        data = transfer.load_data(path, task=task, **options)
        model = transfer.small_similar(transfer.DemoCNN(weights=None), data.num_classes, task=task)
        log = transfer.fit(model, data, verbose=0)
        found[task] = transfer.save_run(model, data, log, place / task).folder, path
    return found


def printed(capsys, command, *arguments, code=0) -> str:
    assert command([*map(str, arguments)]) == code
    return capsys.readouterr().out


def test_predict_prints_the_labels_above_their_thresholds(runs, capsys):
    run, path = runs["multi"]
    images = [path.parent / f"{number:03}.png" for number in range(12)]
    expected = transfer.predict(run, images)
    lines = printed(capsys, predict_command, run, *images, "--top", 2).splitlines()
    for line, one in zip(lines, expected, strict=True):
        assert line.startswith(f"{one.name}  predicted {one.label or 'no label'}:  {one.top(1)[0][0]} ")
    assert any("predicted no label" in line for line in lines)
    text = printed(
        capsys, predict_command, run, *images, "nothing.png", "--format", "csv", "--abstain", code=1
    )
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0][-2:] == ["known", "predicted"] and len(rows[0]) == 1 + 2 * 3 + 2
    assert [row[-1].removeprefix("'") for row in rows[1:-1]] == [one.label for one in expected]
    assert rows[-1] == ["nothing.png", *[""] * 8]
    found = json.loads(printed(capsys, predict_command, run, *images, "--format", "json"))
    assert [tuple(row["predicted"]) for row in found] == [one.labels for one in expected]
    assert predict_command([str(run), str(images[0]), "--coverage", "0.9"]) == 2


def test_predict_prints_numbers_and_their_intervals(runs, capsys):
    run, path = runs["regression"]
    images = [path.parent / f"{number:03}.png" for number in range(6)]
    expected = transfer.predict(run, images, coverage=0.8)
    lines = printed(capsys, predict_command, run, *images, "--coverage", 0.8).splitlines()
    assert all(
        line.startswith(f"{one.name}  ") and "(interval " in line
        for line, one in zip(lines, expected, strict=True)
    )
    text = printed(capsys, predict_command, run, *images, "--format", "csv", "--coverage", 0.8)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [*rows[0]] == ["path", "value", "low", "high"]
    assert [float(row["value"]) for row in rows] == pytest.approx([one.value for one in expected], rel=1e-5)
    assert [float(row["high"]) for row in rows] == pytest.approx(
        [one.interval[1] for one in expected], rel=1e-5
    )
    found = json.loads(printed(capsys, predict_command, run, *images, "--format", "json"))
    assert all({*row} == {"path", "value"} for row in found)


def test_heat_maps_explain_each_label_and_the_number(runs, tmp_path, capsys):
    for task, (run, path) in runs.items():
        images = [path.parent / f"{number:03}.png" for number in range(5)]
        printed(capsys, predict_command, run, *images, "--gradcam", tmp_path / task)
        assert len([*(tmp_path / task).glob("*.png")]) == 5


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_evaluate_measures_other_images(runs, task, tmp_path, capsys):
    run, path = runs[task]
    files = {kind: tmp_path / f"found.{kind}" for kind in ("json", "csv", "html")}
    column = [] if task == "multi" else ["--coverage", 0.8]
    flags = [flag for kind, file in files.items() for flag in (f"--{kind}", file)]
    text = printed(capsys, evaluate_command, run, path, *flags, *column)
    values = json.loads(files["json"].read_text())
    form = {"task": task, "thresholds": transfer.load_run(run).thresholds if task == "multi" else ()}
    score = read_predictions(files["csv"], **form).score
    key = "mean_average_precision" if task == "multi" else "r2"
    assert values[key] == pytest.approx(score, abs=1e-5)
    assert values["num_seen"] > 0 and "used for training" in text
    page = files["html"].read_text()
    assert "accuracy" not in page.lower() and "<img" in page
    if task == "regression":
        assert values["prediction_intervals"]["coverage"] == 0.8 and "coverage of 80%" in text
    assert evaluate_command([str(run), "--assert-score-at-least", f"{score - 0.4:.4f}"]) == 0
    assert evaluate_command([str(run), "--assert-score-at-least", "0.99999"]) == 1
    capsys.readouterr()
    assert evaluate_command([str(run), "--assert-accuracy-at-least", "0.9"]) == 2
    assert "--assert-score-at-least" in capsys.readouterr().err


def test_coverage_of_several_labels_is_refused(runs, capsys):
    run, path = runs["multi"]
    assert evaluate_command([str(run), str(path), "--coverage", "0.9"]) == 2
    assert "one class or one number per image" in capsys.readouterr().err


def test_images_of_no_class_are_measured(runs, tmp_path, capsys):
    from PIL import Image

    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), "uint8")
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    text = printed(capsys, evaluate_command, runs["multi"][0], "--unknown", tmp_path)
    assert "Of 5 images of no class" in text


def test_reports_are_written_again_and_compared(runs, tmp_path, capsys):
    run, _ = runs["multi"]
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert report.main([str(run)]) == 0
    assert (run / "report.html").read_text() == before
    assert report.main([str(run), str(run), "--output", str(tmp_path / "both.html")]) == 0
    assert "mean average precision" in (tmp_path / "both.html").read_text()


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_exported_files_are_verified_and_hold_their_task(runs, task, capsys):
    run, path = runs[task]
    text = printed(capsys, export_command, run, "--to", "litert", "--data", path)
    what, name = ("labels", "mean average precision") if task == "multi" else ("number", "R2")
    assert f"same {what} for 100.0%" in text and name in text and "accuracy" not in text
    notes = json.loads((run / "exported" / "litert" / "model.json").read_text())
    assert notes["task"] == task
    assert notes["check"]["score"] == pytest.approx(notes["check"]["keras_score"], abs=1e-3)
    assert "accuracy" not in notes["check"]
    if task == "multi":
        assert notes["class_names"] == [*LABELS]
        assert notes["thresholds"] == transfer.load_run(run).thresholds.tolist()
    else:
        assert [*notes["outputs"]] == ["value"]


def test_runs_of_different_tasks_are_not_compared(runs, tmp_path, capsys):
    arguments = [str(runs["multi"][0]), str(runs["regression"][0]), "--output", str(tmp_path / "page.html")]
    assert report.main(arguments) == 2
    assert (
        "Expected runs of the same task to compare. Received: multi, regression." in capsys.readouterr().err
    )
    assert not (tmp_path / "page.html").exists()


def test_evaluate_takes_one_assertion_and_the_column_of_the_training(runs, capsys, caplog):
    run, path = runs["regression"]
    both = ["--assert-accuracy-at-least", "0.5", "--assert-score-at-least", "0.5"]
    assert evaluate_command([str(run), *both]) == 2
    assert "Received both. Leave one out." in capsys.readouterr().err
    header, *rows = path.read_text().splitlines()
    wide = path.parent / "wide.csv"
    wide.write_text("\n".join([f"{header},weight_kg", *(f"{row},1" for row in rows), ""]))
    assert transfer.load_run(run).data(wide).test.labels.std() > 1
    wide.write_text("\n".join([header.replace("age", "weight_kg"), *rows, ""]))
    with caplog.at_level("WARNING"):
        transfer.load_run(run).data(wide)
    assert "Reading the numbers from 'weight_kg'. The model predicts 'age'." in caplog.text
