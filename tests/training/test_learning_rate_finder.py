"""The learning rate rises until the loss diverges, and the model is restored."""

import numpy as np
import pytest
from helpers.networks import assert_bit_equal, make_tiny, snapshot

from transfer.cases.builders import large_similar, small_similar
from transfer.common.errors import InputError
from transfer.training.learning_rate_finder import LOWEST, RateCurve, find_learning_rate, moving_averages
from transfer.training.recipes import Recipe


def test_the_loss_falls_then_diverges_and_the_model_is_restored(colors):
    model = large_similar(make_tiny(), colors.num_classes, preprocessing="tf")
    before, rate = snapshot(model), float(model.optimizer.learning_rate)
    recipe = Recipe(ema=0.9, layer_decay=0.5)  # averages need a new optimizer
    curve = find_learning_rate(model, colors, steps=60, batch_size=16, recipe=recipe)
    assert_bit_equal(before, snapshot(model))
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    assert int(model.optimizer.iterations) == 0
    assert curve.rates[0] == LOWEST and list(curve.rates) == sorted(curve.rates)
    assert len(curve.rates) == len(curve.losses) == len(curve.averages) > 20
    assert 1e-6 <= curve.suggestion < 0.3
    assert np.isfinite(curve.losses).all()


def test_the_suggestion_is_ten_times_below_the_rate_of_the_smallest_loss():
    rates = tuple(10.0 ** np.arange(-5, 0))
    assert RateCurve(rates, (3, 2, 1, 2, 9), (3, 2, 1, 2, 9)).suggestion == pytest.approx(1e-4)


def test_the_moving_average_of_a_constant_is_the_constant():
    assert moving_averages([2.0] * 7) == pytest.approx([2.0] * 7)


def test_a_head_alone_and_too_few_steps_are_refused(colors):
    with pytest.raises(InputError, match="only the head is trainable"):
        find_learning_rate(small_similar(make_tiny(), colors.num_classes, preprocessing="tf"), colors)
    with pytest.raises(InputError, match="steps of 10"):
        find_learning_rate(
            large_similar(make_tiny(), colors.num_classes, preprocessing="tf"), colors, steps=3
        )


def test_the_plot_shows_the_suggestion():
    figure = RateCurve((1e-4, 1e-3, 1e-2), (1.0, 0.8, 2.0), (1.0, 0.9, 1.4)).plot()
    assert any("suggested: 1.0e-04" in text.get_text() for text in figure.axes[0].get_legend().get_texts())
