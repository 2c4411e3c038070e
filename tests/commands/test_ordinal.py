"""`--task ordinal`: the rule and the order of a run decide its classes in all commands."""

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.images import write_image

from transfer import report
from transfer.cases.builders import small_similar
from transfer.common.decision_rules import RULES, choose_rule, decide, expected_ranks
from transfer.evaluate import main as evaluate_command
from transfer.evaluation.evaluate import decision_rule, evaluate
from transfer.images.datasets import load_data
from transfer.networks.demo_cnn import DemoCNN
from transfer.predict import main as predict_command
from transfer.results.finished_runs import load_run
from transfer.results.prediction_files import read_predictions
from transfer.results.saved_runs import save_run
from transfer.train import main
from transfer.training.fit import fit

QUICK = ["--image-size", "32", "--strategy", "default", "--model", "DemoCNN"]


@pytest.fixture(scope="module")
def grades(tmp_path_factory) -> Path:
    """Gray images in five bands of brightness with much noise in the level; "100+" is the last class."""
    folder, rng = tmp_path_factory.mktemp("grades") / "grades", np.random.default_rng(0)
    for rank, name in enumerate(["0-24", "25-49", "50-74", "75-99", "100+"]):
        for i in range(18):
            value = int(np.clip(30 + 45 * (rank + rng.normal(0, 0.7)), 0, 255))
            write_image(folder / name / f"{i:02}.png", (value, value, value), seed=100 * rank + i)
    return folder


@pytest.fixture(scope="module")
def run(grades, tmp_path_factory) -> Path:
    """A run of ordered classes."""
    place = tmp_path_factory.mktemp("runs") / "grades"
    flags = ["--task", "ordinal", "--case", "small-similar", "--val", "0.2", "--test", "0.3"]
    assert main(["--data", str(grades), *flags, "--output", str(place), *QUICK]) == 0
    return place


def with_rule(run, rule, place) -> Path:
    """Copy a run, and give it another rule."""
    place.mkdir()
    for file in run.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    metrics = json.loads((run / "metrics.json").read_text()) | {"decision_rule": rule}
    (place / "metrics.json").write_text(json.dumps(metrics))
    return place


