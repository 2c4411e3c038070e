"""Training for several labels per image and for numbers: exact heads, epochs, fine-tuning, units, and resumption."""

from __future__ import annotations

import signal

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, make_tiny, snapshot
from helpers.tasks import brightness, stripes, task_data

from transfer.cases.builders import large_different, large_similar, small_similar
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.common.label_metrics import label_thresholds, mean_average_precision, r2
from transfer.frozen.extraction import extract
from transfer.frozen.label_heads import solve_labels
from transfer.frozen.ridge import solve_ridge
from transfer.images.datasets import load_data
from transfer.networks import surgery
from transfer.training.averaging import average
from transfer.training.checkpoints import Checkpoints, Interrupted
from transfer.training.fit import fit
from transfer.training.learning_rate_finder import find_learning_rate
from transfer.training.recipes import Recipe
from transfer.training.solved_again import solve_again
from transfer.training.trained import find_trained

METRIC = {"multi": "mean_average_precision", "regression": "r2"}
TASKS = list(METRIC)


def built(task, builder=small_similar, **options):
    return builder(make_tiny(), 3 if task == "multi" else 1, preprocessing="tf", task=task, **options)


def predicted(model, split):
    images = np.stack([split.image(i, (32, 32)) for i in range(len(split))]).astype("float32")
    outputs = model.predict(images, verbose=0)
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def score(task, model, split):
    return (mean_average_precision if task == "multi" else r2)(predicted(model, split), split.labels)


@pytest.mark.parametrize("task", TASKS)
def test_a_frozen_network_gets_the_exact_head_and_nothing_else_moves(task, cache):
    data, model, base = task_data(task), built(task), make_tiny()
    before = snapshot(surgery.feature_extractor_of(model))
    log = fit(model, data, cache=cache, engine="keras", verbose=0)
    assert_bit_equal(before, snapshot(surgery.feature_extractor_of(model)))
    assert_bit_equal(snapshot(base), snapshot(make_tiny()))
    assert log.exact and log.rows[0][f"val_{METRIC[task]}"] > 0.8
    assert score(task, model, data.test) > 0.8
    features = extract(
        surgery.feature_extractor_of(model),
        data.train,
        image_size=(32, 32),
        engine="keras",
        cache=cache,
        name="x",
    ).load()
    if task == "multi":
        solved = solve_labels(features, data.train.labels)
        assert list(log.thresholds) == label_thresholds(solved.out_of_fold, data.train.labels).tolist()
    else:
        solved = solve_ridge(features, data.train.labels)
        assert log.tried == solved.tried and log.regularization == solved.regularization
    np.testing.assert_array_equal(model.layers[-1].get_weights()[0], solved.kernel)


