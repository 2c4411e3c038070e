"""`fit` learns what can be learned, changes the trainable weights, and leaves the frozen ones."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny
from keras.ops import convert_to_numpy as to_numpy

from transfer.cases.builders import build, large_different, large_similar, small_different, small_similar
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.frozen.extraction import KnownFeatures
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import load_data
from transfer.networks import surgery
from transfer.training.fit import fit
from transfer.training.phases import TrainingLog
from transfer.training.recipes import Recipe


@pytest.fixture(scope="module")
def colors(color_folder):
    return load_data(color_folder)


def built(case, classes=3, **options):
    return build(case, make_tiny(), classes, preprocessing="tf", **options)


def state(model, *, without_head=True):
    """All variables of a model by layer, as they are now."""
    layers = model.layers[:-1] if without_head else model.layers
    return {layer.name: [to_numpy(w) for w in layer.weights] for layer in layers if layer.weights}


def equal(before, after):
    return {
        name
        for name in before
        if all(np.array_equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


@pytest.mark.parametrize("case", ["small-similar", "small-different"])
def test_frozen_weights_and_statistics_are_bit_equal_after_fit(case, colors):
    model = built(case)
    before = state(model)
    head = to_numpy(model.layers[-1].kernel)
    fit(model, colors, epochs=2, verbose=0)
    assert equal(before, state(model)) == set(before)
    assert not np.array_equal(head, to_numpy(model.layers[-1].kernel))


def test_the_model_is_the_frozen_network_with_the_trained_head(colors):
    model = built("small-similar")
    fit(model, colors, epochs=3, verbose=0)
    images = np.stack([colors.test.image(i, (32, 32)) for i in range(6)])
    features = surgery.feature_extractor_of(model).predict(images, verbose=0)
    assert features.std(axis=0).max() > 1e-3
    logits = features @ to_numpy(model.layers[-1].kernel) + to_numpy(model.layers[-1].bias)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-5)


def test_colors_are_learned_from_cached_features(colors):
    model = built("small-similar")
    fit(model, colors, verbose=0)
    assert evaluate(model, colors).accuracy >= 0.9


def test_shuffled_labels_are_not_learned(shuffled_folder):
    data = load_data(shuffled_folder)
    model = built("small-similar")
    fit(model, data, verbose=0)
    assert evaluate(model, data).accuracy <= 0.67


def test_fine_tuning_trains_the_head_first_and_pins_batchnorm(colors):
    model = built("large-similar", learning_rate=1e-3)
    before = state(model)
    log = fit(model, colors, epochs=2, verbose=0)
    assert list(dict.fromkeys(log.history["phase"])) == ["head", "fine-tune"]
    names = {layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert names and names <= equal(before, state(model))
    assert not {"block1_conv", "block3_branch"} & equal(before, state(model))
    assert evaluate(model, colors).accuracy >= 0.9


def test_from_random_weights_batchnorm_is_live(colors):
    model = large_different(make_tiny(), 3, init="random", preprocessing="tf")
    before = state(model)
    log = fit(model, colors, epochs=1, verbose=0)
    assert set(log.history["phase"]) == {"from-scratch"} and log.init == "random"
    assert "block1_bn" not in equal(before, state(model))


def test_init_auto_falls_back_to_random_weights_if_the_pretrained_ones_fail(colors, caplog):
    base = make_tiny()
    for layer in base.layers:  # all images give the same features, and no gradient passes
        if layer.name.startswith("block1"):
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    model = large_different(base, 3, init="auto", preprocessing="tf")
    log = fit(model, colors, epochs=12, verbose=0, augment="none")
    assert list(dict.fromkeys(log.history["phase"])) == ["head", "fine-tune", "from-scratch"]
    assert log.init == "random" and decision_of(model).init == "random"
    assert "no better than guessing" in caplog.text
    assert model.get_layer("block1_bn").trainable
    assert evaluate(model, colors).accuracy > 0.5


def test_init_auto_keeps_pretrained_weights_that_succeed(colors):
    model = large_different(make_tiny(), 3, init="auto", preprocessing="tf")
    log = fit(model, colors, epochs=1, verbose=0)
    assert "from-scratch" not in log.history["phase"] and log.init == "pretrained"


def test_last_weights_that_are_clearly_worse_are_not_kept(shuffled_folder):
    data = load_data(shuffled_folder, val=0.4)
    model = built("large-similar", learning_rate=0.3)  # so high that training diverges
    log = fit(model, data, epochs=4, verbose=0, augment="none")
    best = max(row["val_accuracy"] for row in log.rows)
    error = np.sqrt(best * (1 - best) / len(data.val))
    assert evaluate(model, data, split="val").accuracy >= best - error - 1e-6


def test_one_seed_gives_one_result_and_another_seed_another(colors):
    def weights(seed):
        model = built("large-similar", seed=seed)
        fit(model, colors, epochs=1, seed=seed, verbose=0)
        return to_numpy(model.layers[-1].kernel)

    first = weights(1)
    assert np.array_equal(first, weights(1))
    assert not np.array_equal(first, weights(2))


def test_fit_works_without_validation_images(color_folder, caplog):
    data = load_data(color_folder, val=0.0)
    model = built("small-similar")
    log = fit(model, data, epochs=2, verbose=0)
    assert len(log.rows) == 2 and "val_loss" not in log.history
    assert "no validation images" in caplog.text


def test_the_log_has_a_row_per_epoch_and_the_seconds(colors):
    log = fit(built("small-different"), colors, epochs=3, verbose=0)
    assert log.history["epoch"] == [1, 2, 3]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(log.rows[0])
    assert log.seconds_features > 0 and log.seconds_training > 0


def test_a_saved_model_loads_without_warnings_and_predicts_the_same(colors, tmp_path, recwarn):
    model = built("small-similar")
    fit(model, colors, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = np.stack([colors.test.image(i, (32, 32)) for i in range(4)])
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))
    assert not [w for w in recwarn if "variable" in str(w.message)]


def test_keras_fit_also_trains_a_built_model(colors):
    model = built("small-different")
    before = state(model)
    images = np.stack([colors.train.image(i, (32, 32)) for i in range(20)])
    model.fit(images, colors.train.labels[:20], epochs=1, verbose=0)
    assert equal(before, state(model)) == set(before)


@pytest.mark.parametrize("case", ["small-similar", "large-similar"])
def test_two_replicas_train_a_base_that_was_made_outside_their_scope(case, colors):
    import tensorflow as tf

    model = built(case, strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    fit(model, colors, epochs=1, verbose=0)
    assert evaluate(model, colors).accuracy >= 0.9
    for variable in model.trainable_weights:
        copies = [to_numpy(v) for v in variable.value.values]
        assert len(copies) == 2 and np.array_equal(*copies)


@pytest.mark.parametrize("options", [{}, {"class_weights": True}, {"recipe": Recipe(mix="mixup")}])
def test_two_replicas_end_with_the_weights_of_one(options):
    """The last batch has 5 images: 3 for one replica, 2 for the other."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    labels = np.arange(110) % 3
    noise = np.clip(rng.normal(120, 60, (110, 32, 32, 3)) + 12 * np.eye(3)[labels][:, None, None], 0, 255)
    data = load_data((noise.astype("uint8"), labels), val=0.2, test=0.1, near_duplicates=False)
    assert len(data.train) % 8 == 5
    results = []
    for strategy in ("default", tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        keras.utils.set_random_seed(0)
        model = built("large-similar", classes=3, strategy=strategy)
        log = fit(model, data, epochs=2, batch_size=8, engine="keras", verbose=0, **options)
        results.append((model.get_weights(), log.history["val_loss"][-1]))
    (one, loss), (two, other) = results
    assert loss == pytest.approx(other, rel=1e-5)
    for some, others in zip(one, two, strict=True):
        np.testing.assert_allclose(others, some, atol=1e-5 * np.abs(some).max())


def test_fewer_images_than_devices_are_refused(colors):
    import tensorflow as tf

    model = built("large-similar", strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    few = replace(colors, val=colors.val.take([0]))
    with pytest.raises(
        InputError, match=r"image for each of the 2 devices.*and 1 validation images\. Use fewer devices"
    ):
        fit(model, few, epochs=1, verbose=0)


def test_gradients_are_not_clipped_on_several_replicas(colors):
    import tensorflow as tf

    model = built("large-similar", strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    with pytest.raises(InputError, match=r"no clip_norm on several devices.*each of the 2 devices"):
        fit(model, colors, epochs=1, recipe=Recipe(clip_norm=1.0), verbose=0)


@pytest.mark.parametrize("case", ["small-similar", "large-similar"])
def test_class_weights_make_small_classes_count_as_much_as_large_ones(case):
    """From noise, only the frequencies of the classes can be learned."""
    x = np.random.default_rng(0).integers(0, 256, (180, 32, 32, 3), dtype="uint8")
    data = load_data((x, np.repeat([0, 1], [150, 30])))

    def probability_of_the_small_class(**options):
        model = built(case, classes=2)
        fit(model, data, epochs=20 if case == "small-similar" else 2, augment="none", verbose=0, **options)
        return float(evaluate(model, data).probabilities[:, 1].mean())

    plain, weighted = probability_of_the_small_class(), probability_of_the_small_class(class_weights=True)
    assert plain < weighted - 0.08 and abs(weighted - 0.5) < 0.1


def test_the_test_images_are_not_read(colors):
    from dataclasses import replace

    from transfer.images.splitting import Split

    class Untouchable(list):
        def __getitem__(self, _):
            raise AssertionError("the test images were read")

    hidden = Split(Untouchable(colors.test.images), colors.test.labels, colors.test.names)
    fit(built("large-similar"), replace(colors, test=hidden), epochs=1, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "Received: 2.5, 32"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "16"}, "Received: 1, '16'"),
        ({"augment": "lite"}, "'light'"),
        ({"flip": "no"}, "flip as True, False or None. Received: 'no'"),
        (
            {"class_weights": {0: 1.0, 1: 5.0}},
            "class_weights as True or False: the weights follow from the data",
        ),
        ({"recipe": {"mix": "mixup"}}, "recipe as a transfer.Recipe or None"),
        ({"cache": "folder"}, "cache as a FeatureCache or None. Received: 'folder'"),
        ({"callbacks": keras.callbacks.EarlyStopping()}, "callbacks as a list of"),
        ({"seed": -1}, "seed as a whole number of 0 or more. Received: -1"),
    ],
)
def test_invalid_options_are_named(options, message, colors):
    with pytest.raises(InputError, match=message):
        fit(built("large-similar"), colors, **{"epochs": 1, "verbose": 0, **options})


