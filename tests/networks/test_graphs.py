"""Networks told apart by what they compute."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.common.errors import InputError
from transfer.networks import surgery
from transfer.networks.graphs import fingerprint


def wrapped(change, tiny):
    return keras.Model(tiny.inputs[0], change(tiny.outputs[0]))


def test_a_copy_under_other_names_is_the_same_network(tiny):
    copy = surgery.clone(tiny)
    assert fingerprint(copy) == fingerprint(tiny)
    copy.layers[1].name = "renamed"
    assert fingerprint(surgery.clone(copy)) == fingerprint(tiny)


def test_one_weight_makes_another_network(tiny):
    copy = surgery.clone(tiny)
    for layer in copy.layers:
        for weight in layer.weights:
            before = weight.numpy()
            changed = before.copy()
            changed.flat[-1] += 1e-3
            weight.assign(changed)
            assert fingerprint(copy) != fingerprint(tiny), weight.path
            weight.assign(before)
    assert fingerprint(copy) == fingerprint(tiny)


@pytest.mark.parametrize("change", [
    lambda y: y + 1.0,
    lambda y: y * 2.0,
    lambda y: keras.layers.ReLU()(y),
    lambda y: keras.layers.ReLU(max_value=6)(y),
    lambda y: keras.ops.add(y, np.arange(5, dtype="float32")),
    lambda y: keras.ops.transpose(keras.ops.transpose(y)),
    lambda y: keras.layers.Reshape((5, 1))(y),
])  # fmt: skip
def test_another_operation_makes_another_network(change, tiny):
    assert fingerprint(wrapped(change, tiny)) != fingerprint(tiny)


@pytest.mark.parametrize(("one", "other"), [
    (lambda y: y + 1.0, lambda y: y + 2.0),
    (lambda y: keras.ops.add(y, np.zeros(5, "float32")), lambda y: keras.ops.add(y, np.ones(5, "float32"))),
    (lambda y: keras.ops.sum(y, axis=1), lambda y: keras.ops.sum(y, axis=1, keepdims=True)),
    (lambda y: y - keras.ops.relu(y), lambda y: keras.ops.relu(y) - y),
])  # fmt: skip
def test_constants_arguments_and_the_order_of_inputs_count(one, other, tiny):
    assert fingerprint(wrapped(one, tiny)) == fingerprint(wrapped(one, tiny))
    assert fingerprint(wrapped(one, tiny)) != fingerprint(wrapped(other, tiny))


def test_each_number_of_a_long_array_in_a_configuration_counts(tiny):
    class Plus(keras.layers.Layer):
        def __init__(self, numbers, **kwargs):
            super().__init__(**kwargs)
            self.numbers = numbers

        def call(self, x):
            return x + self.numbers[5]

        def get_config(self):
            return {**super().get_config(), "numbers": self.numbers}

    ones = np.ones(2000, "float32")
    other = np.where(np.arange(2000) == 1000, 2, ones)
    assert fingerprint(wrapped(Plus(ones), tiny)) == fingerprint(wrapped(Plus(ones.copy()), tiny))
    assert fingerprint(wrapped(Plus(ones), tiny)) != fingerprint(wrapped(Plus(other), tiny))


@pytest.mark.parametrize("kind", [AttributeError, NotImplementedError, ZeroDivisionError])
def test_a_layer_that_cannot_say_what_it_is_made_of_is_named(kind, tiny):
    class Stubborn(keras.layers.Layer):
        def get_config(self):
            raise kind("not today")

        def call(self, x):
            return x

    with pytest.raises(InputError, match=r"'stubborn' cannot be copied .*Stubborn fails: not today"):
        fingerprint(wrapped(Stubborn(name="stubborn"), tiny))


def test_sharing_a_layer_counts():
    image = keras.Input((4,))
    dense, other = keras.layers.Dense(4), keras.layers.Dense(4)
    other.build((None, 4))
    shared = keras.Model(image, dense(dense(image)))
    other.set_weights(dense.get_weights())
    assert fingerprint(shared) != fingerprint(keras.Model(image, other(dense(image))))


def test_preprocessing_and_size_count():
    assert fingerprint(make_tiny(image_size=32)) != fingerprint(make_tiny(image_size=64))
    tiny = make_tiny()
    halved = surgery.clone(tiny, preprocess=keras.layers.Rescaling(0.5))
    assert fingerprint(halved) != fingerprint(surgery.clone(tiny, preprocess=keras.layers.Rescaling(0.25)))


def test_it_is_the_same_in_another_process():
    code = """
import keras, numpy as np
from transfer.networks.graphs import fingerprint
for _ in range(3): keras.layers.Dense(2)  # other counters
model = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3), include_top=False)
for i, w in enumerate(model.weights): w.assign(np.random.default_rng(i).random(w.shape))
print(fingerprint(model))
"""
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=None
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1 and len(runs.pop().strip()) == 64
