"""New layers start with given values: without random numbers, and equal to a copy afterwards."""

import keras
import numpy as np
import pytest

from transfer import load_backbone
from transfer.networks import surgery
from transfer.networks.initial_values import initial_values

layers = keras.layers


def small_network() -> keras.Model:
    """A network of the layers that are copied as they are created."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.LayerNormalization(name="layer_norm")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, layers.Dense(2, name="dense")(x))
    random = np.random.default_rng(0)
    model.set_weights([random.random(weight.shape) for weight in model.get_weights()])
    return model


@pytest.fixture
def no_random_numbers(monkeypatch):
    def draw(self, shape, dtype=None):
        raise AssertionError("drew random numbers")

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", draw)


def test_a_layer_starts_with_given_values_and_keeps_its_initializer():
    dense = layers.Dense(2, kernel_initializer="he_normal")
    kernel = np.arange(6, dtype="float32").reshape(3, 2)
    with initial_values(dense, lambda name, shape: kernel if name == "kernel" else None) as found:
        dense(keras.Input((3,)))
    assert found == ["kernel"] and "add_weight" not in vars(dense)
    assert np.array_equal(dense.kernel, kernel) and not np.any(dense.bias)
    assert dense.get_config()["kernel_initializer"]["class_name"] == "HeNormal"


def test_a_copy_draws_no_random_numbers_and_is_equal(request):
    model = small_network()
    request.getfixturevalue("no_random_numbers")
    copy = surgery.clone(model)
    assert [weight.path for weight in copy.weights] == [weight.path for weight in model.weights]
    for old, new in zip(model.get_weights(), copy.get_weights(), strict=True):
        assert np.array_equal(old, new)
    model.set_weights([weight * 0 for weight in model.get_weights()])
    assert all(np.any(weight) for weight in copy.get_weights())  # the copy shares no memory


def test_a_frozen_layer_is_copied():
    model = small_network()
    model.trainable = False
    for old, new in zip(model.get_weights(), surgery.clone(model).get_weights(), strict=True):
        assert np.array_equal(old, new)


def test_a_layer_that_changes_its_variables_when_it_is_built_is_copied_too():
    @keras.saving.register_keras_serializable("test_initial_values")
    class Doubled(layers.Dense):
        def build(self, shape):
            super().build(shape)
            self.kernel.assign(2 * self.kernel)

    image = keras.Input((3,))
    model = keras.Model(image, Doubled(2)(image))
    assert np.array_equal(surgery.clone(model).get_weights()[0], model.get_weights()[0])


def test_a_shared_layer_is_copied_once():
    image, dense = keras.Input((3,)), layers.Dense(3)
    model = keras.Model(image, dense(dense(image)))
    copy = surgery.clone(model)
    assert len(copy.weights) == 2 and np.array_equal(copy.get_weights()[0], model.get_weights()[0])


def test_pretrained_weights_need_no_random_numbers(no_random_numbers):
    model = load_backbone("EfficientNetLite0", image_size=32)
    assert np.any(model.get_layer("predictions").kernel)
    assert model.get_layer("stem_conv").kernel_initializer.scale == 2
