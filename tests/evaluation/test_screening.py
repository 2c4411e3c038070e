"""Sensitivity and specificity by hand and against scikit-learn; coverage of the intervals; ties."""

import json
import sys

import numpy as np
import pytest
from sklearn import metrics

from transfer.common.errors import InputError
from transfer.evaluation.class_tree import merge
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.screening import Screening, screening
from transfer.evaluation.screening_plots import sensitivity_plot


def random_screening(count=200, *, seed=0, apart=1.0, digits=2, **options):
    """Return scores of two overlapping distributions, with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.4
    scores = 1 / (1 + np.exp(-rng.normal(apart * truth, 1)))
    return Screening(("ill",), truth, np.round(scores, digits), **options)


def by_hand():
    """Return positives at .9, .8, .5, .3 and negatives at .8, .4, .3, .2, .1: two ties."""
    scores = np.array([0.9, 0.8, 0.5, 0.3, 0.8, 0.4, 0.3, 0.2, 0.1])
    return Screening(("ill",), np.arange(9) < 4, scores)


def test_the_curve_has_one_point_per_threshold_also_with_ties():
    result = by_hand()
    assert result.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert result.sensitivity.tolist() == [0, 0.25, 0.5, 0.75, 0.75, 1, 1, 1]
    assert result.specificity.tolist() == [1, 1, 0.8, 0.8, 0.6, 0.4, 0.2, 0]
    # Pairs in order: .9 beats 5; .8 beats 4 and ties 1; .5 beats 4; .3 beats 2 and ties 1. Of 20.
    assert result.auc == pytest.approx((5 + 4.5 + 4 + 2.5) / 20)


def test_operating_points_are_not_interpolated():
    result = by_hand()
    point = result.sensitivity_at(0.8)
    assert (point.threshold, point.sensitivity, point.specificity) == (0.5, 0.75, 0.8)
    assert result.sensitivity_at(0.81)[:3] == (0.9, 0.25, 1.0)
    assert result.sensitivity_at(0)[:3] == (0.3, 1.0, 0.4)  # the highest threshold with full sensitivity
    assert result.sensitivity_at(1)[:3] == (0.9, 0.25, 1.0)
    assert result.specificity_at(0.75)[:3] == (0.5, 0.75, 0.8)
    assert result.specificity_at(0.76)[:3] == (0.3, 1.0, 0.4)
    assert result.specificity_at(0)[:3] == (0.9, 0.25, 1.0)
    assert result.at(0.8)[:3] == (0.8, 0.5, 0.8) and result.at(0.81)[:3] == (0.81, 0.25, 1.0)


def test_full_specificity_has_no_sensitivity_if_the_highest_score_is_negative():
    result = Screening(("ill",), np.array([False, True, True]), np.array([0.9, 0.8, 0.7]))
    point = result.sensitivity_at(1.0)
    assert point.threshold == np.inf and point.sensitivity == 0 and point.specificity == 1
    assert point.sensitivity_interval[0] == 0 and point.sensitivity_interval[1] > 0.7
    assert json.loads(json.dumps(result.to_dict(specificity=1.0)))["sensitivity_at"]["threshold"] is None


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_equals_scikit_learn(seed):
    result = random_screening(seed=seed)
    false, true, thresholds = metrics.roc_curve(result.truth, result.scores, drop_intermediate=False)
    np.testing.assert_array_equal(result.thresholds, thresholds)
    np.testing.assert_allclose(result.sensitivity, true)
    np.testing.assert_allclose(result.specificity, 1 - false)
    for minimum in (0.5, 0.9, 0.95):
        assert result.sensitivity_at(minimum).sensitivity == true[1 - false >= minimum - 1e-12].max()
        assert result.specificity_at(minimum).specificity == pytest.approx((1 - false)[true >= minimum].max())


def test_resampled_areas_equal_weighted_areas_of_scikit_learn():
    result = random_screening(60, groups=[f"p{i % 20}" for i in range(60)])
    rng, units = np.random.default_rng(0), result._units
    for (true_positives, false_positives), _ in zip(result._resampled_counts(), range(20), strict=False):
        weights = np.bincount(rng.integers(0, 20, 20), minlength=20)[units]
        expected = metrics.roc_auc_score(result.truth, result.scores, sample_weight=weights)
        area = np.sum(np.diff(false_positives) * (true_positives[1:] + true_positives[:-1]))
        area /= 2 * true_positives[-1] * false_positives[-1]
        assert area == pytest.approx(expected)


def test_intervals_have_their_nominal_coverage(monkeypatch):
    """Expect about 95 of 100; fewer than 88 have a probability below 1%."""
    monkeypatch.setattr(sys.modules["transfer.evaluation.screening"], "RESAMPLES", 400)
    whole = random_screening(20_000, seed=99, digits=4)
    expected = (whole.auc, whole.sensitivity_at(0.8).sensitivity)
    covered = np.zeros(2, int)
    for seed in range(100):
        result = random_screening(150, seed=seed, digits=4)
        ends = (result.auc_interval, result.sensitivity_at(0.8).sensitivity_interval)
        covered += [low <= one <= high for one, (low, high) in zip(expected, ends, strict=True)]
    assert (covered >= 88).all()


def test_groups_widen_the_intervals():
    one = random_screening(100)
    copied = Screening(
        ("ill",), np.tile(one.truth, 4), np.tile(one.scores, 4), [f"p{i}" for i in range(100)] * 4
    )
    alone = Screening(("ill",), copied.truth, copied.scores)
    assert copied.auc == one.auc
    assert copied.auc_interval == pytest.approx(one.auc_interval, abs=0.01)
    width = np.diff(copied.auc_interval)[0]
    assert width == pytest.approx(2 * np.diff(alone.auc_interval)[0], rel=0.15)


def test_a_perfect_order_gives_the_exact_interval():
    result = Screening(("ill",), np.arange(30) < 10, np.linspace(1, 0, 30))
    assert result.auc == 1 and result.auc_interval[1] == 1
    assert result.auc_interval[0] == pytest.approx(0.025**0.1)  # Clopper and Pearson, ten pairs
    assert result.sensitivity_at(0.9).sensitivity_interval[0] == pytest.approx(0.025**0.1)
    few = Screening(("ill",), result.truth, result.scores, ["p"] * 10 + ["q"] * 10 + ["r"] * 10)
    assert few.auc_interval[0] == pytest.approx(0.025)


def evaluation():
    probabilities = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.4, 0.3, 0.3]])
    return Evaluation(("a", "b", "c"), np.array([0, 1, 2, 2]), probabilities, tuple("1234"), tuple("ppqq"))


def test_several_positive_classes_are_summed_as_in_merge():
    together = screening(evaluation(), positive=["a", "b"])
    merged = screening(merge(evaluation(), {"a": "ill", "b": "ill", "c": "c"}), positive="ill")
    np.testing.assert_array_equal(together.truth, merged.truth)
    np.testing.assert_allclose(together.scores, [0.7, 0.7, 0.3, 0.7])
    np.testing.assert_allclose(together.scores, merged.scores)
    assert together.groups == tuple("ppqq")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive": "aa"}, "Unknown class 'aa'"),
        ({"positive": ["a", "b", "c"]}, "and 0 others"),
        ({"positive": []}, "0 of no class"),
        ({"positive": "a", "confidence": 1}, "confidence between"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        screening(evaluation(), **options)


def test_fractions_out_of_range_are_rejected():
    for ask in (by_hand().sensitivity_at, by_hand().specificity_at):
        with pytest.raises(InputError, match="from 0 to 1"):
            ask(90)


def test_metrics_as_text_and_as_json():
    result = random_screening(groups=[f"p{i // 4}" for i in range(200)])
    text, values = result.to_text(), json.loads(json.dumps(result.to_dict()))
    assert "in 50 groups" in text and f"{result.auc:.3f}" in text and text.count("\n") == 4
    assert values["num_positive"] + values["num_negative"] == 200 and values["num_groups"] == 50
    assert values["sensitivity_at"]["specificity"] >= 0.9
    assert values == json.loads(json.dumps(random_screening(groups=result.groups).to_dict())), (
        "repeats with the same seed"
    )


def test_the_plot_shows_the_curve_the_operating_point_and_the_references():
    result = random_screening()
    references = [("reader $1$", 0.6, 0.7), ("reader 2", 0.5, 0.9)]
    figure = sensitivity_plot(result, references=references)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), result.sensitivity)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), result.specificity)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[2:] == ["reader $1$", "reader 2"] and "sensitivity" in labels[1]
    assert len(sensitivity_plot(result, specificity=None).axes[0].lines) == 1
    figure.savefig("/dev/null", format="png")
    for wrong in [("a", 60, 70), ("a", 0.5), "abc"]:
        with pytest.raises(InputError, match="references of a name"):
            sensitivity_plot(result, references=[wrong])