def test_a_run_holds_its_order_its_rule_and_its_metrics(run):
    names = (run / "labels.txt").read_text().split()
    assert names == ["0-24", "25-49", "50-74", "75-99", "100+"]
    metrics, details = (json.loads((run / f"{name}.json").read_text()) for name in ("metrics", "evaluation"))
    loaded = load_run(run)
    data = loaded.data()
    assert data.ordered and data.class_names == loaded.class_names == tuple(names)
    val = evaluate(loaded.model, data, split="val")
    assert metrics["decision_rule"] == loaded.rule == choose_rule(val.labels, val.probabilities)
    written = read_predictions(run / "predictions.csv", loaded.rule)
    distance = np.abs(written.labels - decide(written.probabilities, loaded.rule))
    assert metrics["test_mean_absolute_error"] == pytest.approx(distance.mean())
    assert details["accuracy_within_one"] == pytest.approx((distance <= 1).mean())
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    expected = expected_ranks(written.probabilities)
    assert [float(row["expected_rank"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-3)
    page, card = (run / "report.html").read_text(), (run / "README.md").read_text()
    for text in (page, card):
        assert f"{metrics['test_mean_absolute_error']:.3f} ranks" in text
        assert f"{metrics['test_quadratic_weighted_kappa']:.3f}" in text


@pytest.mark.parametrize("rule", RULES)
def test_all_commands_decide_by_the_rule_of_the_run(rule, run, grades, tmp_path, capsys):
    other = with_rule(run, rule, tmp_path / "other")
    loaded, files = load_run(other), sorted(map(str, grades.rglob("*.png")))
    values = np.stack([one.probabilities for one in loaded.predict(files)])
    labels = [loaded.class_names[i] for i in decide(values, rule)]
    assert [one.label for one in loaded.predict(files)] == labels
    assert predict_command([str(other), str(grades), "--format", "csv"]) == 0
    rows = {row["path"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert [rows[file]["predicted"] for file in files] == labels
    found = [float(rows[file]["expected_rank"]) for file in files]
    assert found == pytest.approx(expected_ranks(values).tolist(), abs=1e-3)
    assert evaluate_command([str(other), "--json", str(tmp_path / "test.json")]) == 0
    measured = json.loads((tmp_path / "test.json").read_text())
    assert measured["decision_rule"] == rule and f"Decision rule: {rule}." in capsys.readouterr().out
    probabilities = read_predictions(run / "predictions.csv", rule)
    assert measured["mean_absolute_error"] == pytest.approx(probabilities.ordinal.mean_absolute_error)
    assert report.main([str(other)]) == 0
    assert f"Decision rule: {rule}." in (other / "report.html").read_text()


def test_table_and_json_show_the_decided_class(run, grades, capsys):
    image = str(grades / "0-24" / "00.png")
    assert predict_command([str(run), image]) == 0
    line = capsys.readouterr().out
    assert predict_command([str(run), image, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert f"predicted {row['predicted']}, expected rank {row['expected_rank']:.2f}  " in line


def test_an_unknown_rule_is_an_error(run, tmp_path, capsys):
    other = with_rule(run, "mean", tmp_path / "other")
    assert evaluate_command([str(other)]) == 2
    assert "Unknown rule 'mean'" in capsys.readouterr().err


def test_folds_decide_by_out_of_fold_predictions(grades, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--task", "ordinal", "--folds", "3", "--output", "run", *QUICK]
    assert main(["--data", str(grades), *flags]) == 0
    assert "Mean absolute error: " in capsys.readouterr().out
    folds, loaded = json.loads(Path("run/cross_validation.json").read_text()), load_run("run")
    rows = list(csv.DictReader(Path("run/out_of_fold.csv").read_text().splitlines()))
    values = np.array([[float(row[name]) for name in loaded.class_names] for row in rows])
    labels = np.array([loaded.class_names.index(row["label"]) for row in rows])
    assert loaded.rule == folds["decision_rule"] == choose_rule(labels, values)
    assert "quadratic weighted kappa" in Path("run/report.html").read_text()


def test_auto_hints_at_the_order_and_decides_without_it(grades, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", str(grades), "--case", "small-similar", "--output", "run", *QUICK]) == 0
    assert capsys.readouterr().out.count("use --task ordinal") == 1
    loaded = load_run("run")
    assert loaded.rule is None and "decision_rule" not in loaded.metrics
    prediction = loaded.predict(next(grades.rglob("*.png")))[0]
    assert prediction.expected_rank is None
    assert "expected_rank" not in Path("run/predictions.csv").read_text()


def test_an_improved_run_has_a_rule(grades, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--task", "ordinal", "--time-budget", "1s", "--output", "run", *QUICK]
    assert main(["--data", str(grades), *flags]) == 0
    assert "Mean absolute error: " in capsys.readouterr().out
    assert load_run("run").rule in RULES


def test_python_chooses_the_rule_on_validation_images(grades, tmp_path):
    data = load_data(grades, task="ordinal", val=0.3)
    model = small_similar(DemoCNN(weights=None, input_shape=(32, 32, 3)), data.num_classes)
    log = fit(model, data, verbose=0)
    evaluation, val = evaluate(model, data), evaluate(model, data, split="val", rule="most-probable")
    assert evaluation.rule == choose_rule(val.labels, val.probabilities)
    if importlib.util.find_spec("pandas") is not None:
        assert "expected_rank" in evaluation.to_dataframe()
    assert evaluate(model, str(grades)).rule == evaluation.rule
    assert evaluate(model, data, rule="median").rule == "median"
    without = dataclasses.replace(data, val=data.val.take([]))
    fit(model, without, verbose=0)
    assert decision_rule(model, without) == "most-probable"
    fit(model, data, verbose=0)
    run = save_run(model, data, log, tmp_path / "run")
    assert run.rule == decision_rule(model, data) and run.config.task == "ordinal"
