"""The exact head is the optimum, with well-chosen regularization, whatever the order and type of its input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from transfer.common.errors import InputError
from transfer.frozen import heads
from transfer.frozen.held_out import Candidate
from transfer.frozen.moments import second_moments
from transfer.images.pipeline import class_weights


def solve(*arguments, **options) -> heads.SolvedHead:
    """Solve a logistic regression; the clusters below are what a discriminant assumes, so that it would be chosen."""
    return heads.solve(*arguments, methods=("regression",), **options)


def clusters(
    count: int, width: int, classes: int, *, apart: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features like pooled activations: not negative, with a mean above 0, and of very different scales."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = apart * np.random.default_rng(99).normal(size=(classes, width))
    sizes = np.random.default_rng(98).lognormal(0, 1, width)
    return (np.abs(3 + rng.normal(size=(count, width)) + centers[labels]) * sizes).astype("float32"), labels


def slope(
    head: heads.SolvedHead, x: np.ndarray, y: np.ndarray, weights=None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the gradients of the documented objective at the head, per image, and the objective."""
    x, kernel = x.astype("float64"), head.kernel.astype("float64")
    weights = np.ones(len(y)) if weights is None else weights
    p = softmax(x @ kernel + head.bias, axis=1)
    off = (p - np.eye(kernel.shape[1])[y]) * weights[:, None]
    scaled = kernel * head.scale
    by_kernel = ((x - x.mean(axis=0)) / head.scale).T @ off + scaled / head.regularization
    loss = -(weights * np.log(p[np.arange(len(y)), y])).sum()
    return (
        by_kernel / len(y),
        off.sum(axis=0) / len(y),
        loss + np.square(scaled).sum() / 2 / head.regularization,
    )


@pytest.mark.parametrize("count, width", [(300, 20), (60, 200)])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_gradient_of_the_objective_vanishes(count, width, classes):
    x, y = clusters(count, width, classes, apart=0.3)
    head = solve(x, y, classes)
    by_kernel, by_bias, _ = slope(head, x, y)
    assert np.abs(by_kernel).max() < 2e-5
    assert np.abs(by_bias).max() < 2e-5
    zero = heads.SolvedHead(0 * head.kernel, 0 * head.bias, head.regularization, head.scale, (), "default")
    assert np.abs(slope(zero, x, y)[0]).max() > 1e-3, "the test would pass for any head"


@pytest.mark.parametrize("classes", [2, 3])
def test_gradient_descent_converges_to_the_same_head(classes):
    x, y = clusters(90, 6, classes, apart=0.4)
    head = solve(x, y, classes)
    z = (x.astype("float64") - x.mean(axis=0, dtype="float64")) / head.scale
    kernel, bias = np.zeros((6, classes)), np.zeros(classes)
    step = 1 / (0.5 * np.linalg.eigvalsh(z.T @ z)[-1] + 0.5 * len(z) + 1 / head.regularization)
    for _ in range(8_000):
        off = softmax(z @ kernel + bias, axis=1) - np.eye(classes)[y]
        kernel -= step * (z.T @ off + kernel / head.regularization)
        bias -= step * off.sum(axis=0)
    ours = softmax(x @ head.kernel + head.bias, axis=1)
    assert np.allclose(ours, softmax(z @ kernel + bias, axis=1), atol=2e-3)
    assert np.ptp(ours[:, 0]) > 0.3


@pytest.mark.parametrize("count, width, classes", [(200, 10, 3), (30, 100, 3), (60, 10, 2)])
def test_the_head_equals_that_of_scikit_learn(count, width, classes):
    x, y = clusters(count, width, classes, apart=0.4)
    head = solve(x, y, classes)
    own = (x.astype("float64") - x.mean(axis=0, dtype="float64")) / head.scale
    c = (
        2 * head.regularization if classes == 2 else head.regularization
    )  # with two classes, scikit-learn has one vector
    theirs = LogisticRegression(C=c, tol=1e-6, max_iter=50_000).fit(own, y).predict_proba(own)
    assert np.allclose(softmax(x @ head.kernel + head.bias, axis=1), theirs, atol=2e-3)
    assert np.ptp(theirs[:, 0]) > 0.3
    assert head.kernel.dtype == head.bias.dtype == np.float32


