"""The accuracy of the best of several options is estimated without the luck of having been chosen."""

import numpy as np
import pytest

from transfer.common.accuracies import debiased_accuracy, errors_with_all, known_fractions, standard_error


def test_the_best_of_many_random_options_is_no_better_than_the_others():
    correct = np.random.default_rng(0).random((40, 200)) < 0.5
    assert correct.mean(axis=1).max() > 0.57
    assert debiased_accuracy(correct) == pytest.approx(0.5, abs=0.04)
    assert debiased_accuracy(correct, losses=-correct.astype(float)) == debiased_accuracy(correct)


def test_losses_choose_the_option_and_its_accuracy_is_returned():
    correct = np.array([[True] * 60 + [False] * 40, [True] * 80 + [False] * 20])
    losses = np.array([np.full(100, 0.1), np.full(100, 0.2)])
    assert debiased_accuracy(correct, losses=losses) == pytest.approx(0.6, abs=0.02)
    assert debiased_accuracy(correct[1:], losses=losses[1:]) == 0.8


def test_groups_are_the_independent_units():
    """Options that are right for whole groups by chance win only with halves that split groups."""
    right = np.random.default_rng(1).random((40, 20)) < 0.5
    correct, groups = right.repeat(10, axis=1), np.repeat(np.arange(20), 10)
    assert debiased_accuracy(correct) > 0.65
    assert debiased_accuracy(correct, groups=groups) < 0.6
    one = standard_error(right[0])
    assert standard_error(correct[0], groups) == pytest.approx(one)
    assert standard_error(correct[0]) < one / 2


def test_fractions_are_those_of_the_images_own_class():
    labels, folds = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 0, 1, 0])
    fractions = known_fractions(labels, folds)
    np.testing.assert_allclose(fractions, [2 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 0])
    assert errors_with_all(np.array([0.25, 0.25])) == pytest.approx(0.25**0.45)
    assert errors_with_all(np.zeros(0)) == 1
