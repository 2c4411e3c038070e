"""The evaluation of several labels per image."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from transfer.common.errors import InputError
from transfer.common.figures import png_of
from transfer.common.label_metrics import mean_average_precisions
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.screening import screening

NAMES = ("person", "dog", "traffic light", "unused")


def evaluation(count: int = 200, *, seed: int = 0, **options) -> LabelEvaluation:
    """Random labels and probabilities that fit them partly; no image has the last label."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 4)) < [0.5, 0.2, 0.1, 0]).astype("int8")
    probabilities = np.clip(0.35 * labels + 0.65 * rng.random((count, 4)), 0, 1)
    names = tuple(f"{i}.png" for i in range(count))
    return LabelEvaluation(NAMES, labels, probabilities, names, **options)


def test_metrics_are_those_of_scikit_learn():
    one = evaluation(thresholds=(0.4, 0.5, 0.6, 0.5))
    labels, found = one.labels[:, :3], (one.probabilities > [0.4, 0.5, 0.6, 0.5]).astype(int)
    assert (one.predictions == found).all()
    assert one.score == pytest.approx(metrics.average_precision_score(labels, one.probabilities[:, :3]))
    assert one.f1_micro == pytest.approx(metrics.f1_score(one.labels, found, average="micro"))
    assert one.f1_macro == pytest.approx(metrics.f1_score(labels, found[:, :3], average="macro"))
    assert one.exact_match == metrics.accuracy_score(one.labels, found)
    losses = [metrics.log_loss(one.labels[:, k], one.probabilities[:, k], labels=[0, 1]) for k in range(4)]
    assert one.loss == pytest.approx(np.mean(losses))
    assert one.co_occurrence[0, 1] == np.sum(one.labels[:, 0] & one.labels[:, 1])
    assert [score.images for score in one.by_label] == one.labels.sum(axis=0).tolist()


def test_weights_count_images_several_times():
    one, rng = evaluation(60), np.random.default_rng(1)
    weights = rng.multinomial(60, np.full(60, 1 / 60), 3)
    for row, score in zip(
        weights, mean_average_precisions(one.probabilities, one.labels, weights), strict=True
    ):
        repeated = one.take(np.repeat(np.arange(60), row))
        assert score == pytest.approx(repeated.score)


def test_the_interval_holds_the_score_and_is_wider_with_groups_and_fewer_images():
    many, few = evaluation(400), evaluation(60)
    widths = [np.ptp(one.interval) for one in (many, few)]
    assert widths[0] < widths[1]
    for one in (many, few):
        assert one.interval[0] < one.score < one.interval[1]
    grouped = replace(many, groups=tuple(str(i // 40) for i in range(400)))
    repeated = grouped.take(np.repeat(np.arange(0, 400, 40), 40))
    assert np.ptp(repeated.interval) > 2 * widths[0], "ten different images, each forty times"


def test_mistakes_are_sorted_by_their_distance_to_the_threshold():
    labels = np.array([[1, 0], [0, 0], [1, 1]])
    probabilities = np.array([[0.10, 0.9], [0.21, 0.1], [0.9, 0.45]])
    one = LabelEvaluation(("a", "b"), labels, probabilities, ("x", "y", "z"), thresholds=(0.2, 0.5))
    assert one.mistakes.tolist() == [[0, 1], [0, 0], [2, 1], [1, 0]]


def test_undefined_metrics_are_null_in_json_and_undefined_in_text():
    one = evaluation()
    values = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert values["labels"][3] == {
        "name": "unused", "average_precision": None, "precision": None, "recall": None, "f1": None, "images": 0
    }  # fmt: skip
    assert values["mean_average_precision"] == pytest.approx(one.score)
    assert values["pairs"][0]["images"] == np.triu(one.co_occurrence, 1).max()
    text = one.to_text()
    assert "undefined" in text and f"Mean average precision: {one.score:.1%} on 200 held-out images" in text
    nothing = replace(one, labels=one.labels * 0)
    assert np.isnan(nothing.score)
    assert (
        "Mean average precision: undefined on 200 held-out images (95% interval undefined)"
        in nothing.to_text()
    )
    assert json.loads(json.dumps(nothing.to_dict(), allow_nan=False))["mean_average_precision"] is None


def test_texts_say_how_many_images_were_used_for_training():
    assert "Warning: 3 of these images" in evaluation(seen=3).to_text()
    assert "3 of them used for training" in repr(evaluation(seen=3))
    assert repr(evaluation().take(np.arange(0))) == "LabelEvaluation(no images, 4 labels)"
    assert evaluation().take(np.arange(0)).to_text() == "No images.\n"


def test_a_notebook_shows_the_lowest_of_many_labels():
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 30)) < 0.4).astype("int8")
    names = tuple(f"label {k:02}" for k in range(30))
    one = LabelEvaluation(names, labels, rng.random((50, 30)), tuple(map(str, range(50))))
    shown = one._repr_html_()
    worst = sorted(one.by_label, key=lambda score: score.average_precision)
    assert "The 20 of 30 labels with the lowest average precision" in shown
    assert worst[0].name in shown and worst[-1].name not in shown


def test_a_table_has_a_row_per_image():
    pandas = pytest.importorskip("pandas")
    one = evaluation(20, groups=tuple("ab" * 10))
    table = one.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert [*table.columns] == ["name", "label", "predicted", "group", *NAMES]
    both = np.flatnonzero(one.labels[:, :2].all(axis=1))[0]
    assert table.label[both].startswith("person|dog")


def test_figures_are_drawn_and_need_images():
    one = evaluation()
    assert len({png_of(draw()) for draw in (one.plot_labels, one.plot_co_occurrence)}) == 2
    with pytest.raises(InputError, match="one image or more"):
        one.take(np.arange(0)).plot_labels()


def test_functions_for_single_labels_refuse_it():
    with pytest.raises(InputError, match="one label per image"):
        screening(evaluation(), positive="dog")
