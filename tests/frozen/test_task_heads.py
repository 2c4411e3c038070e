"""The choice of layers for several labels and for numbers, with scores and their standard errors."""

import numpy as np
import pytest

from transfer.common.bootstrap import score_error
from transfer.common.errors import InputError
from transfer.common.label_metrics import mean_average_precision, r2
from transfer.frozen.task_heads import choose_task_head, of_task


def problem(task, count=200, seed=0):
    """Two layers, of which the second knows the labels."""
    draw = np.random.default_rng(seed)
    taps = {name: draw.normal(size=(count, 12)).astype("float32") for name in ("early", "late")}
    scores = 2 * taps["late"] @ draw.normal(size=(12, 3)) + draw.normal(size=(count, 3))
    return taps, (scores > 1).astype("int8") if task == "multi" else 100 * scores[:, 0] + 7


CANDIDATES = {"first": ("early",), "last": ("late",), "both": ("early", "late")}


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_the_layer_that_knows_the_labels_is_chosen(task):
    taps, labels = problem(task)
    choice = choose_task_head(taps, labels, task, candidates=CANDIDATES)
    first, last, both = choice.candidates
    assert choice.best is min((last, both), key=lambda one: one.loss) and first.loss > choice.best.loss
    score = mean_average_precision if task == "multi" else r2
    for one in choice.candidates:
        assert one.score == score(one.predictions, labels)
        assert len(one.predictions) == len(labels) and 0 < one.standard_error < 0.2
    assert last.score > 0.8 > first.score
    width = {"first": 12, "last": 12, "both": 24}[choice.best.name]
    assert choice.solved.kernel.shape == (width, 3 if task == "multi" else 1)


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_the_standard_error_is_that_of_many_samples(task):
    draw, scores, errors = np.random.default_rng(1), [], []
    for _ in range(60):
        truth = draw.normal(size=(150, 2)) + draw.normal(size=(150, 2))
        labels = (truth > 0.5).astype("int8") if task == "multi" else truth[:, 0]
        predicted = truth + draw.normal(size=(150, 2))
        predicted = predicted if task == "multi" else predicted[:, 0]
        scores.append((mean_average_precision if task == "multi" else r2)(predicted, labels))
        errors.append(score_error(of_task(task, predicted, labels), len(labels)))
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.35)


def test_images_of_a_group_count_as_one():
    draw = np.random.default_rng(0)
    values, predicted = draw.normal(size=50), draw.normal(size=50)
    four = np.repeat(predicted, 4), np.repeat(values, 4)
    once = score_error(of_task("regression", predicted, values), 50)
    again = score_error(of_task("regression", *four), 200, groups=np.repeat(np.arange(50), 4))
    assert again == pytest.approx(once, rel=1e-6)
    assert score_error(of_task("regression", *four), 200) < 0.7 * once


def test_unknown_layers_and_other_tasks_are_refused():
    taps, labels = problem("multi")
    with pytest.raises(InputError, match="layer of a candidate"):
        choose_task_head(taps, labels, "multi", candidates={"x": ("middle",)})
    with pytest.raises(InputError, match="Use choose_head"):
        choose_task_head(taps, labels, "single")