def test_a_model_for_other_classes_or_another_size_is_refused(colors, color_folder):
    with pytest.raises(InputError, match="4 classes, but the data have 3"):
        fit(small_similar(make_tiny(), 4, preprocessing="tf"), colors)
    with pytest.raises(InputError, match="32x32"):
        fit(small_different(make_tiny(), 3, preprocessing="tf"), load_data(color_folder, image_size=64))
    model = large_similar(make_tiny(), 3, preprocessing="tf")
    bare = keras.Model(model.inputs, model.outputs)
    with pytest.raises(InputError, match="compiled"):
        fit(bare, colors)


# Views, dropout, label smoothing


def test_a_head_on_several_views_learns_from_all_of_them(colors, tmp_path):
    cache = FeatureCache(tmp_path)
    model = built("small-similar")
    log = fit(model, colors, views=3, augment="light", cache=cache, verbose=0)
    assert log.views == 3 and log.computed == 3 * len(colors.train) + len(colors.val)
    assert evaluate(model, colors, cache=cache).accuracy > 0.8
    alone = fit(built("small-similar"), colors, cache=cache, verbose=0)
    assert alone.computed == 0, "the first view is the image itself"
    assert alone.rows[0]["loss"] != log.rows[0]["loss"]


def test_predictions_are_averaged_over_views(colors, tmp_path):
    cache = FeatureCache(tmp_path)
    model = built("small-similar")  # with a random head: a trained one gives each view the same class
    options = {"augment": "light", "flip": False, "cache": cache}
    one = evaluate(model, colors, cache=cache).probabilities
    three = evaluate(model, colors, views=3, **options).probabilities
    assert np.abs(one - three).max() > 1e-3
    model.trainable = True  # now predicts with the whole model instead of features
    np.testing.assert_allclose(evaluate(model, colors, views=3, **options).probabilities, three, atol=1e-3)
    np.testing.assert_allclose(evaluate(model, colors, cache=cache).probabilities, one, atol=1e-3)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"label_smoothing": 0.3}])
