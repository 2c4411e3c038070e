"""`--task multi` and `--task regression` in the commands that train and advise."""

import json

import keras
import numpy as np
import pytest
from helpers.task_images import write_labels, write_numbers

import transfer
from transfer import train
from transfer.advice import main as advice_command

OPTIONS = ["--model", "DemoCNN", "--val", "0.25", "--test", "0.3", "--no-near-duplicates"]


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """The list of each task, with the options that read it."""
    place = tmp_path_factory.mktemp("lists")
    numbers = str(write_numbers(place / "numbers"))
    return {
        "multi": [str(write_labels(place / "labels")), "--task", "multi"],
        "regression": [numbers, "--task", "regression", "--label-column", "age"],
    }


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_auto_keeps_the_better_of_head_and_fine_tuning(task, lists, in_folder, capsys):
    assert (
        train.main([*lists[task], *OPTIONS, "--time-budget", "none", "--epochs", "2", "--output", "run"]) == 0
    )
    log = capsys.readouterr().out
    metrics = json.loads((in_folder / "run" / "metrics.json").read_text())
    assert metrics["task"] == task and len(metrics["compared"]) == 2 and metrics["expected_score"] > 0
    for line in metrics["compared"]:
        assert line in log
    head, tuned = (float(line.split(" on ")[-2].split()[-1].rstrip("%")) for line in metrics["compared"])
    assert metrics["case"].startswith("large" if tuned > head else "small") or tuned == head
    run = transfer.load_run("run")
    key = "mean_average_precision" if task == "multi" else "r2"
    assert transfer.evaluate(run.model, run.data()).score == pytest.approx(metrics[f"test_{key}"], abs=1e-4)
    page = (in_folder / "run" / "report.html").read_text()
    assert metrics["compared"][0] in page and "head on" in page and "head_scores" not in log
    assert (in_folder / "run" / "head_scores.png").stat().st_size > 1000
    # The same command finds the complete run.
    assert (
        train.main([*lists[task], *OPTIONS, "--time-budget", "none", "--epochs", "2", "--output", "run"]) == 0
    )


def test_auto_without_time_trains_the_head_only(lists, in_folder, capsys):
    assert train.main([*lists["multi"], *OPTIONS, "--time-budget", "1s", "--output", "run"]) == 0
    assert "For it, choose a larger --time-budget." in capsys.readouterr().out
    metrics = json.loads((in_folder / "run" / "metrics.json").read_text())
    assert len(metrics["compared"]) == 1 and metrics["case"].startswith("small")


def test_a_cut_restricts_auto_to_a_head(lists, in_folder, capsys):
    assert train.main([*lists["regression"], *OPTIONS, "--solver", "exact", "--output", "run"]) == 0
    assert "Best head on the frozen network" in capsys.readouterr().out
    assert json.loads((in_folder / "run" / "metrics.json").read_text())["case"].startswith("small")


def test_huber_trains_in_epochs_and_fine_tunes(lists, in_folder):
    more = ["--case", "large-similar", "--loss", "huber", "--epochs", "1", "--output", "run"]
    assert train.main([*lists["regression"], *OPTIONS, *more]) == 0
    model = keras.models.load_model("run/model.keras")
    assert "huber" in str(getattr(model.loss, "name", model.loss)).lower()
    assert np.isfinite(json.loads((in_folder / "run" / "metrics.json").read_text())["test_r2"])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("multi", ["--folds", "3"], "no --folds with the task multi"),
        ("multi", ["--case", "1", "--calibrate"], "no --calibrate with the task multi"),
        ("multi", ["--average"], "no --average with the task multi"),
        ("regression", ["--case", "1", "--class-weights"], "no --class-weights with the task regression"),
        ("multi", ["--case", "1", "--loss", "huber"], "--loss huber only with the task regression"),
    ],
)
def test_options_that_do_not_suit_the_task_are_refused(task, options, message, lists, in_folder, capsys):
    assert train.main([*lists[task], *OPTIONS, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (in_folder / "runs").exists()


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_the_command_advice_compares_heads(task, lists, in_folder, capsys):
    files = ["--json", "advice.json", "--plots", "plots"]
    assert advice_command([*lists[task], *OPTIONS, "--no-trial", *files]) == 0
    text, values = capsys.readouterr().out, json.loads((in_folder / "advice.json").read_text())
    assert values["reason"] in text and values["task"] == task
    assert (in_folder / "plots" / "head_scores.png").stat().st_size > 1000