def test_the_offset_and_scale_of_features_change_no_prediction():
    x, y = clusters(120, 15, 3, apart=0.5)
    val_x, val_y = clusters(300, 15, 3, apart=0.5, seed=1)
    head = solve(x, y, 3, val=(val_x, val_y))
    other = solve(1000 * x + 5000, y, 3, val=(1000 * val_x + 5000, val_y))
    one = softmax(x @ head.kernel + head.bias, axis=1)
    assert np.allclose(one, softmax((1000 * x + 5000) @ other.kernel + other.bias, axis=1), atol=0.01)
    assert head.regularization == other.regularization


def test_noise_is_regularized_strongly_and_separable_classes_weakly():
    rng = np.random.default_rng(0)
    noise = solve(rng.normal(size=(300, 30)), np.arange(300) % 3, 3)
    x, y = clusters(300, 30, 3, apart=3.0)
    clear = solve(x, y, 3)
    assert noise.regularization <= 0.1
    assert clear.regularization >= 100
    assert np.abs(softmax(rng.normal(size=(50, 30)) @ noise.kernel + noise.bias, axis=1) - 1 / 3).max() < 0.1


def test_the_chosen_c_beats_both_ends_of_the_grid():
    x, y = clusters(150, 60, 5, apart=0.25)
    new_x, new_y = clusters(3000, 60, 5, apart=0.25, seed=7)

    def loss(head):
        p = softmax(new_x @ head.kernel + head.bias, axis=1)
        return -np.mean(np.log(p[np.arange(len(new_y)), new_y]))

    chosen = solve(x, y, 5)
    rows = {}
    for c in (heads.GRID[0], heads.GRID[-1]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heads, "_search", lambda trials, start, c=c: [Candidate(c, 0.0, 0.0)])
            rows[c] = loss(solve(x, y, 5))
    assert loss(chosen) < min(rows.values()) - 0.05


def test_the_strongest_candidate_with_nearly_the_smallest_loss_is_chosen():
    x, y = clusters(150, 20, 3, apart=0.3)
    head = solve(x, y, 3)
    assert head.chosen_by == "cross-validation"
    assert [row.strength for row in head.tried] == sorted({row.strength for row in head.tried})
    lowest = min(row.loss for row in head.tried)
    assert head.regularization == min(row.strength for row in head.tried if row.loss <= 1.001 * lowest)
    assert len({row.loss for row in head.tried}) > 2
    assert all(0 <= row.accuracy <= 1 and row.loss > 0 for row in head.tried)


def test_held_out_scores_of_noise_are_at_chance():
    """Features of noise can be memorized, but nothing can be learned from them."""
    x = np.random.default_rng(1).normal(size=(120, 400))
    head = solve(x, np.arange(120) % 2, 2)
    assert ((x @ head.kernel + head.bias).argmax(axis=1) == np.arange(120) % 2).mean() > 0.9
    assert all(row.accuracy < 0.65 and row.loss > 0.68 for row in head.tried)


def test_many_validation_images_choose_c_and_are_not_trained_on():
    x, y = clusters(120, 20, 3, apart=0.6)
    other_x, other_y = clusters(300, 20, 3, apart=0.6, seed=3)
    good = solve(x, y, 3, val=(other_x, other_y))
    shuffled = solve(x, y, 3, val=(other_x, np.roll(other_y, 1)))
    assert good.chosen_by == shuffled.chosen_by == "validation"
    assert good.regularization >= 10
    assert shuffled.regularization == heads.GRID[0]
    assert ((other_x @ shuffled.kernel + shuffled.bias).argmax(axis=1) == other_y).mean() > 0.7, (
        "it learnt from them"
    )


def test_cross_validation_replaces_few_validation_images():
    x, y = clusters(120, 20, 3, apart=0.6)
    assert solve(x, y, 3, val=(x[:9], y[:9])).chosen_by == "cross-validation"
    assert solve(x, y, 3, val=(x[:0], y[:0])).chosen_by == "cross-validation"


def test_one_image_per_class_works():
    x, y = clusters(4, 30, 4, apart=2.0)
    head = solve(x, y, 4)
    assert head.chosen_by == "default" and head.tried == () and head.regularization == heads.DEFAULT_C
    new_x, new_y = clusters(200, 30, 4, apart=2.0, seed=5)
    assert ((new_x @ head.kernel + head.bias).argmax(axis=1) == new_y).mean() > 0.6
    assert solve(x, y, 4, val=(new_x[:20], new_y[:20])).chosen_by == "validation"