@pytest.mark.parametrize("task", TASKS)
def test_the_metrics_of_the_log_are_those_of_all_images(task, cache):
    data, model = (
        task_data(task),
        built(task, metrics=["mae"] if task == "regression" else ["binary_accuracy"]),
    )
    row = fit(model, data, engine="keras", cache=cache, verbose=0).rows[0]
    for prefix, split in (("", data.train), ("val_", data.val)):
        found = predicted(model, split)
        assert row[f"{prefix}{METRIC[task]}"] == pytest.approx(score(task, model, split), abs=1e-3)
        if task == "regression":
            errors = found - split.labels
            assert row[f"{prefix}mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-2)
            standardized = np.square(errors).mean() / data.train.labels.var()
            assert row[f"{prefix}loss"] == pytest.approx(standardized, rel=1e-2)
        else:
            right = np.where(split.labels > 0, found, 1 - found)
            assert row[f"{prefix}loss"] == pytest.approx(-np.log(right).mean(), rel=1e-2)
            assert row[f"{prefix}binary_accuracy"] == pytest.approx((right > 0.5).mean())


@pytest.mark.parametrize("task", TASKS)
def test_the_trained_model_is_recorded_with_its_task_and_saves(task, cache, tmp_path):
    data, model = task_data(task), built(task)
    log = fit(model, data, cache=cache, verbose=0)
    trained = find_trained(model)
    assert trained.task == task and trained.class_names == data.class_names
    if task == "multi":
        assert trained.thresholds.tolist() == list(log.thresholds) and len(log.thresholds) == 3
    else:
        assert trained.thresholds is None and not log.thresholds
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, data.test), predicted(model, data.test), rtol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_head_learns_in_epochs(task, cache):
    data, model = task_data(task), built(task)
    log = fit(model, data, solver="sgd", epochs=40, cache=cache, verbose=0, dropout=0.1)
    assert len(log.rows) > 5 and {"loss", "val_loss", METRIC[task], f"val_{METRIC[task]}"} <= set(
        log.rows[-1]
    )
    assert score(task, model, data.test) > 0.7 and not log.thresholds
    best = log.rows[-1 if log.kept_row is None else log.kept_row]
    assert best[f"val_{METRIC[task]}"] == pytest.approx(score(task, model, data.val), abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_own_heads_and_losses_train_in_epochs(task, cache):
    data, outputs = task_data(task), 3 if task == "multi" else 1
    layers = [keras.layers.BatchNormalization(momentum=0.8), keras.layers.Dense(16, "relu")]
    head = keras.Sequential([*layers, keras.layers.Dense(outputs, "sigmoid" if task == "multi" else None)])
    loss = "binary_focal_crossentropy" if task == "multi" else "huber"
    model = built(task, head=head, loss=loss, learning_rate=0.01)
    fit(model, data, epochs=60, batch_size=8, cache=cache, verbose=0)
    assert score(task, model, data.test) > 0.7


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("builder", [large_similar, large_different])
def test_fine_tuning_starts_from_the_exact_head(task, builder, cache):
    data, model = task_data(task), built(task, builder)
    before = snapshot(model)
    log = fit(model, data, epochs=2, cache=cache, verbose=0)
    assert [row["phase"] for row in log.rows] == ["head", "fine-tune", "fine-tune"]
    assert log.rows[0][f"val_{METRIC[task]}"] > 0.8
    assert {"loss", "val_loss", METRIC[task], f"val_{METRIC[task]}"} <= set(log.rows[-1])
    kept = log.rows[-1 if log.kept_row is None else log.kept_row]
    assert kept[f"val_{METRIC[task]}"] == pytest.approx(score(task, model, data.val), abs=2e-3)
    assert bool(log.thresholds) == (task == "multi" and log.rolled_back)
    assert decision_of(model).fine_tuned == (not log.rolled_back)
    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for old, new in zip(before, model.variables, strict=True):
        if any(name in new.path for name in names):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("task", TASKS)
def test_upper_layers_train_on_outputs_of_the_frozen_ones(task, cache):
    data, model = task_data(task), built(task, unfreeze_from="block3_conv")
    before = {v.path: v.numpy() for v in model.non_trainable_variables if "seed" not in v.path}
    log = fit(model, data, epochs=2, cache=cache, verbose=0)
    for variable in model.non_trainable_variables:
        if variable.path in before:
            np.testing.assert_array_equal(before[variable.path], variable)
    kept = log.rows[-1 if log.kept_row is None else log.kept_row]
    assert kept[f"val_{METRIC[task]}"] == pytest.approx(score(task, model, data.val), abs=2e-3)


@pytest.mark.parametrize("task", TASKS)
def test_random_weights_learn(task, cache):
    data, model = task_data(task), built(task, large_different, init="random")
    log = fit(model, data, epochs=8, cache=cache, verbose=0)
    assert {row["phase"] for row in log.rows} == {"from-scratch"}
    losses = [row["loss"] for row in log.rows]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", ["exact", "sgd", "fine-tune", "scratch", "ema"])
def test_a_regression_does_not_depend_on_the_units(kind, cache):
    found = []
    for factor, offset in ((1.0, 0.0), (1000.0, 5.0)):
        data = task_data("regression", factor, offset)
        options = {"exact": {}, "sgd": {"solver": "sgd", "epochs": 5}}.get(kind, {"epochs": 2})
        builder = {"exact": small_similar, "sgd": small_similar, "scratch": large_different}.get(
            kind, large_similar
        )
        keras.utils.set_random_seed(0)
        model = built("regression", builder, **({"init": "random"} if kind == "scratch" else {}))
        recipe = Recipe(ema=0.5, mix="mixup") if kind == "ema" else None
        fit(model, data, cache=cache, verbose=0, recipe=recipe, **options)
        found.append(predicted(model, data.test))
    assert np.std(found[0]) > 1
    np.testing.assert_allclose(found[1], 1000 * found[0] + 5, rtol=1e-3)


def test_fine_tuning_continues_from_the_head_of_a_trained_regression(cache):
    data, model = task_data("regression", 1000.0, 5.0), built("regression", large_similar)
    fit(model, data, epochs=1, cache=cache, verbose=0)
    before = score("regression", model, data.val)
    log = fit(model, data, epochs=1, cache=cache, verbose=0)
    assert [row["phase"] for row in log.rows] == ["fine-tune"]
    assert score("regression", model, data.val) > before - 0.1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("in_process", [False, True])
def test_an_interrupted_training_resumes_to_the_same_weights(task, in_process, cache, tmp_path, monkeypatch):
    data = task_data(task, *((1000.0, 5.0) if task == "regression" else ()))
    options = {"epochs": 2, "batch_size": 16, "cache": cache, "verbose": 0}
    whole = built(task, large_similar)
    fit(whole, data, checkpoints=tmp_path / "whole", **options)
    calls = iter(range(10**6))

    def due(self):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return False

    monkeypatch.setattr(Checkpoints, "due", property(due))
    parts = built(task, large_similar)
    with pytest.raises(Interrupted):
        fit(parts, data, checkpoints=tmp_path / "parts", **options)
    if task == "regression":  # the stopped model predicts in units, not standardized values
        assert predicted(parts, data.test).mean() == pytest.approx(data.test.labels.mean(), rel=0.5)
    parts = parts if in_process else built(task, large_similar)
    fit(parts, data, checkpoints=tmp_path / "parts", **options)
    assert_bit_equal(snapshot(whole), snapshot(parts))
    again = built(task, large_similar)
    fit(again, data, checkpoints=tmp_path / "parts", **options)
    assert_bit_equal(snapshot(whole), snapshot(again))


def test_class_weights_raise_the_probability_of_a_rare_label(cache):
    images, _ = stripes()
    rare = np.random.default_rng(3).random((len(images), 2)) < [0.2, 0.5]  # has nothing to do with the images
    data = load_data((images, rare.astype("int8")), task="multi", val=0.2, test=0.2, near_duplicates=False)
    for options in ({"solver": "exact"}, {"solver": "sgd", "epochs": 20, "batch_size": 8}):
        means = []
        for weighted in (False, True):
            model = small_similar(make_tiny(), 2, preprocessing="tf", task="multi", learning_rate=0.02)
            fit(model, data, class_weights=weighted, cache=cache, verbose=0, **options)
            means.append(predicted(model, data.test).mean(axis=0))
        assert means[0][0] < 0.4 < means[1][0] < 0.65
    tuned = built("multi", large_similar)
    assert (
        fit(tuned, task_data("multi"), class_weights=True, epochs=1, cache=cache, verbose=0).rows[-1]["loss"]
        > 0
    )


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_images_with_several_labels_are_mixed(mix, cache):
    model = built("multi", large_similar)
    recipe = Recipe(mix=mix, label_smoothing=0.1)
    log = fit(model, task_data("multi"), recipe=recipe, epochs=1, cache=cache, verbose=0)
    assert log.rows[-1]["loss"] > 0.1 and log.rows[-1]["val_mean_average_precision"] > 0.5


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("regression", {"class_weights": True}, "which has no classes"),
        ("regression", {"recipe": Recipe(mix="cutmix")}, "Expected mix='none' or 'mixup'"),
        ("regression", {"label_smoothing": 0.1}, "no label_smoothing"),
        (
            "multi",
            {"solver": "exact", "label_smoothing": 0.1, "epochs": None},
            "no label_smoothing with solver",
        ),
    ],
)
def test_options_that_a_task_does_not_have_are_refused(task, options, message):
    builder = small_similar if "solver" in options else large_similar
    with pytest.raises(InputError, match=message):
        fit(built(task, builder), task_data(task), **{"epochs": 1, **options})