def test_dropout_and_label_smoothing_train_the_head_in_epochs(options, colors, tmp_path):
    cache = FeatureCache(tmp_path)
    plain, other = built("small-similar"), built("small-similar")
    fit(plain, colors, epochs=60, cache=cache, verbose=0)
    log = fit(other, colors, epochs=60, cache=cache, verbose=0, **options)
    assert len(log.rows) > 1
    sure = [evaluate(model, colors, cache=cache).probabilities.max(axis=1).mean() for model in (plain, other)]
    assert evaluate(other, colors, cache=cache).accuracy > 0.8
    assert sure[0] - sure[1] > (0.1 if "label_smoothing" in options else 1e-3)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in other.layers]


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("small-similar", {"dropout": 1.0}, "from 0 to below 1"),
        ("small-similar", {"label_smoothing": -0.1}, "from 0 to below 1"),
        ("small-similar", {"dropout": 0.2, "solver": "exact"}, "solver='exact'"),
        ("large-similar", {"dropout": 0.1}, "dropout=0 for fine-tuning"),
        ("small-similar", {"augment": True}, "Unknown augmentation True"),
        ("small-similar", {"views": 0}, "views of at least 1"),
        ("small-similar", {"views": 1.5}, "views of at least 1"),
        ("small-similar", {"views": 2, "augment": "none"}, "views of at least 1"),
    ],
)
def test_invalid_options_of_the_head_are_refused(case, options, message, colors):
    with pytest.raises(InputError, match=message):
        fit(built(case), colors, verbose=0, **options)


