"""The plan of an anytime run, the remembered speeds, and the decision to keep a step."""

from dataclasses import replace

import numpy as np
import pytest

from transfer.adviser.estimates import Gain
from transfer.anytime.clock import Clock
from transfer.anytime.decisions import posterior_gain, typical_gain
from transfer.anytime.plan import (
    FINE_TUNING_STEPS,
    Kind,
    Planner,
    Situation,
    Step,
    larger_size,
    training_sizes,
)
from transfer.anytime.records import History, StepRecord, budget_text, describe_budget
from transfer.anytime.speeds import Speeds

NOW = Situation(num_train=320, num_chosen=360, num_test=100, network="Lite", image_size=224, own_size=224)
RECORD = StepRecord(
    kind=Kind.HEAD, network="Lite", image_size=224, title="Head on the last 6 blocks, 224 px",
    case="small-similar", seconds=9.2, nominal=12.0, accuracy=0.78, sd=0.02, interval=(0.742, 0.818),
    kept=True, basis="out-of-fold, 360 images",
)  # fmt: skip


@pytest.fixture
def planner(tmp_path):
    """A planner on a machine of known speed."""
    speeds = Speeds(tmp_path, "test machine")
    speeds.measured(0.01, "forward", "Lite", 224)
    speeds.measured(0.04, "training", "Lite", 224)
    return Planner(speeds)


def trained(kind, epochs, size):
    """A fine-tuning that was taken."""
    return Step(kind, "Lite", 224, 0.0, training_size=size, epochs=epochs)


def test_sizes_are_multiples_of_sixteen_pixels():
    assert larger_size(224) == 288 and larger_size(64) == 80
    assert training_sizes(224) == [224, 160, 128] and training_sizes(32) == [32]


