"""Sensitivity and specificity by hand and against scikit-learn; intervals that hold; ties and thresholds exact."""

import json
import sys

import numpy as np
import pytest
from sklearn import metrics

from transfer.common.errors import InputError
from transfer.evaluation.class_tree import merge
from transfer.evaluation.evaluate import Evaluation
from transfer.evaluation.screening import Screening, screening
from transfer.evaluation.screening_plots import sensitivity_plot


def drawn(count=200, *, seed=0, apart=1.0, digits=2, **options):
    """Scores of two overlapping heaps, with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.4
    scores = 1 / (1 + np.exp(-rng.normal(apart * truth, 1)))
    return Screening(("ill",), truth, np.round(scores, digits), **options)


def by_hand():
    """Positive at .9, .8, .5 and .3; negative at .8, .4, .3, .2 and .1: two ties."""
    scores = np.array([0.9, 0.8, 0.5, 0.3, 0.8, 0.4, 0.3, 0.2, 0.1])
    return Screening(("ill",), np.arange(9) < 4, scores)


def test_the_curve_has_a_point_for_each_threshold_and_ties_move_together():
    found = by_hand()
    assert found.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert found.sensitivity.tolist() == [0, 0.25, 0.5, 0.75, 0.75, 1, 1, 1]
    assert found.specificity.tolist() == [1, 1, 0.8, 0.8, 0.6, 0.4, 0.2, 0]
    # Pairs in order: .9 beats 5; .8 beats 4 and ties 1; .5 beats 4; .3 beats 2 and ties 1. Of 20.
    assert found.auc == pytest.approx((5 + 4.5 + 4 + 2.5) / 20)


def test_points_are_those_of_thresholds_and_none_between():
    found = by_hand()
    point = found.sensitivity_at(0.8)
    assert (point.threshold, point.sensitivity, point.specificity) == (0.5, 0.75, 0.8)
    assert found.sensitivity_at(0.81)[:3] == (0.9, 0.25, 1.0)
    assert found.sensitivity_at(0)[:3] == (0.3, 1.0, 0.4)  # the highest threshold that finds all
    assert found.sensitivity_at(1)[:3] == (0.9, 0.25, 1.0)
    assert found.specificity_at(0.75)[:3] == (0.5, 0.75, 0.8)
    assert found.specificity_at(0.76)[:3] == (0.3, 1.0, 0.4)
    assert found.specificity_at(0)[:3] == (0.9, 0.25, 1.0)
    assert found.at(0.8)[:3] == (0.8, 0.5, 0.8) and found.at(0.81)[:3] == (0.81, 0.25, 1.0)


def test_where_the_surest_image_is_negative_no_sensitivity_is_left_at_full_specificity():
    found = Screening(("ill",), np.array([False, True, True]), np.array([0.9, 0.8, 0.7]))
    point = found.sensitivity_at(1.0)
    assert point.threshold == np.inf and point.sensitivity == 0 and point.specificity == 1
    assert point.sensitivity_interval[0] == 0 and point.sensitivity_interval[1] > 0.7
    assert json.loads(json.dumps(found.to_dict(specificity=1.0)))["sensitivity_at"]["threshold"] is None


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_curve_of_scikit_learn(seed):
    found = drawn(seed=seed)
    false, true, thresholds = metrics.roc_curve(found.truth, found.scores, drop_intermediate=False)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    np.testing.assert_allclose(found.sensitivity, true)
    np.testing.assert_allclose(found.specificity, 1 - false)
    for asked in (0.5, 0.9, 0.95):
        assert found.sensitivity_at(asked).sensitivity == true[1 - false >= asked - 1e-12].max()
        assert found.specificity_at(asked).specificity == pytest.approx((1 - false)[true >= asked].max())


def test_each_draw_of_the_bootstrap_has_the_area_that_scikit_learn_gives_its_weights():
    found = drawn(60, groups=[f"p{i % 20}" for i in range(60)])
    rng, units = np.random.default_rng(0), found._units
    for (called, wrongly), _ in zip(found._draws(), range(20), strict=False):
        weights = np.bincount(rng.integers(0, 20, 20), minlength=20)[units]
        wanted = metrics.roc_auc_score(found.truth, found.scores, sample_weight=weights)
        area = np.sum(np.diff(wrongly) * (called[1:] + called[:-1])) / (2 * called[-1] * wrongly[-1])
        assert area == pytest.approx(wanted)


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """Of 100 samples, some 95: fewer than 88 would be less than one in a hundred."""
    monkeypatch.setattr(sys.modules["transfer.evaluation.screening"], "RESAMPLES", 400)
    whole = drawn(20_000, seed=99, digits=4)
    wanted = (whole.auc, whole.sensitivity_at(0.8).sensitivity)
    held = np.zeros(2, int)
    for seed in range(100):
        found = drawn(150, seed=seed, digits=4)
        ends = (found.auc_interval, found.sensitivity_at(0.8).sensitivity_interval)
        held += [low <= one <= high for one, (low, high) in zip(wanted, ends, strict=True)]
    assert (held >= 88).all()


def test_images_of_one_patient_are_no_new_evidence():
    one = drawn(100)
    copied = Screening(
        ("ill",), np.tile(one.truth, 4), np.tile(one.scores, 4), [f"p{i}" for i in range(100)] * 4
    )
    alone = Screening(("ill",), copied.truth, copied.scores)
    assert copied.auc == one.auc
    assert copied.auc_interval == pytest.approx(one.auc_interval, abs=0.01)
    width = np.diff(copied.auc_interval)[0]
    assert width == pytest.approx(2 * np.diff(alone.auc_interval)[0], rel=0.15)


def test_perfect_order_is_not_taken_for_certainty():
    found = Screening(("ill",), np.arange(30) < 10, np.linspace(1, 0, 30))
    assert found.auc == 1 and found.auc_interval[1] == 1
    assert found.auc_interval[0] == pytest.approx(0.025**0.1)  # Clopper and Pearson, ten pairs
    assert found.sensitivity_at(0.9).sensitivity_interval[0] == pytest.approx(0.025**0.1)
    few = Screening(("ill",), found.truth, found.scores, ["p"] * 10 + ["q"] * 10 + ["r"] * 10)
    assert few.auc_interval[0] == pytest.approx(0.025)


def evaluation():
    probabilities = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.4, 0.3, 0.3]])
    return Evaluation(("a", "b", "c"), np.array([0, 1, 2, 2]), probabilities, tuple("1234"), tuple("ppqq"))


def test_several_classes_are_their_sum_as_in_a_merged_tree():
    together = screening(evaluation(), positive=["a", "b"])
    merged = screening(merge(evaluation(), {"a": "ill", "b": "ill", "c": "c"}), positive="ill")
    np.testing.assert_array_equal(together.truth, merged.truth)
    np.testing.assert_allclose(together.scores, [0.7, 0.7, 0.3, 0.7])
    np.testing.assert_allclose(together.scores, merged.scores)
    assert together.groups == tuple("ppqq")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"positive": "aa"}, "Unknown class 'aa'"),
        ({"positive": ["a", "b", "c"]}, "and 0 others"),
        ({"positive": []}, "0 of no class"),
        ({"positive": "a", "confidence": 1}, "confidence between"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        screening(evaluation(), **options)


def test_shares_out_of_range_are_refused():
    for ask in (by_hand().sensitivity_at, by_hand().specificity_at):
        with pytest.raises(InputError, match="from 0 to 1"):
            ask(90)


def test_it_is_said_in_words_and_in_json():
    found = drawn(groups=[f"p{i // 4}" for i in range(200)])
    text, figures = found.to_text(), json.loads(json.dumps(found.to_dict()))
    assert "in 50 groups" in text and f"{found.auc:.3f}" in text and text.count("\n") == 4
    assert figures["num_positive"] + figures["num_negative"] == 200 and figures["num_groups"] == 50
    assert figures["sensitivity_at"]["specificity"] >= 0.9
    assert figures == json.loads(json.dumps(drawn(groups=found.groups).to_dict())), "the same draws again"


def test_the_plot_has_the_curve_the_mark_and_the_references():
    found = drawn()
    references = [("reader $1$", 0.6, 0.7), ("reader 2", 0.5, 0.9)]
    figure = sensitivity_plot(found, references=references)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), found.sensitivity)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.specificity)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[2:] == ["reader $1$", "reader 2"] and "sensitivity" in labels[1]
    assert len(sensitivity_plot(found, specificity=None).axes[0].lines) == 1
    figure.savefig("/dev/null", format="png")
    for wrong in [("a", 60, 70), ("a", 0.5), "abc"]:
        with pytest.raises(InputError, match="references of a name"):
            sensitivity_plot(found, references=[wrong])
