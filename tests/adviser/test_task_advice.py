"""Advice for several labels and for numbers."""

import json

import numpy as np
import pytest
from helpers.tasks import task_data

import transfer
from transfer.adviser.cross_validation import cross_validate
from transfer.adviser.task_advice import TaskAdvice
from transfer.cases.cuts import ALL_LAYERS, cuts_of
from transfer.common.errors import InputError
from transfer.common.tasks import TASK
from transfer.networks.graphs import analyze

TASKS = ("multi", "regression")


@pytest.fixture(scope="module")
def base():
    return transfer.DemoCNN()


@pytest.fixture(scope="module")
def advice(base):
    return {task: transfer.advise(task_data(task), base, trial=False) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_the_advice_is_the_head_with_the_lowest_out_of_fold_loss(task, advice, base):
    found = advice[task]
    assert isinstance(found, TaskAdvice) and found.task == task
    heads = found.heads
    assert heads.best.loss == min(one.loss for one in heads.candidates) and heads.best.score > 0.5
    assert set(found.cut.split(",")) <= set(cuts_of(analyze(base), ALL_LAYERS))
    assert found.case in ("small-similar", "small-different") and found.fine_tuning_case.startswith("large")
    assert 0 <= heads.best.standard_error <= max(one.standard_error for one in heads.candidates) < 0.5


@pytest.mark.parametrize("task", TASKS)
def test_texts_and_json_hold_the_same_numbers(task, advice):
    found = advice[task]
    text, values = found.to_text(), json.loads(found.to_json())
    name = TASK[task].metric_name
    assert f"{name} {found.heads.best.score:.3f}" in found.reason and found.reason in text
    assert values["expected_score"] == found.heads.best.score and values["cut"] == found.cut
    assert [row["name"] for row in values["heads"]] == [one.name for one in found.heads.candidates]
    assert found.heads.best.name in repr(found) and found.heads.best.name in found._repr_html_()
    bars = found.plot().axes[0].patches
    assert [bar.get_width() for bar in bars] == [one.score for one in found.heads.candidates]


def test_a_trial_times_fine_tuning(base):
    found = transfer.advise(task_data("multi"), base)
    assert found.trial is not None and found.seconds_fine_tuning > found.trial.seconds_per_step
    assert "at least" not in found.reason


def test_the_advice_is_repeatable(advice, base):
    again = transfer.advise(task_data("regression"), base, trial=False)
    assert again.heads.best.score == advice["regression"].heads.best.score
    np.testing.assert_array_equal(again.heads.best.predictions, advice["regression"].heads.best.predictions)


@pytest.mark.parametrize("task", TASKS)
def test_functions_for_one_class_per_image_refuse_others(task, base):
    with pytest.raises(InputError, match=f"one class per image in compare.*the task {task}"):
        transfer.compare(task_data(task), ["DemoCNN"])
    with pytest.raises(InputError, match=f"one class per image in cross_validate.*the task {task}"):
        cross_validate(task_data(task), base)