def test_steps_come_in_a_fixed_order_and_each_once(planner):
    now = replace(NOW, networks=(("Lite1", 240),), average=True)
    assert planner.next_step(now, 1e6).kind is Kind.LARGER
    now = replace(now, taken=(Step(Kind.LARGER, "Lite", 288, 0),))
    step = planner.next_step(now, 1e6)
    assert (step.network, step.image_size) == ("Lite1", 240)
    larger = planner.next_step(replace(now, image_size=288), 1e6)
    assert larger.image_size == 304  # as much larger as the images of the head that is best so far
    now = replace(now, taken=(*now.taken, Step(Kind.NETWORK, "Lite1", 304, 0)))
    step = planner.next_step(now, 1e6)
    assert (step.kind, step.training_size, step.epochs) == (Kind.FINE_TUNING, 224, FINE_TUNING_STEPS // 10)
    now = replace(now, taken=(*now.taken, step), fine_tuned=True)
    assert planner.next_step(now, 1e6).kind is Kind.LONGER
    assert planner.next_step(now, 20).kind is Kind.AVERAGE
    assert planner.next_step(replace(now, average=False), 10) is None


def test_a_short_budget_plans_smaller_images_and_fewer_steps_or_nothing(planner):
    now = replace(NOW, free_size=False)
    full, smaller, shorter = (planner.next_step(now, seconds) for seconds in (1e6, 100, 50))
    assert full.training_size == 224 and smaller.training_size < 224
    assert smaller.epochs == full.epochs > shorter.epochs
    assert shorter.nominal <= 50 and planner.next_step(now, 25) is None


def test_networks_of_a_fixed_size_are_fine_tuned_at_the_size_of_their_head(planner):
    now = replace(NOW, fixed_size=True, taken=(Step(Kind.LARGER, "Lite", 288, 0),))
    assert planner.next_step(now, 100).training_size == 224, "free networks take smaller images"
    assert planner.next_step(replace(now, taken=()), 1e6).kind is Kind.LARGER
    tuned = replace(now, taken=(trained(Kind.FINE_TUNING, 10, 224),), fine_tuned=True)
    assert planner.next_step(tuned, 1e6).kind is Kind.LONGER
    assert planner.next_step(replace(tuned, fixed_size=False), 1e6).kind is Kind.LARGER


def test_longer_fine_tuning_ends_when_it_brings_nothing_or_after_the_usual_epochs(planner):
    taken = (trained(Kind.FINE_TUNING, 20, 224),)
    now = replace(NOW, free_size=False, fine_tuned=True, taken=taken)
    step = planner.next_step(now, 1e6)
    assert (step.kind, step.epochs) == (Kind.LONGER, 40)
    assert planner.next_step(replace(now, taken=(*taken, trained(Kind.LONGER, 10, 224))), 1e6) is None
    again = replace(now, taken=(*taken, trained(Kind.LONGER, 10, 224)), improving=True)
    assert planner.next_step(again, 1e6).epochs > step.epochs
    done = replace(now, taken=(*taken, trained(Kind.LONGER, 40, 224)), improving=True)
    assert planner.next_step(done, 1e6) is None


def test_fine_tuning_that_was_not_kept_is_tried_again_only_with_much_more_work(planner):
    now = replace(NOW, free_size=False, taken=(trained(Kind.FINE_TUNING, 6, 128),))
    assert planner.next_step(now, 1e6).kind is Kind.FINE_TUNING
    assert planner.next_step(replace(now, taken=(trained(Kind.FINE_TUNING, 20, 224),)), 1e6) is None


def test_nothing_follows_a_head_that_cannot_be_improved(planner):
    assert planner.next_step(replace(NOW, improvable=False), 1e6) is None


def test_the_epochs_of_the_user_are_those_of_fine_tuning(planner):
    step = planner.next_step(replace(NOW, free_size=False, epochs=2), 1e6)
    assert step.epochs == 2


def test_the_second_plan_is_the_first_one_although_its_features_are_cached(tmp_path):
    first = Speeds(tmp_path, "here")
    first.measured(0.01, "forward", "Lite", 224)
    plan = Planner(first).next_step(NOW, 100)
    first.measured(0.0145, "forward", "Lite", plan.image_size)  # not much faster
    Planner(first).measured_training(0.035, replace(plan, training_size=224), 1)
    first.save()
    assert Planner(Speeds(tmp_path, "here")).next_step(NOW, 100) == plan
    assert Speeds(tmp_path, "elsewhere").find("forward", "Lite", 224) is None


def test_a_remembered_speed_changes_only_if_it_was_much_too_slow(tmp_path):
    speeds = Speeds(tmp_path, "here")
    for seconds, expected in ((0.01, 0.01), (0.02, 0.01), (0.008, 0.01), (0.006, 0.006)):
        speeds.measured(seconds, "forward", "Lite", 224)
        assert speeds.find("forward", "Lite", 224) == expected
    assert speeds.find("forward", "Lite", 448) == pytest.approx(0.024)  # four times the pixels
    (tmp_path / "speeds.json").write_text("damaged")
    assert Speeds(tmp_path, "here").find("forward", "Lite", 224) is None


def test_many_validation_images_decide_and_few_hardly_change_the_typical_gain():
    prior = Gain(0.025, 0.035)
    worse, better = np.arange(1000) % 10 < 7, np.arange(1000) % 10 < 9
    assert posterior_gain(worse, better, prior).mean == pytest.approx(-0.17, abs=0.03)
    assert posterior_gain(better, worse, prior).mean == pytest.approx(0.17, abs=0.03)
    assert 0 < posterior_gain(worse[:9], worse[:9], prior).mean < 0.025
    few = posterior_gain(np.array([False] * 2 + [True] * 18), np.array([True] * 20), prior)
    assert -0.05 < few.mean < 0.025 and few.sd < prior.sd


def test_without_validation_images_the_typical_gain_decides():
    none = np.zeros(0, bool)
    assert posterior_gain(none, none, Gain(0.025, 0.035)) == Gain(0.025, 0.035)


def test_typical_gains_are_smaller_where_few_errors_are_left():
    assert typical_gain(Kind.FINE_TUNING, 0.99).mean < typical_gain(Kind.FINE_TUNING, 0.8).mean / 5


def test_a_step_is_one_line():
    line = "Head on the last 6 blocks, 224 px: 9.2 s, 78% (74 to 82). Kept."
    assert RECORD.line() == line
    assert replace(RECORD, kept=False).line().endswith(" Not kept.")


@pytest.mark.parametrize(
    ("budget", "stopped", "asked", "covered"),
    [
        (60, False, 60, True),
        (60, False, 30, True),
        (60, False, 90, False),
        (60, True, 60, False),
        (60, False, None, False),
        (None, False, None, True),
    ],
)
def test_a_run_is_complete_for_its_budget_and_smaller_ones(budget, stopped, asked, covered):
    assert History(budget=budget, stopped=stopped).covers(asked) is covered


@pytest.mark.parametrize(
    ("seconds", "text"), [(61, "90s"), (91, "2m"), (400, "7m"), (700, "20m"), (5400, "90m"), (6000, "2h")]
)
def test_a_budget_is_a_round_time(seconds, text):
    assert budget_text(seconds) == text


def test_the_last_line_has_the_gain_and_the_command(planner):
    step = planner.next_step(NOW, 1e6)
    text = describe_budget(step, 0.78, "python -m transfer.train --time-budget=3m")
    assert "larger images (288 px)" in text and "1.5 points" in text
    assert text.endswith("To continue: python -m transfer.train --time-budget=3m")
    assert "not expected" in describe_budget(None, 0.78, "")


def test_the_clock_counts_from_its_start():
    clock = Clock(1e6)
    assert 0 <= clock.seconds < 1e3 and clock.left < 1e6
    assert Clock(None).left == float("inf")