@pytest.mark.parametrize("counts", [(40, 1), (40, 30, 1), (2, 2), (1, 1, 2)])
def test_a_class_of_one_image_among_others_works(counts):
    y = np.repeat(np.arange(len(counts)), counts)
    x = clusters(3 * len(y), 12, len(counts), apart=2.0)
    at = [int(np.flatnonzero(x[1] == k)[i]) for k in range(len(counts)) for i in range(counts[k])]
    head = solve(x[0][at], y, len(counts))
    assert np.isfinite(head.kernel).all() and np.isfinite(head.bias).all()
    assert all(np.isfinite(row.loss) for row in head.tried)
    assert ((x[0][at] @ head.kernel + head.bias).argmax(axis=1) == y).all()


def test_class_weights_balance_the_classes():
    x, y = clusters(3000, 4, 2, apart=0.3)
    keep = (y == 0) | (np.arange(len(y)) % 20 == 1)
    x, y = x[keep], y[keep]
    weights = class_weights(y, 2)
    plain, even = solve(x, y, 2), solve(x, y, 2, class_weights=weights)
    new_x, new_y = clusters(2000, 4, 2, apart=0.3, seed=4)

    def rare(head):
        return ((new_x @ head.kernel + head.bias).argmax(axis=1) == 1)[new_y == 1].mean()

    assert rare(plain) < 0.35 < 0.6 < rare(even)
    by_kernel, by_bias, _ = slope(even, x, y, np.array([weights[0], weights[1]])[y])
    assert max(np.abs(by_kernel).max(), np.abs(by_bias).max()) < 1e-4
    p = softmax(x.astype("float64") @ even.kernel + even.bias, axis=1)
    share = [p[y == k].sum() * weights[k] for k in range(2)]
    assert sum(p[y == k, 1].sum() * weights[k] for k in range(2)) == pytest.approx(sum(share) / 2, rel=0.3)


@pytest.mark.parametrize("width", [10, 150])
def test_the_order_of_rows_does_not_matter(width):
    x, y = clusters(100, width, 3, apart=0.4)
    order = np.random.default_rng(5).permutation(100)
    one, other = solve(x, y, 3), solve(x[order], y[order], 3)
    assert one.regularization == other.regularization
    assert [row.strength for row in one.tried] == [row.strength for row in other.tried]
    steep = [(r.loss, s.loss) for r, s in zip(one.tried, other.tried, strict=True) if r.strength <= 100]
    assert len(steep) > 2 and np.allclose(
        *zip(*steep, strict=True), rtol=0.02
    )  # above, the loss is nearly constant
    folds = heads.assign_folds(y, keys=x[:, 0])
    assert np.array_equal(folds[order], heads.assign_folds(y[order], keys=x[order, 0]))
    p, q = (softmax(x @ head.kernel + head.bias, axis=1) for head in (one, other))
    assert np.allclose(p, q, atol=2e-3)


def test_the_same_input_gives_the_same_head_and_another_seed_other_folds():
    x, y = clusters(100, 10, 3, apart=0.4)
    one, again, other = solve(x, y, 3), solve(x, y, 3), solve(x, y, 3, seed=1)
    assert np.array_equal(one.kernel, again.kernel) and np.array_equal(one.bias, again.bias)
    assert one.tried == again.tried
    assert one.tried[0].loss != other.tried[0].loss


def test_the_input_is_left_as_it_was():
    x, y = clusters(60, 10, 3)
    before = x.copy()
    solve(x, y, 3, val=(x, y))
    assert np.array_equal(x, before)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_float_types_give_the_same_head(kind):
    x, y = clusters(100, 20, 3, apart=0.5)
    x = x.astype("float16")
    one, other = solve(x.astype("float32"), y, 3), solve(x.astype(kind), y, 3)
    assert np.allclose(one.kernel, other.kernel, atol=1e-5)
    assert solve((20 * x).astype("float16"), y, 3).kernel.shape == (20, 3)


def test_large_float16_features_do_not_overflow():
    x, y = clusters(100, 20, 3, apart=0.5)
    large = (x / x.max() * 60_000).astype("float16")
    head = solve(large, y, 3)
    assert ((large.astype("float32") @ head.kernel + head.bias).argmax(axis=1) == y).mean() > 0.8


