"""The learning rate rises until the loss is lost, and everything is as it was."""

import numpy as np
import pytest
from helpers.networks import assert_bit_equal, make_tiny, snapshot

from transfer.cases.builders import large_similar, small_similar
from transfer.common.errors import InputError
from transfer.training.learning_rate_finder import LOWEST, RateCurve, find_learning_rate, smoothed
from transfer.training.recipes import Recipe


def test_the_loss_falls_then_is_lost_and_the_model_is_as_before(colors):
    model = large_similar(make_tiny(), colors.num_classes, preprocessing="tf")
    before, rate = snapshot(model), float(model.optimizer.learning_rate)
    recipe = Recipe(ema=0.9, layer_decay=0.5)  # averages want an optimizer that is new
    curve = find_learning_rate(model, colors, steps=60, batch_size=16, recipe=recipe)
    assert_bit_equal(before, snapshot(model))
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    assert int(model.optimizer.iterations) == 0
    assert curve.rates[0] == LOWEST and list(curve.rates) == sorted(curve.rates)
    assert len(curve.rates) == len(curve.losses) == len(curve.smooth) > 20
    assert 1e-6 <= curve.suggestion < 0.3
    assert np.isfinite(curve.losses).all()


def test_the_suggestion_is_well_below_where_the_loss_is_least():
    rates = tuple(10.0 ** np.arange(-5, 0))
    assert RateCurve(rates, (3, 2, 1, 2, 9), (3, 2, 1, 2, 9)).suggestion == pytest.approx(1e-4)


def test_averages_of_a_constant_are_that_constant():
    assert smoothed([2.0] * 7) == pytest.approx([2.0] * 7)


def test_what_needs_no_rate_is_refused(colors):
    with pytest.raises(InputError, match="Only the head"):
        find_learning_rate(small_similar(make_tiny(), colors.num_classes, preprocessing="tf"), colors)
    with pytest.raises(InputError, match="steps of 10"):
        find_learning_rate(
            large_similar(make_tiny(), colors.num_classes, preprocessing="tf"), colors, steps=3
        )


def test_the_plot_shows_the_suggestion():
    figure = RateCurve((1e-4, 1e-3, 1e-2), (1.0, 0.8, 2.0), (1.0, 0.9, 1.4)).plot()
    assert any("suggested: 1.0e-04" in text.get_text() for text in figure.axes[0].get_legend().get_texts())
