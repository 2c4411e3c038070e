"""The layers of a head are chosen by honest out-of-fold predictions."""

import numpy as np
import pytest
from scipy.special import softmax

from transfer.common.errors import InputError
from transfer.frozen.head_choice import candidate_cuts, choose_head, concatenate_normalized, features_of
from transfer.frozen.heads import HeadProblem


def layers_of(signals: dict[str, float], count: int = 90, classes: int = 3, *, seed: int = 0):
    """Features of several layers; each shows the classes as clearly as its signal says."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = np.random.default_rng(99).normal(size=(classes, 12))
    return {
        name: 3 + rng.normal(size=(count, 12)) + s * centers[labels] for name, s in signals.items()
    }, labels


@pytest.mark.parametrize(
    "signals, expected",
    [
        ({"early": 0.0, "middle": 0.0, "last": 2.0}, "last layer"),
        ({"early": 0.0, "middle": 0.7, "last": 0.0}, "best cut"),
        ({"early": 0.8, "middle": 0.8, "last": 0.8}, "all layers"),
    ],
)
def test_the_layers_that_show_the_classes_are_chosen(signals, expected):
    taps, labels = layers_of(signals)
    choice = choose_head(taps, labels, 3, candidates=candidate_cuts(list(taps), best_cut="middle"))
    assert choice.best.name == expected
    assert [one.name for one in choice.candidates] == ["last layer", "best cut", "all layers"]
    assert choice.best.loss == min(one.loss for one in choice.candidates)
    new, truth = layers_of(signals, 600, seed=1)
    scores = features_of(new, choice.best.cuts) @ choice.solved.kernel + choice.solved.bias
    assert (scores.argmax(axis=1) == truth).mean() == pytest.approx(choice.accuracy, abs=0.1)


def test_each_image_is_predicted_by_a_head_without_its_fold():
    taps, labels = layers_of({"last": 0.7})
    choice = choose_head(taps, labels, 3)
    assert len(np.unique(choice.folds)) == 5 and choice.best.setting.method == "discriminant"
    x = (taps["last"] - taps["last"].mean(axis=0)) / choice.solved.scale
    for fold in (0, 4):
        out = choice.folds == fold
        head = HeadProblem(x[~out], labels[~out], 3, setting=choice.best.setting).solve()
        expected = softmax(x[out] @ head.kernel + head.bias, axis=1)
        np.testing.assert_allclose(choice.best.probabilities[out], expected, atol=0.02)
    assert choice.best.loss == pytest.approx(-np.log(choice.best.probabilities[np.arange(90), labels]).mean())
    assert choice.best.accuracy == choice.best.correct.mean()


def test_more_images_than_those_of_the_other_folds_make_fewer_errors():
    taps, labels = layers_of({"last": 0.7})
    choice = choose_head(taps, labels, 3)
    assert choice.spread(choice.best) > choice.best.standard_error
    assert choice.accuracy == pytest.approx(1 - 0.8**0.45 * (1 - choice.best.accuracy), abs=0.01)


def test_folds_depend_on_labels_and_groups_alone():
    one, labels = layers_of({"last": 1.0})
    other, _ = layers_of({"a": 0.1, "b": 0.2, "c": 0.0}, seed=5)
    groups = [f"patient {i // 6}" for i in range(90)]
    for options in ({}, {"groups": groups}):
        first, second = (choose_head(taps, labels, 3, **options) for taps in (one, other))
        assert np.array_equal(first.folds, second.folds)
    assert all(len(set(first.folds[i : i + 6])) == 1 for i in range(0, 90, 6))
    assert not np.array_equal(first.folds, choose_head(one, labels, 3, groups=groups, seed=1).folds)


def test_the_accuracy_is_not_that_of_the_luckiest_candidate():
    rng = np.random.default_rng(3)
    noise = {f"layer{i}": rng.normal(size=(300, 30)) for i in range(12)}
    choice = choose_head(noise, np.arange(300) % 2, 2, candidates={name: (name,) for name in noise})
    assert choice.accuracy < 0.54 < choice.best.accuracy and choice.errors == 1
    assert max(choice.estimates) == choice.accuracy


def test_a_class_of_one_image_gets_the_probability_of_a_guess_and_does_not_count():
    taps, _ = layers_of({"last": 2.0}, 41)
    labels = np.array([*np.arange(40) % 2, 2])
    best = choose_head(taps, labels, 3).best
    assert best.accuracy == best.correct[:-1].mean()
    assert best.probabilities[-1, 2] == pytest.approx(1 / 3) and not best.correct[-1]
    np.testing.assert_allclose(best.probabilities.sum(axis=1), 1, rtol=1e-6)


def test_one_image_per_class_gives_the_late_blocks_without_an_accuracy():
    taps, labels = layers_of({f"block{i}": 0.0 for i in range(8)} | {"last": 2.0}, 5, 5)
    choice = choose_head(taps, labels, 5)
    assert choice.accuracy is None and choice.best.name == "last 6 blocks"
    np.testing.assert_allclose(choice.best.probabilities, 1 / 5)
    choice = choose_head({"last": taps["last"]}, labels, 5)
    new, truth = layers_of({"last": 2.0}, 300, 5, seed=1)
    scores = new["last"] @ choice.solved.kernel + choice.solved.bias
    assert (scores.argmax(axis=1) == truth).mean() > 0.6


def test_images_of_a_single_group_cannot_be_held_out():
    taps, labels = layers_of({"last": 2.0})
    assert choose_head(taps, labels, 3, groups=["one"] * 90).accuracy is None


def test_candidates_with_the_same_layers_appear_once():
    names = [f"block{i}" for i in range(16)] + ["last"]
    assert candidate_cuts(names, best_cut="block9") == {
        "last layer": ("last",),
        "best cut": ("block9",),
        "last 6 blocks": tuple(names[-7:]),
        "last 10 blocks": tuple(names[-11:]),
        "all layers": tuple(names),
    }
    assert list(candidate_cuts(names[-7:], best_cut="last")) == ["last layer", "all layers"]
    assert candidate_cuts(["last"]) == {"last layer": ("last",)}


@pytest.mark.parametrize(
    "candidates, words",
    [
        ({}, "Expected one candidate or more"),
        ({"mine": ("lost",)}, "Unknown layer of a candidate 'lost'"),
    ],
)
def test_candidates_without_features_are_an_error(candidates, words):
    taps, labels = layers_of({"last": 1.0})
    with pytest.raises(InputError, match=words):
        choose_head(taps, labels, 3, candidates=candidates)


def test_layers_have_equal_weight_at_any_scale():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    joined = concatenate_normalized([1e6 * a, b])
    np.testing.assert_allclose(np.linalg.norm(joined[:, :3], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(joined, concatenate_normalized([a, b]), rtol=1e-5)
    assert np.isfinite(concatenate_normalized([np.zeros((2, 3)), b[:2]])).all()
