"""The evaluation of predicted numbers, and their intervals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from transfer.common.errors import InputError
from transfer.common.figures import png_of
from transfer.evaluation.prediction_intervals import describe_intervals, measure_intervals
from transfer.evaluation.value_evaluation import ValueEvaluation


def evaluation(
    count: int = 200, *, offset: float = 0, noise: float = 2, seed: int = 0, **options
) -> ValueEvaluation:
    """Random numbers, and predictions with an error."""
    rng = np.random.default_rng(seed)
    values = offset + rng.normal(0, 5, count)
    names = tuple(f"{i}.png" for i in range(count))
    return ValueEvaluation(("age",), values, values + rng.normal(0, noise, count), names, **options)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_metrics_are_those_of_scikit_learn(offset):
    one = evaluation(offset=offset)
    pair = one.labels, one.predictions
    assert one.r2 == pytest.approx(metrics.r2_score(*pair))
    assert one.mean_absolute_error == pytest.approx(metrics.mean_absolute_error(*pair))
    assert one.median_absolute_error == pytest.approx(metrics.median_absolute_error(*pair))
    assert one.root_mean_squared_error == pytest.approx(metrics.root_mean_squared_error(*pair))


def test_the_interval_is_that_of_resampled_images():
    one, rng = evaluation(150), np.random.default_rng(5)
    scores = [one.take(rng.integers(0, 150, 150)).r2 for _ in range(1000)]
    assert one.interval == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.01)


def test_constant_numbers_have_no_r2():
    one = replace(evaluation(5), labels=np.full(5, 3.0))
    assert np.isnan(one.r2)
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["r2"] is None
    assert one.mean_absolute_error > 0


def test_texts_and_mistakes():
    one = evaluation(interval_width=6.5)
    text = one.to_text()
    assert f"R2: {one.r2:.3f} on 200 held-out images" in text
    assert "90% intervals of predictions are 6.5 wide" in text and "True age: mean" in text
    assert one.headline.startswith(f"R2: {one.r2:.3f}, mean absolute error: ")
    errors = np.abs(one.errors)[one.mistakes]
    assert (np.diff(errors) <= 0).all() and errors[0] == np.abs(one.errors).max()
    assert repr(one.take(np.arange(0))) == "ValueEvaluation(no images)"
    assert "Warning: 2 of these images" in replace(one, seen=2).to_text()
    assert "R2" in one._repr_html_()


def test_a_table_has_a_row_per_image():
    pytest.importorskip("pandas")
    table = evaluation(5, groups=tuple("abcde")).to_dataframe()
    assert [*table.columns] == ["name", "label", "predicted", "group"] and table.predicted.dtype == "float64"


def test_the_figure_has_a_band_of_the_intervals_width():
    with_band, without = (evaluation(interval_width=width).plot_values() for width in (20.0, None))
    band = next(iter(with_band.axes[0].collections)).get_paths()[0].vertices
    at_left = band[band[:, 0] == band[:, 0].min()][:, 1]
    assert np.ptp(at_left) == pytest.approx(20)
    assert png_of(with_band) != png_of(without)
    with pytest.raises(InputError, match="one image or more"):
        evaluation().take(np.arange(0)).plot_values()


def test_intervals_have_the_stated_coverage_on_new_images():
    measured = []
    for seed in range(40):
        known, new = evaluation(100, seed=seed), evaluation(400, seed=1000 + seed)
        scores = np.sort(np.abs(known.errors))
        values = measure_intervals(scores, new.predictions, new.labels, coverage=0.8)
        measured.append(values["measured"])
    assert np.mean(measured) == pytest.approx(0.8, abs=0.02)
    assert values["width"] == pytest.approx(2 * scores[80])
    assert "nominal coverage of 80%" in describe_intervals(values)


def test_intervals_need_enough_validation_images():
    with pytest.raises(InputError, match="19 validation images or more"):
        measure_intervals(np.arange(5.0), np.zeros(3), np.zeros(3), coverage=0.95)