def test_class_weights_need_the_default_loss():
    model = built("multi", large_similar, loss="binary_focal_crossentropy")
    with pytest.raises(InputError, match="no class_weights"):
        fit(model, task_data("multi"), class_weights=True)


def test_a_model_of_another_task_is_refused(colors):
    with pytest.raises(InputError, match=r"task of the data, single.*task=data.task"):
        fit(small_similar(make_tiny(), 3, preprocessing="tf", task="multi"), colors)


@pytest.mark.parametrize("task", TASKS)
def test_arrays_have_labels_of_the_task_of_the_model(task, cache):
    images, labels = stripes() if task == "multi" else brightness()
    labels = labels if task == "multi" else labels.round()  # whole numbers could be classes
    model = built(task)
    log = fit(model, images, labels, cache=cache, verbose=0)
    assert find_trained(model).task == task and log.rows[0][METRIC[task]] > 0.8


@pytest.mark.parametrize("task", TASKS)
def test_an_average_predicts_the_mean_and_needs_one_task(task, cache):
    data, models = task_data(task), [built(task), built(task, cut="all")]
    for model in models:
        fit(model, data, cache=cache, verbose=0)
    result = average(models)
    mean = np.mean([predicted(model, data.test) for model in models], axis=0)
    np.testing.assert_allclose(predicted(result, data.test), mean, rtol=1e-4)
    assert find_trained(result).task == task and find_trained(result).thresholds is None
    if task == "multi":
        with pytest.raises(InputError, match="models of one task"):
            average([models[0], small_similar(make_tiny(), 3, preprocessing="tf")])


