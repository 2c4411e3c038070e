"""Training the layers behind a frozen part gives the same result as training the whole model."""

import logging

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, make_tiny, snapshot, two_replicas
from keras.ops import convert_to_numpy as to_numpy

from transfer.cases.builders import build, large_similar, small_similar, unfreeze
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.frozen.feature_cache import FeatureCache
from transfer.networks.folding import FoldedConvolution, fold_batchnorm
from transfer.training import fine_tuning, upper_layers
from transfer.training.fit import fit


def built(first="block3", **options):
    return build("small-similar", make_tiny(), 3, preprocessing="tf", unfreeze_from=first, **options)


def train(model, data, cache, **options):
    return fit(model, data, **{"epochs": 3, "augment": "none", "cache": cache, "verbose": 0, **options})


def weights_of(model):
    return {layer.name: [to_numpy(w) for w in layer.weights] for layer in model.layers if layer.weights}


@pytest.mark.parametrize("first", ["block2_branch", "block3", "block3_branch"])
def test_without_augmentation_it_is_training_the_whole_model(first, colors, cache, monkeypatch):
    parted, whole = built(first), built(first)
    log = train(parted, colors, cache)
    monkeypatch.setattr(upper_layers, "split_model", lambda model: None)
    expected = train(whole, colors, cache)
    assert (
        log.history["phase"] == expected.history["phase"] == ["head", "fine-tune", "fine-tune", "fine-tune"]
    )
    for column in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(log.history[column], expected.history[column], rtol=1e-3, atol=1e-4)
    start = weights_of(built(first))
    for name, after in weights_of(whole).items():
        for a, b, c in zip(weights_of(parted)[name], after, start[name], strict=True):
            moved = np.abs(b - c).max()
            assert np.abs(a - b).max() <= 0.02 * moved + 1e-6, name


def test_frozen_layers_are_bit_equal_afterwards_and_the_others_have_changed(colors, cache):
    model = built("block3")
    before = weights_of(model)
    log = train(model, colors, cache, augment="light", views=3)
    same = {
        name
        for name, old in before.items()
        if all(np.array_equal(a, b) for a, b in zip(old, weights_of(model)[name], strict=True))
    }
    assert {name for name in before if name.startswith(("block1", "block2"))} <= same
    assert "block3_bn" in same, "pinned"
    assert not {"block3_conv", "block3_branch", model.layers[-1].name} & same
    assert log.views == 3


def test_without_views_images_are_not_augmented_and_this_is_logged(colors, cache, caplog):
    caplog.set_level(logging.INFO, "transfer")
    changed, unchanged = built(), built()
    log = train(changed, colors, cache, augment="light")
    assert log.views == 1 and "process each image once, without augmentation" in caplog.text
    caplog.clear()
    train(unchanged, colors, cache, augment="none")
    assert_bit_equal(snapshot(changed), snapshot(unchanged))
    assert "process each image once" not in caplog.text


def test_views_differ_and_are_cached(colors, cache):
    model = built()
    first = train(model, colors, cache, augment="light", views=2)
    assert first.views == 2
    count, val = len(colors.train), len(colors.val)
    assert first.computed == count + val + 2 * count + val, "the head's features, then the frozen part's"
    again = train(built(), colors, cache, augment="light", views=2)
    assert again.computed == 0
    assert again.history["val_loss"] == first.history["val_loss"]
    other = train(built(), colors, cache, augment="light", views=2, seed=1)
    assert other.computed > 0, "another seed gives other views"


def test_a_model_without_frozen_layers_or_on_replicas_is_not_split(colors):
    assert upper_layers.split_model(large_similar(make_tiny(), 3, preprocessing="tf")) is None
    assert upper_layers.split_model(built()) is not None
    assert upper_layers.split_model(built(strategy=two_replicas())) is None


def test_frozen_normalization_is_folded_on_one_device_only(colors, cache, monkeypatch):
    models = []
    monkeypatch.setattr(
        upper_layers, "fold_batchnorm", lambda model: (models.append(model), fold_batchnorm(model))[1]
    )
    model = large_similar(make_tiny(), 3, preprocessing="tf")
    folded = upper_layers.folded(model).layers
    assert any(isinstance(layer, FoldedConvolution) for layer in folded) and models == [model]
    train(model, colors, cache, epochs=1, initial_head="keep")
    assert len(models) == 2, "`fit` folds it, too"
    other = large_similar(make_tiny(), 3, preprocessing="tf", strategy=two_replicas())
    assert upper_layers.folded(other) is other and len(models) == 2


def test_without_room_in_the_cache_the_whole_model_is_trained(colors, tmp_path, caplog):
    small = FeatureCache(tmp_path / "small", limit=200_000)
    model = built()
    caplog.set_level(logging.INFO, "transfer")
    log = train(model, colors, small, augment="light")
    assert "process each image once" not in caplog.text
    assert log.history["phase"][-1] == "fine-tune"
    assert "the cache has room for 0.0 GB" in caplog.text
    assert log.views == 1


def test_a_callback_sees_the_whole_model_although_the_frozen_layers_run_once(colors, cache, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fine_tuning, "_whole_model", lambda settings: pytest.fail("the frozen layers run again")
    )

    class Recorder(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model)

    model = built()
    train(model, colors, cache, callbacks=[Recorder()])
    assert seen == [model, model]  # in both phases


def test_the_saved_model_predicts_the_same_and_trains_on(colors, cache, tmp_path):
    model = built()
    train(model, colors, cache)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = np.stack([colors.test.image(i, (32, 32)) for i in range(6)])
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6)
    shapes = [[tuple(v.shape) for v in m.optimizer.variables] for m in (loaded, model)]
    assert shapes[0] == shapes[1]
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    assert int(model.optimizer.iterations) == 3 * -(-len(colors.train) // 32)


def test_it_learns_colors(colors, cache):
    model = built(learning_rate=1e-3)
    train(model, colors, cache, augment="light", epochs=5)
    assert evaluate(model, colors, cache=cache).accuracy > 0.8


def test_a_block_can_be_named_by_the_prefix_of_its_layers(colors):
    model = built("block3")
    flags = {layer.name: layer.trainable for layer in model.layers}
    assert not flags["block2_branch"] and flags["block3_conv"] and flags["block3_branch"]
    assert not flags["block3_bn"], "pinned"
    states = dict(decision_of(model).blocks)
    assert states["block3_add"] == "trained" and states["block2_add"] == "frozen"
    with pytest.raises(InputError, match="block3"):
        unfreeze(small_similar(make_tiny(), 3, preprocessing="tf"), from_layer="blok3")
    with pytest.raises(InputError, match="trains all"):
        build("large-similar", make_tiny(), 3, preprocessing="tf", unfreeze_from="block3")
