"""The report, the model card and the figure of the network say what the model of a run is, without contradictions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import build, unfreeze
from transfer.config import TrainConfig
from transfer.evaluation.evaluation import Evaluation
from transfer.results import evaluation_texts, model_card, run_pages
from transfer.results.run_figures import mistakes_title, network_blocks
from transfer.results.run_metrics import describe_training
from transfer.results.run_records import read_record

OLD_RUN = Path(__file__).parent / "run_of_0_1"


def metrics(case="small-similar", cuts=("top",), **more):
    return {"case": case, "cut": cuts[-1], "cuts": list(cuts), "init": "pretrained", **more}


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ({}, {}, "a new head on the frozen network, after top"),
        ({"cuts": ("a", "b", "c")}, {}, "a new head on 3 layers of the frozen network"),
        ({}, {"weights": "none"}, "a new head on a frozen network with random weights, after top"),
        (
            {},
            {"unfreeze_from": "block2"},
            "a new head after top; block2 and the layers after it are fine-tuned, the others frozen",
        ),
        ({"case": "large-similar"}, {}, "a new head after top, all layers trained from pre-trained weights"),
        (
            {"case": "large-different", "init": "random"},
            {},
            "a new head after top, all layers trained from random weights",
        ),
        (
            {"case": "large-similar"},
            {"weights": "none"},
            "a new head after top, all layers trained from random weights",
        ),
        (
            {"case": "large-similar", "rolled_back": True},
            {},
            "a new head on the frozen network (fine-tuning did not improve the validation accuracy and was undone)",
        ),
    ],
)
def test_the_description_names_the_frozen_the_trained_and_the_new_layers(values, options, expected):
    assert describe_training(metrics(**values), TrainConfig(**options)) == expected


def test_the_drawing_has_the_blocks_and_the_cuts_between_them():
    base = make_tiny()
    model = build("small-similar", base, 3, cut=["block1_add", "block3_branch"], preprocessing="tf")
    assert network_blocks(model)[:4] == [
        ("block1_add", "frozen"),
        ("block2_add", "frozen"),
        ("block3_branch", "frozen"),
        ("softmax", "new"),
    ]
    unfreeze(model, from_layer="block2_branch")
    assert [state for _, state in network_blocks(model)[:4]] == ["frozen", "trained", "trained", "new"]


def test_the_title_of_the_mistakes_says_how_many_are_left_out():
    assert "(12 of 27)" in mistakes_title(12, 27) and "(all 3)" in mistakes_title(3, 3)
    assert "sorted by the confidence in the wrong class" in mistakes_title(3, 3)


def evaluation(images, confidence=0.9, correct=0.6):
    rows = np.tile([confidence, 1 - confidence], (images, 1))
    labels = (np.arange(images) >= correct * images).astype(int)
    return Evaluation(("a", "b"), labels, rows, tuple(map(str, range(images))))


@pytest.mark.parametrize(
    ("images", "confidence", "calibrated", "says"),
    [
        (10, 0.75, False, "there are too few images to tell whether the model is overconfident."),
        (1000, 0.9, False, "above the accuracy (overconfident). Try --calibrate."),
        (1000, 0.9, True, "above the accuracy (overconfident)."),
        (1000, 0.62, False, "close to the accuracy."),
    ],
)
def test_the_verdict_claims_no_more_than_the_images_show(images, confidence, calibrated, says):
    assert evaluation_texts.verdict(evaluation(images, confidence), calibrated=calibrated).endswith(says)


def test_the_report_lists_the_options_that_apply_to_the_run():
    record = read_record(OLD_RUN)
    config = TrainConfig(case="small-similar", ema=0.9, seed=3)
    solved = replace(record, config=config, metrics={**metrics(), "regularization": 10.0})
    page = run_pages._options(solved)
    assert ("seed", 3) in page and ("ema", "0.9 (no effect)") in page and ("class_weights", False) in page
    useless = {"optimizer", "batch_size", "weight_decay", "epochs", "strict", "dropout", "label_smoothing"}
    assert not useless & dict(page).keys()
    tuned = replace(record, config=replace(config, case="large-similar"), metrics=metrics("large-similar"))
    assert {"optimizer", "batch_size", "weight_decay", "seed"} <= dict(run_pages._options(tuned)).keys()


def test_the_model_card_makes_no_promise_that_its_findings_contradict():
    record = read_record(OLD_RUN)
    promise = "No image is in two of these splits."
    assert promise in model_card.model_card(record)
    shared = replace(record.data, groups=9, shared_groups=("patient 3",))
    card = model_card.model_card(replace(record, data=shared))
    assert promise not in card and "1 of 9 groups in more than one" in card


@pytest.mark.parametrize(
    ("measured", "cut", "says"),
    [
        (0.8, None, "The measured test accuracy is 80.0%, in the estimated interval."),
        (0.5, None, "The measured test accuracy is 50.0%, outside the estimated interval."),
        (None, "block2_add", "This run has the cut block2_add, which you set as an option."),
        (None, "all", ""),
    ],
)
def test_the_report_compares_the_run_with_its_advice(measured, cut, says):
    record = replace(
        read_record(OLD_RUN),
        advice={"cut": "all"},
        config=TrainConfig(cut=cut),
        metrics={"test_accuracy": measured, "expected_interval": [0.7, 0.9] if measured else None},
    )
    assert run_pages._outcome(record) == says
