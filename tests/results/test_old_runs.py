"""A run that version 0.1 wrote is loaded, evaluated, predicted with, reported and exported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer.common.old_names import renamed
from transfer.evaluation.evaluate import evaluate
from transfer.results.finished_runs import load_run
from transfer.results.predict import predict
from transfer.results.prediction_files import read_predictions
from transfer.results.run_records import read_record

OLD_RUN = Path(__file__).parent / "run_of_0_1"
BASE_COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """A copy of the old run, and its images in `colors`, the relative path that its options name."""
    monkeypatch.chdir(tmp_path)
    for number, (name, color) in enumerate(BASE_COLORS.items()):
        (tmp_path / "colors" / name).mkdir(parents=True)
        for i in range(10):
            noise = np.random.default_rng(100 * number + i).integers(-30, 31, (24, 24, 3))
            pixels = np.clip(noise + color, 0, 255).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "colors" / name / f"{i:02}.png")
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run_of_0_1"))


def test_options_and_metrics_have_their_new_names(old_run):
    run = load_run(old_run)
    assert run.config.near_duplicates is True
    assert run.config.layer_decay == 0.3 and run.config.gradual_unfreezing == 0.5
    assert run.metrics["regularization"] == 10000.0 and "regularisation" not in run.metrics
    assert run.metrics["versions"]["transfer"] == "0.1.0"
    assert run.class_names == ("blue", "green", "red") and run.image_size == (32, 32)


def test_the_evaluation_is_the_one_that_the_run_wrote(old_run):
    run = load_run(old_run)
    written = read_predictions(old_run / "predictions.csv")
    evaluation = evaluate(run.model, run.data(), engine="keras")
    assert evaluation.names == written.names
    np.testing.assert_array_equal(evaluation.labels, written.labels)
    np.testing.assert_allclose(evaluation.probabilities, written.probabilities, atol=1e-5)
    assert evaluation.accuracy == run.metrics["test_accuracy"]
    assert evaluation.loss == pytest.approx(run.metrics["test_loss"], abs=1e-5)


def test_predictions_are_those_that_the_run_wrote(old_run):
    written = read_predictions(old_run / "predictions.csv")
    predictions = predict(old_run, [Path("colors") / name for name in written.names], progress=False)
    np.testing.assert_allclose([one.probabilities for one in predictions], written.probabilities, atol=1e-5)
    assert [one.label for one in predictions] == [written.class_names[i] for i in written.predictions]


def test_the_evaluate_command_measures_the_old_run(old_run, tmp_path, capsys):
    from transfer.evaluate import main

    assert main([str(old_run), "--json", str(tmp_path / "out.json"), "--assert-accuracy-at-least", "1"]) == 0
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["num_images"] == 6 and values["label_issues"] == []


def test_the_old_run_does_not_know_its_training_images(old_run):
    from transfer.predict import main

    image = next(Path("colors").rglob("*.png"))
    assert load_run(old_run).reference is None and predict(old_run, image)[0].known is None
    assert main([str(old_run), str(image)]) == 0 and main([str(old_run), str(image), "--abstain"]) == 2


def test_the_report_is_written_from_the_old_files(old_run):
    from transfer.report import main

    record = read_record(old_run)
    assert record.details["num_images"] == 6 and record.details["classes"][0]["images"] == 2
    assert record.advice["cases"][0]["action"] == "freeze everything, train the head"
    assert main([str(old_run)]) == 0
    page = (old_run / "report.html").read_text()
    for text in (
        "freeze everything, train the head",
        "100.0%",
        "--layer-decay=0.3",
        "--gradual-unfreezing=0.5",
    ):
        assert text in page
    assert "100.0%" in (old_run / "README.md").read_text()
    assert "keras 3.15.1" in page


def test_the_old_run_is_compared_with_another(old_run, strange_run, tmp_path):
    from transfer.report import main

    assert main([str(old_run), str(strange_run), "--output", str(tmp_path / "both.html")]) == 0
    assert "DemoCNN" in (tmp_path / "both.html").read_text()


def test_the_old_run_is_exported(old_run):
    from transfer.exporters.export import export

    exported = export(old_run, to="saved-model")
    assert exported.agreement == 1 and exported.accuracy == 1 and exported.num_images == 6


def test_keys_are_renamed_at_any_depth_but_class_names_are_not():
    old = {"classes": [{"pictures": 2}], "images_per_class": {"pictures": 7, "deed": 3}}
    assert renamed(old) == {"classes": [{"images": 2}], "images_per_class": {"pictures": 7, "deed": 3}}
