"""Folding frozen BatchNormalization changes neither outputs nor gradients."""

import keras
import numpy as np
import pytest

from transfer.evaluation.explanations import explain
from transfer.networks.folding import FoldedConvolution, fold_batchnorm

layers = keras.layers


def network(norm=None, size=9):
    """A network of all kinds of convolutions, with statistics and weights that matter."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3))
    x = image
    for convolution in (
        layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
        layers.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="normal"),
        layers.Conv2D(6, 1, bias_initializer="normal"),
        layers.Conv2D(6, 1, strides=2),
        layers.Conv2D(8, 1, groups=2) if keras.backend.backend() == "jax" else layers.Conv2D(8, (1, 2)),
    ):
        x = layers.ReLU(6.0)((norm or frozen)()(convolution(x)))
    return randomized(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))


def frozen(**options):
    layer = layers.BatchNormalization(**options)
    layer.trainable = False
    return layer


def randomized(model):
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            low = {"gamma": 0.3, "moving_variance": 0.3}
            layer.set_weights(
                [draw.uniform(low.get(one.name, -0.3), 1.5, one.shape) for one in layer.weights]
            )
    return model


def count_folded(model):
    return sum(isinstance(layer, FoldedConvolution) for layer in model.layers)


images = np.random.default_rng(1).normal(size=(4, 9, 9, 3)).astype("float32")


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
@pytest.mark.parametrize("size", [9, None])
def test_outputs_are_equal(options, size):
    model = network(lambda: frozen(**options), size)
    folded = fold_batchnorm(model)
    assert count_folded(folded) == 5
    expected = np.asarray(model(images))
    assert expected.std() > 0.01
    np.testing.assert_allclose(folded(images), expected, rtol=1e-4, atol=1e-5)


def test_training_steps_are_equal_and_change_the_same_variables():
    models = network(), network()
    folded = fold_batchnorm(models[1])
    assert {id(v) for v in folded.trainable_variables} == {id(v) for v in models[1].trainable_variables}
    before = models[0].get_weights()
    for model in (models[0], folded):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(images, np.ones((4, 3)), epochs=2, verbose=0)
    for first, one, other, weight in zip(
        before, *(m.get_weights() for m in models), models[0].weights, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
        assert weight.trainable or np.array_equal(other, first)


def test_other_normalization_stays():
    model = network(layers.BatchNormalization)
    assert fold_batchnorm(model) is model, "it trains"
    model = network(lambda: frozen(axis=1))
    assert count_folded(fold_batchnorm(model)) == 0, "it does not normalize channels"


def test_explanations_of_a_folded_model_are_equal():
    """They show the same layers and regions, also where normalization was trained."""
    model = network(layers.BatchNormalization, 64)
    folded = fold_batchnorm(model, frozen_only=False)
    assert count_folded(folded) == 5
    photos = np.random.default_rng(2).normal(size=(6, 64, 64, 3)).astype("float32")
    (heat, responses), (expected, others) = (explain(one, photos, 3) for one in (folded, model))
    assert expected.any()
    np.testing.assert_allclose(heat, expected, atol=1e-3)
    assert [(r.layer, r.filter, r.field, r.places) for r in responses] == [
        (r.layer, r.filter, r.field, r.places) for r in others
    ]


def test_a_convolution_with_another_use_or_an_activation_stays():
    image = keras.Input((9, 9, 3))
    used = layers.Conv2D(3, 3)(image)
    sum_ = layers.Add()([used, frozen()(used)])
    active = frozen()(layers.Conv2D(3, 3, activation="relu")(sum_))
    model = randomized(keras.Model(image, active))
    assert fold_batchnorm(model) is model
