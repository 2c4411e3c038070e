"""Results are readable in a notebook: one line as text, a compact table as HTML, a data frame, one figure."""

from __future__ import annotations

import inspect
from dataclasses import replace
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import make_tiny

import transfer
from transfer.adviser.comparison import Candidate, Comparison
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.explanations import Response
from transfer.exporters.verification import Exported
from transfer.images.splitting import Split
from transfer.lesson.transferability import Point, Transferability
from transfer.results.prediction import Prediction, Predictions
from transfer.training.learning_rate_finder import RateCurve
from transfer.training.phases import TrainingLog

OLD_RUN = Path(__file__).parent / "results" / "run_of_0_1"


@pytest.fixture(scope="module")
def made(strange_folder):
    """One object of each kind by name, from real calls; names of classes and images look like HTML."""
    data = transfer.load_data(strange_folder, test=0.4)
    base = make_tiny()
    model = transfer.small_similar(base, 3, preprocessing="tf")
    log = transfer.fit(model, data, verbose=0)
    evaluation = transfer.evaluate(model, data)
    advice = transfer.advise(data, base, preprocessing="tf", trial=False)
    broken = np.full((32, 32, 3), np.nan, "float32")
    candidate = Candidate("<b>net</b>" * 9, 96, "a_layer" * 9, 0.8123456, 0.0212345, 0.0041234, 3_371_024)
    points = (Point("AnB", "conv1", 0, 0.25), Point("AnB", "conv1", 1, 0.75))
    names, labels = tuple("<b>" * 40 + str(i) for i in range(6)), np.arange(12).reshape(6, 2) % 3 > 1
    several = transfer.LabelEvaluation(names[:2], labels.astype("int8"), np.full((6, 2), 0.7), names)
    numbers = transfer.ValueEvaluation(names[:1], np.arange(6.0), np.arange(6.0) + 0.1, names)
    return {
        "several labels": several, "numbers": numbers,
        "data": data, "report": data.report, "split": data.train, "log": log, "evaluation": evaluation,
        "decision": transfer.decision_of(model), "advice": advice, "choice": advice.choice, "curve": advice.curve,
        "cross-validation": transfer.cross_validate(data, base, folds=3, case="small-similar", preprocessing="tf"),
        "solved again": transfer.solve_again(model, data),
        "similarity": advice.similarity, "evidence": advice.evidence, "probe": advice.curve.probes[0],
        "merged": transfer.merge(evaluation, {name: name[0] for name in data.class_names}),
        "screening": transfer.screening(evaluation, positive=data.class_names[0]),
        "predictions": transfer.predict(model, [data.test.images[0], broken]),
        "prediction": transfer.predict(model, data.test)[0], "run": transfer.load_run(OLD_RUN),
        "recipe": transfer.Recipe(layer_decay=0.1), "config": transfer.TrainConfig(data="photos", epochs=3),
        "rates": RateCurve((1e-3, 1e-2), (1.0, 0.5), (1.0, 0.7)), "comparison": Comparison([candidate] * 3),
        "transferability": Transferability("net", ("conv1",) * 20, 10, 5, 0.5, (0.75, 1.0), points),
        "exported": Exported(Path("a" * 99), "litert", None, 10**6, 99, 1e-6, 1.0, 0.8, 0.8, 900.0, 800.0),
        "response": Response("a_layer", 3, 9.0, (0,), (1.0,), ((4, 4),), (data.test.image(0, (32, 32)),)),
    }  # fmt: skip


def test_every_exported_class_has_a_repr_of_one_short_line(made):
    classes = [one for name in transfer.__all__ if inspect.isclass(one := getattr(transfer, name))]
    expected = {one for one in classes if not issubclass(one, BaseException | Enum)}
    assert expected <= {type(one) for one in made.values()}
    for name, one in made.items():
        shown = repr(one)
        assert len(shown) <= 200 and "\n" not in shown and str(one) == shown, name
        assert shown.startswith(f"{type(one).__name__}("), name