def test_a_solved_head_again_is_for_one_class_per_image(cache):
    model = built("multi")
    fit(model, task_data("multi"), cache=cache, verbose=0)
    with pytest.raises(InputError, match="one class per image"):
        solve_again(model, task_data("multi"))


@pytest.mark.parametrize("task", TASKS)
def test_a_range_test_restores_the_model(task):
    model = built(task, large_similar)
    before = snapshot(model)
    curve = find_learning_rate(model, task_data(task), steps=12, batch_size=16)
    assert curve.suggestion > 0
    assert_bit_equal(before, snapshot(model))


@pytest.mark.parametrize("task", TASKS)
def test_user_callbacks_see_the_metrics_and_the_figures_can_be_drawn(task, cache):
    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            names.append(set(logs))

    names = []
    stop = keras.callbacks.EarlyStopping(f"val_{METRIC[task]}", mode="max", patience=5)
    log = fit(
        built(task, large_similar),
        task_data(task),
        epochs=1,
        cache=cache,
        verbose=0,
        callbacks=[Seen(), stop],
    )
    assert len(names) == 2 and all({METRIC[task], f"val_{METRIC[task]}", "val_loss"} <= one for one in names)
    assert len(log.plot().axes) == 2
    text = "mean average precision" if task == "multi" else "R2"
    assert text in repr(log)
    assert fit(built(task), task_data(task), cache=cache, verbose=0).plot().axes


@pytest.mark.parametrize("task", TASKS)
def test_low_rank_matrices_train(task, cache):
    tiny = make_tiny()
    base = keras.Model(
        tiny.inputs, keras.layers.Dense(16, "relu", name="wide")(tiny.get_layer("pool").output)
    )
    outputs = 3 if task == "multi" else 1
    model = large_similar(base, outputs, preprocessing="tf", task=task, lora=2)
    before = model.get_layer("wide").get_weights()
    fit(model, task_data(task), epochs=1, cache=cache, verbose=0)
    after = model.get_layer("wide").get_weights()
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_images_without_validation_images_train(cache):
    images, labels = brightness(40)
    data = load_data((images, labels), task="regression", val=0, test=0.2)
    model = built("regression", large_similar)
    log = fit(model, data, epochs=1, cache=cache, verbose=0)
    assert "val_r2" not in log.rows[-1] and log.rows[-1]["r2"] > 0