def test_known_features_replace_the_forward_pass(colors, tmp_path):
    model, again = built("small-similar"), built("small-similar")
    images = np.stack([colors.train.image(i, (32, 32)) for i in range(len(colors.train))])
    values = surgery.feature_extractor_of(model).predict(images, verbose=0)
    options = {"engine": "keras", "verbose": 0}
    known = KnownFeatures(colors.train, values)
    log = fit(model, colors, known_features=known, cache=FeatureCache(tmp_path / "known"), **options)
    assert log.computed == len(colors.val)
    expected = fit(again, colors, cache=FeatureCache(tmp_path / "computed"), **options)
    assert expected.computed == len(colors.train) + len(colors.val)
    assert log.rows[0]["val_loss"] == pytest.approx(expected.rows[0]["val_loss"], abs=1e-4)


def test_label_smoothing_of_a_recipe_is_that_of_fit(colors):
    one, other = built("large-similar"), built("large-similar")
    fit(one, colors, epochs=1, label_smoothing=0.3, verbose=0)
    fit(other, colors, epochs=1, recipe=Recipe(label_smoothing=0.3), verbose=0)
    for some, others in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(some, others)


def test_logs_of_phases_add_up():
    rows = [{"phase": "head", "epoch": 1}], [{"phase": "fine-tune", "epoch": 1}]
    head = TrainingLog(rows[0], seconds_features=1.0, computed=3, engine="keras float32", regularization=0.5)
    both = TrainingLog(init="random") + head + TrainingLog(rows[1], seconds_features=2.0, views=2)
    assert both.rows == rows[0] + rows[1] and both.init == "random" and both.views == 2
    assert (both.seconds_features, both.computed, both.regularization) == (3.0, 3, 0.5)
    assert both.engine == "keras float32"