def test_constant_features_predict_the_class_fractions():
    y = np.repeat([0, 1, 2], [60, 30, 10])
    head = solve(np.ones((100, 5)), y, 3)
    assert np.allclose(softmax(np.ones((1, 5)) @ head.kernel + head.bias), [[0.6, 0.3, 0.1]], atol=1e-3)


def test_folds_are_even_and_keep_groups_whole():
    y, groups = np.arange(300) % 3, np.arange(300) // 5
    fold = heads.assign_folds(y, groups=groups)
    assert all(len(set(fold[groups == g])) == 1 for g in range(60))
    plain = heads.assign_folds(y)
    assert set(np.bincount(plain * 3 + y)) <= {33, 34}
    assert np.ptp(np.bincount(fold)) <= 30


def test_groups_prevent_leakage_between_folds():
    """Images of one patient are nearly the same, and each patient's class is random."""
    rng = np.random.default_rng(0)
    patients = rng.normal(size=(40, 30))
    groups = np.repeat(np.arange(40), 6)
    x, y = patients[groups] + 0.05 * rng.normal(size=(240, 30)), (np.arange(40) % 2)[groups]
    fooled, honest = solve(x, y, 2), solve(x, y, 2, groups=groups)
    assert max(row.accuracy for row in fooled.tried) > 0.8
    assert max(row.accuracy for row in honest.tried) < 0.7
    assert honest.regularization < fooled.regularization


@pytest.mark.parametrize("width", [10, 200])
def test_coordinates_and_moments_of_folds_replace_the_features_of_their_images(width):
    x, y = clusters(90, width, 3)
    other, truth = clusters(30, width, 3, seed=1)
    problem = heads.HeadProblem(x, y, 3)
    assert problem.x.shape == (90, min(width, 90))
    trial = problem._compare_on(other, truth)
    scaled, known = ((part - problem.mean) / problem.scale for part in (other, x))
    np.testing.assert_allclose(trial.other @ trial.x.T, scaled @ known.T, atol=1e-4)
    problem.cross_validate(heads.assign_folds(y))
    for fold, held_out in problem._trials.items():
        expected = second_moments(problem.x[problem._folds != fold])
        np.testing.assert_allclose(held_out.moments, expected, atol=1e-6)


def bad(**changes):
    x, y = clusters(12, 4, 3)
    return {"features": x, "labels": y, "num_classes": 3, **changes}


def spoilt(value: float) -> np.ndarray:
    x = clusters(12, 4, 3)[0]
    x[7, 1] = value
    return x


@pytest.mark.parametrize(
    "given, words",
    [
        (bad(features=spoilt(np.nan)), "NaN or infinity in 1 of 12 images, first in image 7"),
        (bad(features=spoilt(np.inf)), "NaN or infinity in 1 of 12 images"),
        (bad(features=np.zeros((12, 2, 2))), "Pool feature maps"),
        (bad(features=np.zeros((11, 4))), "a label for each image"),
        (bad(features=np.zeros((0, 4)), labels=np.zeros(0, int)), "a label for each image"),
        (bad(labels=np.zeros(12, int), num_classes=1), "at least 2 classes"),
        (bad(labels=np.zeros(12, int)), r"none of \[1, 2\]"),
        (bad(num_classes=4), r"none of \[3\]"),
        (bad(num_classes=2), "from 0 to 1"),
        (bad(labels=np.arange(12) % 3 - 1), "integer labels from 0 to 2"),
        (bad(labels=np.arange(12) % 3 + 0.5), "integer labels from 0 to 2"),
        (bad(val=(np.zeros((5, 3)), np.zeros(5, int))), r"val features of shape \(images, 4\)"),
        (bad(val=(spoilt(np.nan), np.zeros(12, int))), "finite val features"),
        (bad(class_weights={0: 1.0, 1: 1.0}), "weight above 0 for each class"),
        (bad(class_weights={0: 1.0, 1: 1.0, 2: -1.0}), "weight above 0 for each class"),
        (bad(groups=[1, 2]), "a group for each of 12"),
    ],
)
def test_invalid_input_is_an_error_with_a_remedy(given, words):
    given = dict(given)
    essentials = [given.pop(name) for name in ("features", "labels", "num_classes")]
    with pytest.raises(InputError, match=words):
        solve(*essentials, **given)