def test_the_one_line_says_what_is_most_important(made):
    evaluation, data = made["evaluation"], made["data"]
    assert f"accuracy {evaluation.accuracy:.1%}" in repr(evaluation) and "95% interval" in repr(evaluation)
    assert f"3 classes; {len(data.train)} training, {len(data.val)} validation" in repr(data)
    assert repr(made["config"]) == "TrainConfig(data='photos', epochs=3)"
    assert repr(made["recipe"]) == "Recipe(layer_decay=0.1)"
    assert "exact head with C = " in repr(made["log"]) and "validation accuracy" in repr(made["log"])
    assert repr(made["predictions"]) == "Predictions(2 images, 1 of them cannot be read)"
    assert "estimated accuracy" in repr(made["advice"]) and "cut at" in repr(made["decision"])
    assert made["prediction"].label[:9] in repr(made["prediction"])


class Parsed(HTMLParser):
    """The tags of a text, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, text):
        if self.tags[-1] in ("td", "th"):
            self.rows[-1].append(text)


WITH_HTML = ["data", "report", "log", "evaluation", "cross-validation", "advice", "predictions", "comparison"]
WITH_HTML += ["transferability"]


@pytest.mark.parametrize("name", WITH_HTML)
def test_html_is_a_compact_table_without_the_markup_of_names(made, name):
    parsed = Parsed(made[name]._repr_html_())
    assert set(parsed.tags) <= {"p", "table", "thead", "tbody", "tr", "th", "td"} and "table" in parsed.tags
    assert 1 < len(parsed.rows) <= 24


def test_html_and_text_show_the_same_table(made):
    for name in ("report", "evaluation", "advice", "comparison", "transferability"):
        words = made[name].to_text()
        for row in Parsed(made[name]._repr_html_()).rows[1:]:
            assert all(cell.strip() in words for cell in row), name


def test_html_of_many_classes_and_epochs_is_short():
    classes = tuple(f"class {i}" for i in range(300))
    labels = np.arange(600) % 300
    probabilities = np.eye(300)[np.where(labels < 5, (labels + 1) % 300, labels)]
    rows = Parsed(Evaluation(classes, labels, probabilities, tuple(map(str, range(600))))._repr_html_()).rows
    assert len(rows) == 22 and {row[0] for row in rows[1:5]} <= {f"class {i}" for i in range(6)}
    log = TrainingLog([{"phase": "fine-tune", "epoch": i + 1, "loss": 1 / (i + 1)} for i in range(500)])
    rows = Parsed(log._repr_html_()).rows
    assert len(rows) == 21 and rows[1][1] == "1" and rows[-1][1] == "500"
    assert repr(log) == "TrainingLog(fine-tune: 500 epochs; 0.0 s)"


def test_predictions_are_still_a_list(made):
    predictions = made["predictions"]
    assert isinstance(predictions, list) and [*predictions] == predictions and len(predictions[:1]) == 1
    assert (predictions[1].label is None and "not finite" in predictions[1].problem) or predictions[1].problem


def test_results_without_images_can_be_looked_at():
    none = Evaluation(("a", "b"), np.zeros(0, "int64"), np.zeros((0, 2)), ())
    assert repr(none) == "Evaluation(no images, 2 classes)"
    assert none.to_text() == "No images.\n" and "No images." in none._repr_html_()
    for draw in (none.plot_confusion, none.plot_classes, none.plot_calibration):
        with pytest.raises(transfer.InputError, match="one image or more"):
            draw()
    assert repr(Predictions()) == "Predictions(0 images)" and "table" not in Predictions()._repr_html_()
    assert repr(Comparison()) == "Comparison(0 networks)"
    assert (
        repr(TrainingLog()) == "TrainingLog(no epochs; 0.0 s)" and "table" not in TrainingLog()._repr_html_()
    )
    with pytest.raises(transfer.InputError, match="one epoch or more"):
        TrainingLog().plot()
    assert (
        repr(Split(np.zeros((0, 8, 8, 3)), np.zeros(0, "int64"), ()))
        == "Split(0 images; labels: 0 different)"
    )


def test_a_log_with_missing_values_can_be_looked_at():
    log = TrainingLog(
        [{"phase": "head", "loss": 1.0, "accuracy": None}, {"phase": "fine-tune", "val_loss": np.nan}]
    )
    assert repr(log) == "TrainingLog(head: 1 epoch, fine-tune: 1 epoch; 0.0 s)"
    assert Parsed(log._repr_html_()).rows[0] == ["phase", "loss", "accuracy", "val_loss"]


def test_the_one_line_of_a_log_shows_the_epoch_of_the_final_weights():
    rows = [{"phase": "head", "val_accuracy": 0.75}, {"phase": "fine-tune", "val_accuracy": 0.5}]
    assert "validation accuracy 50.0%; 0.0 s" in repr(TrainingLog(rows))
    undone = "head: 1 epoch, fine-tune: 1 epoch; validation accuracy 75.0%; fine-tuning undone"
    assert undone in repr(TrainingLog(rows, kept_row=0))
    assert (
        repr(TrainingLog(rows[1:], kept_row=-1))
        == "TrainingLog(fine-tune: 1 epoch; fine-tuning undone; 0.0 s)"
    )


def test_figures_are_drawn_by_the_objects(made):
    evaluation, advice = made["evaluation"], made["advice"]
    for figure in (
        evaluation.plot_confusion(),
        evaluation.plot_classes(),
        evaluation.plot_calibration(),
        made["log"].plot(),
        TrainingLog([{"phase": "head", "epoch": 1, "loss": 1.0, "accuracy": 0.5}]).plot(),
        made["screening"].plot(references=[("<b>reader", 0.9, 0.8)]),
        advice.plot(),
        advice.plot("layer_curve"),
    ):
        assert figure.axes
    with pytest.raises(transfer.InputError, match="Unknown figure 'layers'"):
        advice.plot("layers")
    with pytest.raises(transfer.InputError, match="Expected advice with measurements"):
        replace(advice, curve=None, similarity=None).plot()


def test_a_notebook_shows_a_returned_figure_exactly_once(made):
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(made["log"].plot())
    assert sorted(shown) == ["image/png", "text/plain"]


def test_a_notebook_shows_results_as_one_line_and_as_html(made):
    formatters = pytest.importorskip("IPython.core.formatters")
    for name in WITH_HTML:
        shown, _ = formatters.DisplayFormatter().format(made[name])
        assert shown["text/plain"] == repr(made[name]) and shown["text/html"] == made[name]._repr_html_()


def test_data_frames_have_one_row_per_image_epoch_choice_and_network(made):
    pytest.importorskip("pandas")
    data, evaluation, advice = made["data"], made["evaluation"], made["advice"]
    images = data.to_dataframe()
    assert [*images.columns] == ["name", "label", "split"] and len(images) == sum(
        map(len, data.splits.values())
    )
    assert images["split"].value_counts().to_dict() == {name: len(part) for name, part in data.splits.items()}
    tested = evaluation.to_dataframe()
    assert [*tested.columns] == ["name", "label", "predicted", *data.class_names]
    assert (tested["label"] == tested["predicted"]).mean() == evaluation.accuracy
    np.testing.assert_array_equal(tested[[*data.class_names]], evaluation.probabilities)
    assert made["log"].to_dataframe().to_dict("list") == made["log"].history
    choices = advice.to_dataframe()
    assert len(choices) == len(advice.choices) and choices["recommended"].sum() == 1
    assert made["comparison"].to_dataframe()["parameters"].tolist() == [3_371_024] * 3


def test_the_data_frame_of_predictions_has_gaps_for_images_with_a_problem(made):
    pytest.importorskip("pandas")
    frame = made["predictions"].to_dataframe()
    first = ["name", "label", "probability", "problem", "known"]
    assert [*frame.columns] == [*first, *made["data"].class_names]
    assert frame["label"].isna().tolist() == [False, True] and frame.iloc[1, len(first) :].isna().all()
    assert frame.iloc[0, len(first) :].sum() == pytest.approx(1)
    assert frame["problem"].tolist() == [one.problem for one in made["predictions"]]
    assert len(Predictions().to_dataframe()) == 0
    broken = Predictions([Prediction("a.txt", ("a", "b"), None, "no image")])
    assert broken.to_dataframe().shape == (1, 7)


def test_groups_and_no_images_are_in_data_frames():
    pytest.importorskip("pandas")
    labels, probabilities = np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]])
    frame = Evaluation(("name", "b"), labels, probabilities, ("1", "2"), ("p", "q")).to_dataframe()
    assert [*frame.columns] == ["name", "label", "predicted", "group", "name (class)", "b"]
    empty = Evaluation(("a", "b"), labels[:0], probabilities[:0], ()).to_dataframe()
    assert [*empty.columns] == ["name", "label", "predicted", "a", "b"] and len(empty) == 0
