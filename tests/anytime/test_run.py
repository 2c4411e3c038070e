"""`--case auto` end to end: a run at once, steps that improve it, interruption, and continuation."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny
from PIL import Image

from transfer.anytime import candidates, heads, run
from transfer.anytime.plan import Kind
from transfer.anytime.records import read_history
from transfer.lesson.shapes import make_shapes
from transfer.results import run_writer
from transfer.results.finished_runs import load_run
from transfer.train import main

CLASSES = ("triangle", "heart", "drop")
QUICK = [
    "--model",
    "DemoCNN",
    "--epochs",
    "1",
    "--time-budget",
    "none",
    "--engine",
    "keras",
    "--output",
    "run",
]
SMALL = ["--image-size", "32"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of 60 images of three shapes, four of them mislabeled: a perfect head would not be improved."""
    folder = tmp_path_factory.mktemp("shapes") / "shapes"
    images, labels = make_shapes(60, classes=CLASSES, image_size=32, seed=3)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / CLASSES[(label + (number % 15 == 0)) % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image, "uint8")).save(place / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(autouse=True)
def few_figures(request, monkeypatch):
    """Leave out the figures, which take most of the time, except in one test."""
    if "complete" not in request.node.name:
        monkeypatch.setattr("transfer.results.run_writer.write_figures", lambda folder, drawings: None)


def steps_of(folder):
    """Return the kinds of the steps of a run, and whether each was kept."""
    history = read_history(folder / "steps.json")
    return [step.kind for step in history.steps], [step.kept for step in history.steps]


def weights_of(folder):
    return load_run(folder).model.get_weights()


def test_steps_improve_a_run_that_is_complete(shapes, elsewhere, capsys):
    command = [str(shapes), *QUICK]
    assert main(command) == 0
    printed = capsys.readouterr().out
    kinds, kept = steps_of(elsewhere / "run")
    assert kinds == [Kind.HEAD, Kind.LARGER, Kind.FINE_TUNING] and kept[0]
    assert printed.count("Kept.") == sum(kept) and printed.count("Not kept.") == kept.count(False)
    assert "A larger time budget is not expected to raise the accuracy." in printed
    metrics = json.loads((elsewhere / "run" / "metrics.json").read_text())
    last = read_history(elsewhere / "run" / "steps.json").kept
    assert metrics["case"] == last.case and metrics["expected_accuracy"] == last.accuracy
    assert metrics["image_size"] == [last.image_size] * 2
    files = {"report.html", "advice.json", "model.keras", "README.md", "reference.npz"}
    assert files <= set(os.listdir("run"))
    assert "are marked as unknown" in (elsewhere / "run" / "report.html").read_text()
    assert not (elsewhere / ".run.partial").exists()
    assert main(command) == 0
    assert "This run is complete. To improve it, choose a larger --time-budget" in capsys.readouterr().out
    (elsewhere / "run" / "steps.json").write_text("{")
    assert main(command) == 2
    assert "its steps.json is damaged" in capsys.readouterr().err


def test_out_of_fold_predictions_of_all_images_set_the_size_of_prediction_sets(shapes, elsewhere):
    assert main([str(shapes), *QUICK, *SMALL, "--time-budget", "1s"]) == 0
    run = load_run(elsewhere / "run")
    assert len(run.reference.scores) == run.metrics["num_train"] + run.metrics["num_val"]
    assert len(run.reference.directions) == run.metrics["num_train"]


def test_the_figures_of_several_steps_are_drawn_once_and_after_the_accuracy(shapes, monkeypatch, capsys):
    drawn = []

    def draw(folder, drawings):
        drawn.append((set(drawings), capsys.readouterr().out))

    monkeypatch.setattr(run_writer, "write_figures", draw)
    assert main([str(shapes), *QUICK, *SMALL]) == 0
    [(names, printed)] = drawn
    assert names >= {"layer_curve", "confusion_matrix", "network"}
    assert printed.count("A complete run is in run. Test accuracy: ") == 1
    first, last = (printed.index(text) for text in ("A complete run", "\nTest accuracy: "))
    assert first < printed.index("Kept.") < last


def test_ctrl_c_in_a_figure_leaves_a_complete_run(shapes, elsewhere, monkeypatch, capsys):
    def interrupted(evaluation):
        raise KeyboardInterrupt

    command = [str(shapes), *QUICK, *SMALL, "--time-budget", "1s"]
    monkeypatch.setattr("transfer.evaluation.evaluation_plots.confusion_matrix", interrupted)
    assert main(command) == 0
    assert "The run is complete. To write its pages: " in capsys.readouterr().out
    assert load_run("run").metrics["num_test"] and not (elsewhere / "run" / "report.html").exists()
    assert main(command) == 0 and "This run is complete." in capsys.readouterr().out


def test_a_larger_budget_continues_the_run_with_the_same_weights_as_one_command(shapes, elsewhere, capsys):
    short = [str(shapes), *QUICK, *SMALL, "--time-budget", "1s"]
    assert main(short) == 0
    assert steps_of(elsewhere / "run") == ([Kind.HEAD], [True])
    assert "--time-budget=" in capsys.readouterr().out
    (elsewhere / "run" / "notes.txt").write_text("mine")
    assert main([str(shapes), *QUICK, *SMALL]) == 0
    assert steps_of(elsewhere / "run")[0] == [Kind.HEAD, Kind.FINE_TUNING]
    assert (elsewhere / "run" / "notes.txt").read_text() == "mine"
    assert main([str(shapes), *QUICK, *SMALL, "--output", "once"]) == 0
    for one, other in zip(weights_of(elsewhere / "run"), weights_of(elsewhere / "once"), strict=True):
        np.testing.assert_array_equal(one, other)
    config = load_run("run").config
    assert (config.case, config.time_budget) == ("auto", "none")


def test_an_interrupted_step_leaves_the_best_run_and_resumes(shapes, elsewhere, monkeypatch, capsys):
    class Stopping(keras.callbacks.Callback):
        def __init__(self, name):
            super().__init__()

        def on_epoch_end(self, epoch, logs=None):
            os.kill(os.getpid(), signal.SIGINT)

    command = [str(shapes), *QUICK, *SMALL, "--epochs", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "EpochProgress", Stopping)
        assert main(command) == 130
    assert "best model so far" in capsys.readouterr().out
    assert steps_of(elsewhere / "run") == ([Kind.HEAD], [True])
    assert (elsewhere / "run" / "report.html").is_file()
    assert list((elsewhere / ".run.partial" / "checkpoints").glob("*/*.npz"))
    assert main(command) == 0
    assert "Resuming from a checkpoint" in capsys.readouterr().out
    assert steps_of(elsewhere / "run")[0] == [Kind.HEAD, Kind.FINE_TUNING]
    assert not (elsewhere / ".run.partial").exists()


@pytest.mark.parametrize("phase", ["best_head", "head_candidate"])
def test_an_interrupt_before_the_first_run_leaves_nothing(phase, shapes, elsewhere, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, phase, interrupted)
    assert main([str(shapes), *QUICK, *SMALL]) == 130
    assert not list(elsewhere.glob("run")) and not list(elsewhere.glob(".run*"))


def test_without_an_output_the_newest_run_is_continued_unless_images_changed(shapes, elsewhere, capsys):
    data = shutil.copytree(shapes, elsewhere / "shapes")
    command = ["shapes", *QUICK[:-2], *SMALL, "--time-budget", "1s"]
    for expected in ("Kept.", "This run is complete"):
        assert main(command) == 0
        assert expected in capsys.readouterr().out
    next(data.rglob("*.png")).unlink()
    assert main(command) == 0
    assert "Starting another run" in capsys.readouterr().out
    assert sorted(os.listdir("runs")) == ["shapes-auto-1", "shapes-auto-2"]


def test_an_average_is_a_step_and_can_be_made_again_from_its_run(shapes, elsewhere):
    command = [str(shapes), *QUICK, *SMALL, "--average", "--val", "0"]  # so that the typical gains decide
    assert main(command) == 0
    assert steps_of(elsewhere / "run") == ([Kind.HEAD, Kind.FINE_TUNING, Kind.AVERAGE], [True] * 3)
    metrics = json.loads((elsewhere / "run" / "metrics.json").read_text())
    history = read_history(elsewhere / "run" / "steps.json")
    assert [one["case"] for one in metrics["averaged"]] == [history.steps[0].case, metrics["case"]]
    before = weights_of(elsewhere / "run")
    replace(history, steps=history.steps[:-1], budget=1.0).save(elsewhere / "run" / "steps.json")
    assert main(command) == 0
    assert steps_of(elsewhere / "run")[0] == [Kind.HEAD, Kind.FINE_TUNING, Kind.AVERAGE]
    for one, other in zip(before, weights_of(elsewhere / "run"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_another_network_is_compared_at_its_size_and_named_in_the_results(shapes, elsewhere, capsys):
    networks = ["--model", "DemoCNN", "EfficientNetLite0", "--time-budget", "none"]
    assert main([str(shapes), *QUICK, *SMALL, *networks]) == 0
    record = next(
        one for one in read_history(elsewhere / "run" / "steps.json").steps if one.kind is Kind.NETWORK
    )
    assert (record.network, record.image_size) == ("EfficientNetLite0", 32)
    assert "EfficientNetLite0, 32 px" in capsys.readouterr().out
    kept = read_history(elsewhere / "run" / "steps.json").kept
    assert json.loads((elsewhere / "run" / "metrics.json").read_text())["model"] == kept.network
    assert f"{kept.network} on " in (elsewhere / "run" / "report.html").read_text()


def test_labels_without_a_relation_to_the_images_stop_after_the_head(shuffled_folder, elsewhere, capsys):
    assert main([str(shuffled_folder), *QUICK]) == 0
    assert "No signal" in capsys.readouterr().out
    assert steps_of(elsewhere / "run") == ([Kind.HEAD], [True])


@pytest.mark.parametrize("options", [["--val", "0", "--test", "0"], ["--few-shot", "1"], ["--class-weights"]])
def test_few_or_no_images_are_no_obstacle(options, shapes, elsewhere):
    assert main([str(shapes), *QUICK, *SMALL, *options]) == 0
    kinds, kept = steps_of(elsewhere / "run")
    assert kinds[0] is Kind.HEAD and kept[0]
    assert load_run("run").model.output_shape == (None, 3)


def test_one_image_per_class_is_not_fine_tuned(shapes, elsewhere):
    assert main([str(shapes), *QUICK, *SMALL, "--few-shot", "1", "--val", "0"]) == 0
    assert steps_of(elsewhere / "run") == ([Kind.HEAD], [True])


def test_heads_of_many_images_are_chosen_on_a_sample_and_solved_on_all(shapes, elsewhere, monkeypatch):
    monkeypatch.setattr(run, "pool_of", lambda data, seed: heads.pool_of(data, seed, most=44))
    monkeypatch.setattr(heads, "MAX_VALIDATION", 4)
    monkeypatch.setattr(run.AnytimeRun, "_improvable", lambda self: True)
    assert main([str(shapes), *QUICK, *SMALL]) == 0
    history = read_history(elsewhere / "run" / "steps.json")
    assert [step.kind for step in history.steps] == [Kind.HEAD, Kind.FINE_TUNING]
    assert "44 images" in history.steps[0].basis and len(history.correct) == 4


def test_your_own_network_is_improved_too(shapes, elsewhere):
    make_tiny().save(elsewhere / "mine.keras")
    own = ["--model", "mine.keras", "--preprocessing", "tf", "--time-budget", "none", "--epochs", "1"]
    assert main([str(shapes), *own, "--output", "run"]) == 0
    assert steps_of(elsewhere / "run")[0][0] is Kind.HEAD


def test_a_disk_without_space_keeps_the_model_elsewhere(shapes, elsewhere, monkeypatch, capsys):
    write = run_writer.write_run

    def full(folder, results):
        if ".partial" in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, results)

    monkeypatch.setattr("transfer.results.run_writer.write_run", full)
    assert main([str(shapes), *QUICK, *SMALL]) == 2
    printed = capsys.readouterr().err
    assert f"Cannot write the run to {elsewhere / 'run'}".replace(str(elsewhere) + "/", "") in printed
    assert "The complete run, without figures and pages, is in " in printed
    assert not (elsewhere / "run").exists()


def test_the_kept_model_is_calibrated(shapes, elsewhere):
    assert main([str(shapes), *QUICK, *SMALL, "--calibrate", "--val", "30", "--time-budget", "1s"]) == 0
    assert json.loads((elsewhere / "run" / "metrics.json").read_text())["temperature"] > 0


@pytest.mark.parametrize(
    ("models", "text"),
    [
        (["DemoCNN", "auto"], "Expected --model auto alone"),
        (["DemoCNN", "EfficientNetLite9"], "EfficientNetLite"),
    ],
)
def test_each_network_is_checked_before_the_first_is_loaded(models, text, shapes, elsewhere, capsys):
    assert main([str(shapes), *QUICK[2:], "--model", *models]) == 2
    assert text in capsys.readouterr().err and not (elsewhere / "run").exists()
