"""Metrics of an evaluation against values computed by hand."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import small_similar
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import calibrate, evaluate
from transfer.evaluation.evaluation import Evaluation
from transfer.images.datasets import load_data
from transfer.training.fit import fit


def four_images():
    probabilities = np.array([[0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [0.5, 0.5, 0.0], [0.1, 0.7, 0.2]])
    return Evaluation(("a", "b", "c"), np.array([0, 1, 1, 2]), probabilities, ("1", "2", "3", "4"))


def test_metrics_of_four_images():
    evaluation = four_images()
    assert evaluation.predictions.tolist() == [0, 1, 0, 1]
    assert evaluation.accuracy == 0.5
    assert evaluation.loss == pytest.approx(-np.mean(np.log([0.8, 0.6, 0.5, 0.2])))
    assert evaluation.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_a_class_without_test_images_keeps_its_row():
    evaluation = Evaluation(("a", "b", "c"), np.array([0, 1]), np.eye(3)[[0, 1]], ("1", "2"))
    assert (
        evaluation.confusion.shape == (3, 3) and evaluation.accuracy == 1.0 and np.isfinite(evaluation.loss)
    )


def test_evaluate_agrees_with_keras(color_folder):
    data = load_data(color_folder)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    images = np.stack([data.test.image(i, (32, 32)) for i in range(len(data.test))])
    loss, accuracy = model.evaluate(images, data.test.labels, verbose=0)
    evaluation = evaluate(model, data)
    assert evaluation.accuracy == pytest.approx(accuracy) and evaluation.loss == pytest.approx(loss, rel=1e-4)
    assert evaluation.names == tuple(data.test.names)


def test_unknown_or_empty_splits_and_models_with_other_classes_are_rejected(color_folder):
    data = load_data(color_folder, val=0.0)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    for split in ("val", "class_names", "nothing"):
        with pytest.raises(InputError, match="train, val or test"):
            evaluate(model, data, split=split)
    with pytest.raises(InputError, match="classes"):
        evaluate(
            keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]), data
        )


def test_top_k_and_class_scores_of_four_images():
    evaluation = four_images()
    assert [evaluation.top_k(k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]
    assert evaluation.by_class[1].recall == 0.5 and evaluation.by_class[1].precision == 0.5
    assert evaluation.macro.recall == pytest.approx((1 + 0.5 + 0) / 3)
    assert [(c.label, c.predicted) for c in evaluation.confused] == [("b", "a"), ("c", "b")]
    low, high = evaluation.interval
    assert 0 <= low < 0.5 < high <= 1


def test_mistakes_are_sorted_by_the_confidence_in_the_wrong_class():
    rows = np.array(
        [[0.41, 0.29, 0.30], [0.9, 0.05, 0.05], [0.81, 0.19, 0], [0.3, 0.1, 0.6], [0.3, 0.6, 0.1]]
    )
    evaluation = Evaluation(("a", "b", "c"), np.array([2, 0, 1, 0, 0]), rows, tuple("uvwxy"))
    assert evaluation.mistakes.tolist() == [2, 3, 4, 0]  # 81%, twice 60% in the order of the images, 41%


def test_metrics_as_text_and_as_json():
    evaluation = four_images()
    text = evaluation.to_text()
    assert "Accuracy: 50.0% on 4 held-out images" in text and "b predicted as a: 1 (50%)" in text
    values = json.loads(json.dumps(evaluation.to_dict()))
    assert values["accuracy"] == 0.5 and values["top_k"] == {"1": 0.5, "2": 1.0, "3": 1.0}
    assert values["classes"][2] == {"name": "c", "precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 1}


def test_groups_are_taken_from_the_data(tmp_path, color_folder):
    rows = ["path,label,group"]
    for i, file in enumerate(sorted(color_folder.rglob("*.png"))):
        rows.append(f"{file},{file.parent.name},{i // 3}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    data = load_data(tmp_path / "list.csv")
    evaluation = evaluate(small_similar(make_tiny(), 3, preprocessing="tf"), data)
    assert len(set(evaluation.groups)) < len(evaluation.labels)
    assert " groups (95% interval" in evaluation.to_text()


def with_wrong_labels(part, seed):
    wrong = np.random.default_rng(seed).random(len(part)) < 0.25
    return replace(part, labels=np.where(wrong, (part.labels + 1) % 3, part.labels))


def test_calibration_keeps_predictions_and_lowers_the_log_loss(color_folder):
    data = load_data(color_folder, val=0.4, test=0.4)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    fit(model, data, verbose=0)
    data = replace(data, val=with_wrong_labels(data.val, 0), test=with_wrong_labels(data.test, 1))
    before, sure = evaluate(model, data), evaluate(model, data, split="val")
    temperature = calibrate(model, data)
    after = evaluate(model, data)
    assert temperature > 1.5  # a quarter of the labels is wrong, so the model is overconfident
    assert after.predictions.tolist() == before.predictions.tolist()
    assert evaluate(model, data, split="val").loss < sure.loss and after.loss < before.loss
    assert calibrate(model, data) == pytest.approx(1, abs=0.02)


def test_calibration_needs_a_softmax_and_enough_images(color_folder):
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    with pytest.raises(InputError, match="30 validation images"):
        calibrate(model, load_data(color_folder, val=5))
    plain = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(InputError, match="ends in a Dense layer and a softmax"):
        calibrate(plain, load_data(color_folder, val=0.4))
