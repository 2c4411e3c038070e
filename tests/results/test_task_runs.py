"""Runs of several labels and of numbers: their files, their predictions, their report, and reading them back."""

import csv
import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
import yaml
from helpers.task_images import LABELS, write_labels, write_numbers

import transfer
from transfer.common.errors import InputError
from transfer.evaluation.prediction_sets import set_threshold
from transfer.results.model_card import model_card
from transfer.results.prediction_files import read_predictions, write_predictions
from transfer.results.run_comparison import comparison_page
from transfer.results.run_pages import evaluation_page, run_page
from transfer.results.run_records import read_record

OPTIONS = {"val": 0.25, "test": 0.3, "near_duplicates": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of several labels and one of numbers, with the data and the evaluation of each."""
    place = tmp_path_factory.mktemp("runs")
    keras.utils.set_random_seed(0)
    found = {}
    for task, path, column in (
        ("multi", write_labels(place / "labels"), "label"),
        ("regression", write_numbers(place / "numbers"), "age"),
    ):
        data = transfer.load_data(path, task=task, label_column=column, **OPTIONS)
        model = transfer.small_similar(transfer.DemoCNN(weights=None), data.num_classes, task=task)
        log = transfer.fit(model, data, verbose=0)
        evaluation = transfer.evaluate(model, data)
        run = transfer.save_run(model, data, log, place / task, evaluation=evaluation)
        found[task] = run, data, evaluation
    return found


@pytest.fixture(params=["multi", "regression"])
def one(request, runs):
    """One of the runs, with its data and its evaluation."""
    return runs[request.param]


def paths(data) -> list[str]:
    return [str(path) for path in data.test.images]


def test_the_metrics_hold_the_task_and_its_scores(runs):
    run, _, evaluation = runs["multi"]
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert (metrics["task"], metrics["test_accuracy"]) == ("multi", None)
    assert metrics["test_mean_average_precision"] == pytest.approx(evaluation.score)
    assert metrics["test_f1_micro"] == pytest.approx(evaluation.f1_micro)
    assert metrics["thresholds"] == pytest.approx(evaluation.limits.tolist(), abs=1e-5)
    run, _, evaluation = runs["regression"]
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert (metrics["task"], metrics["test_accuracy"]) == ("regression", None)
    assert metrics["test_r2"] == pytest.approx(evaluation.r2)
    assert metrics["test_mean_absolute_error"] == pytest.approx(evaluation.mean_absolute_error)
    assert "thresholds" not in metrics and metrics["num_classes"] == 1
    details = json.loads((run.folder / "evaluation.json").read_text())
    assert details["prediction_intervals"]["width"] == pytest.approx(details["interval_width"])
    assert (run.folder / "labels.txt").read_text() == "age\n"


def test_a_loaded_run_evaluates_its_own_images_as_before(one):
    run, data, evaluation = one
    assert run.task == data.task and run.class_names == data.class_names
    again = run.data()
    assert again.task == data.task and list(again.test.names) == list(data.test.names)
    found = transfer.evaluate(run.model, again)
    assert type(found) is type(evaluation)
    assert found.score == pytest.approx(evaluation.score, abs=1e-3)
    images = np.stack([data.test.image(i, (48, 48)) for i in range(20)])
    others = transfer.evaluate(run.model, run.data((images, data.test.labels[:20])))
    assert others.outputs == pytest.approx(evaluation.outputs[:20], rel=1e-3, abs=1e-2)


def test_predictions_are_read_back(one, tmp_path):
    run, _, evaluation = one
    form = {"task": run.task, "thresholds": run.thresholds if run.task == "multi" else ()}
    written = read_predictions(run.folder / "predictions.csv", **form)
    assert written.names == evaluation.names
    assert (written.labels == evaluation.labels).all()
    assert written.outputs == pytest.approx(evaluation.outputs, abs=1e-5)
    assert written.score == pytest.approx(evaluation.score, abs=1e-6)
    grouped = replace(evaluation, groups=tuple(f"-{i % 3}" for i in range(len(evaluation.labels))))
    write_predictions(tmp_path / "grouped.csv", grouped)
    assert read_predictions(tmp_path / "grouped.csv", **form).groups == grouped.groups


def test_cells_are_plain_numbers_and_labels_without_formulas(runs):
    numbers = (runs["regression"][0].folder / "predictions.csv").read_text()
    assert "'-" not in numbers, "a negative number is no formula"
    with (runs["multi"][0].folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["path", "label", "predicted", "group", "'=red", "blue", "green"]
    assert {row["label"] for row in rows} >= {"", "'=red", "blue|green"}


@pytest.mark.parametrize(
    ("task", "content", "says"),
    [
        ("multi", "path,label,predicted,group,a\nx.png,b,a,,0.5\n", "unknown label 'b'"),
        ("multi", "path,label,predicted,group,a\nx.png,a,a,,none\n", "could not convert"),
        ("regression", "path,label,predicted,group\nx.png,one,2,\n", "finite numbers"),
        ("regression", "path,label,predicted,group\nx.png,1,nan,\n", "finite numbers"),
        ("regression", "path,label,group\nx.png,1,\n", "expected the columns"),
    ],
)
def test_damaged_predictions_are_reported(tmp_path, task, content, says):
    (tmp_path / "predictions.csv").write_text(content)
    with pytest.raises(InputError, match=says):
        read_predictions(tmp_path / "predictions.csv", task=task)


def test_predictions_of_files_are_those_of_the_evaluation(runs):
    run, data, evaluation = runs["multi"]
    found = run.predict(paths(data))
    assert np.stack([one.probabilities for one in found]) == pytest.approx(evaluation.probabilities, abs=1e-3)
    for one, probabilities in zip(found, evaluation.probabilities, strict=True):
        chosen = zip(LABELS, one.probabilities > run.thresholds, strict=True)
        assert one.labels == tuple(name for name, above in chosen if above)
        assert one.label == "|".join(one.labels) and one.probability is None and one.value is None
        assert one.top(1)[0][0] == LABELS[int(probabilities.argmax())]
    assert any(one.label == "" and "no label" in repr(one) for one in found)
    assert "no label" in found._repr_html_()
    run, data, evaluation = runs["regression"]
    found = run.predict([*paths(data), "missing.png"], coverage=0.8)
    values = [one.value for one in found[:-1]]
    assert values == pytest.approx(evaluation.predictions, rel=1e-3, abs=0.05)
    half = set_threshold(run.reference.scores, 0.8)
    for one in found[:-1]:
        assert one.interval == pytest.approx((one.value - half, one.value + half))
    assert all(one.labels == () and float(one.label) == pytest.approx(one.value) for one in found[:-1])
    assert found[-1].value is None and found[-1].label is None and "no such file" in found._repr_html_()


def test_tables_of_predictions(runs):
    pytest.importorskip("pandas")
    run, data, _ = runs["regression"]
    table = run.predict(paths(data)[:3], coverage=0.8).to_dataframe()
    assert [*table.columns] == ["name", "value", "low", "high", "problem", "known"]
    run, data, _ = runs["multi"]
    table = run.predict(paths(data)[:3]).to_dataframe()
    assert [*table.columns] == ["name", "label", "problem", "known", *LABELS]


def test_unknown_images_are_marked_and_sets_of_labels_are_refused(one):
    run, data, _ = one
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8")
    known = [found.known for found in run.predict(paths(data))]
    assert np.mean(known) > 0.8
    assert run.predict([noise])[0].distance > np.median([p.distance for p in run.predict(paths(data))])
    if run.task == "multi":
        with pytest.raises(InputError, match="one class or one number per image"):
            run.predict(paths(data)[:1], coverage=0.9)


def test_a_model_file_alone_holds_its_task(one, tmp_path):
    run, data, _ = one
    shutil.copy(run.folder / "model.keras", tmp_path / "alone.keras")
    alone = transfer.load_run(tmp_path / "alone.keras")
    assert alone.task == run.task and alone.class_names == run.class_names
    first, second = (each.predict(paths(data)[:5]) for each in (run, alone))
    assert [p.label for p in first] == [p.label for p in second]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "other"}, "one of the tasks"),
        ({"thresholds": [0.5]}, "3 thresholds"),
        ({"thresholds": [0.5, 0.5, 7]}, "3 thresholds"),
        ({"thresholds": "high"}, "3 thresholds"),
    ],
)
def test_metrics_from_elsewhere_are_checked(runs, tmp_path, changes, says):
    shutil.copytree(runs["multi"][0].folder, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text()) | changes
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=says):
        transfer.load_run(tmp_path / "run")


def test_reports_have_the_metrics_of_the_task_and_no_others(one):
    run, _, evaluation = one
    record = read_record(run.folder)
    assert record.shown.score == pytest.approx(evaluation.score, abs=1e-6)
    pages = [run_page(record), model_card(record), evaluation_page("test", evaluation, (), {})]
    for page in pages:
        text = page.replace("expected_accuracy", "")
        assert (
            "accuracy" not in text.lower() and "confusion" not in text.lower() and "nan" not in text.split()
        )
    figures = {"labels", "co_occurrence"} if run.task == "multi" else {"values"}
    assert figures | {"mistakes", "predictions", "blocks", "network"} <= record.figures.keys()
    assert not {"confusion_matrix", "classes", "calibration"} & record.figures.keys()
    if run.task == "regression":
        assert (
            f"{evaluation.r2:.3f}" in pages[0] and "Prediction intervals with a nominal coverage" in pages[0]
        )
        assert "number age" in pages[1] and "Largest errors" in pages[0]
    else:
        assert f"{evaluation.score:.1%}" in pages[0] and "threshold" in pages[0]
        assert ".labels)" in pages[1]
    header = yaml.safe_load(pages[1].split("---")[1])
    kinds = [metric["type"] for metric in header["model-index"][0]["results"][0]["metrics"]]
    assert kinds == (["mean_average_precision", "f1"] if run.task == "multi" else ["r_squared", "mae"])


def test_runs_are_compared_by_the_metric_of_their_task(one, tmp_path):
    run, data, evaluation = one
    other = tmp_path / "worse"
    shutil.copytree(run.folder, other)
    rng = np.random.default_rng(0)
    if run.task == "multi":
        noisy = evaluation.probabilities + rng.normal(0, 0.6, evaluation.probabilities.shape)
        worse = replace(evaluation, probabilities=np.clip(noisy, 0, 1))
    else:
        worse = replace(evaluation, predictions=evaluation.predictions + rng.normal(0, 60, len(data.test)))
    write_predictions(other / "predictions.csv", worse)
    records = [read_record(run.folder), read_record(other)]
    page = comparison_page(records)
    name = "test mean average precision" if run.task == "multi" else "test R2"
    assert name in page and "The difference is significant" in page and "paired bootstrap" in page
    assert "McNemar" not in page and "accuracy" not in page.lower()
    assert "not significant" in comparison_page([records[0], read_record(run.folder)])


def test_save_run_takes_only_evaluations(runs, tmp_path):
    _, data, _ = runs["multi"]
    model = transfer.small_similar(transfer.DemoCNN(weights=None), 3, task="multi")
    log = transfer.fit(model, data, verbose=0)
    with pytest.raises(InputError, match="Expected an evaluation"):
        transfer.save_run(model, data, log, tmp_path / "run", evaluation=0.9)
    with pytest.raises(InputError, match="other images"):
        transfer.save_run(
            model, data, log, tmp_path / "run", evaluation=transfer.evaluate(model, data, split="val")
        )
