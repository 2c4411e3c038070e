"""Fingerprints of networks, and operations with several outputs."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.networks import surgery
from transfer.networks.graphs import analyze, call_again, fingerprint, graph


def wrapped(change, tiny):
    return keras.Model(tiny.inputs[0], change(tiny.outputs[0]))


def test_a_copy_with_other_names_has_the_same_fingerprint(tiny):
    copy = surgery.clone(tiny)
    assert fingerprint(copy) == fingerprint(tiny)
    copy.layers[1].name = "renamed"
    assert fingerprint(surgery.clone(copy)) == fingerprint(tiny)


def test_one_weight_changes_the_fingerprint(tiny):
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
def test_another_operation_changes_the_fingerprint(change, tiny):
    assert fingerprint(wrapped(change, tiny)) != fingerprint(tiny)


@pytest.mark.parametrize(("one", "other"), [
    (lambda y: y + 1.0, lambda y: y + 2.0),
    (lambda y: keras.ops.add(y, np.zeros(5, "float32")), lambda y: keras.ops.add(y, np.ones(5, "float32"))),
    (lambda y: keras.ops.sum(y, axis=1), lambda y: keras.ops.sum(y, axis=1, keepdims=True)),
    (lambda y: y - keras.ops.relu(y), lambda y: keras.ops.relu(y) - y),
])  # fmt: skip
def test_constants_arguments_and_the_order_of_inputs_change_the_fingerprint(one, other, tiny):
    assert fingerprint(wrapped(one, tiny)) == fingerprint(wrapped(one, tiny))
    assert fingerprint(wrapped(one, tiny)) != fingerprint(wrapped(other, tiny))


def test_each_number_of_a_long_array_in_a_configuration_changes_the_fingerprint(tiny):
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


def test_a_layer_without_a_configuration_is_described_by_its_attributes(tiny):
    class Stubborn(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def get_config(self):
            raise ZeroDivisionError("not today")

        def call(self, x):
            return self.factor * x

    one, same, other = (fingerprint(wrapped(Stubborn(factor), tiny)) for factor in (2.0, 2.0, 3.0))
    assert one == same != other


def test_sharing_a_layer_changes_the_fingerprint():
    image = keras.Input((4,))
    dense, other = keras.layers.Dense(4), keras.layers.Dense(4)
    other.build((None, 4))
    shared = keras.Model(image, dense(dense(image)))
    other.set_weights(dense.get_weights())
    assert fingerprint(shared) != fingerprint(keras.Model(image, other(dense(image))))


def test_preprocessing_and_image_size_change_the_fingerprint():
    assert fingerprint(make_tiny(image_size=32)) != fingerprint(make_tiny(image_size=64))
    tiny = make_tiny()
    halved = surgery.clone(tiny, preprocess=keras.layers.Rescaling(0.5))
    assert fingerprint(halved) != fingerprint(surgery.clone(tiny, preprocess=keras.layers.Rescaling(0.25)))


def test_the_fingerprint_is_the_same_in_another_process():
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


def test_analyze_returns_all_that_is_known_of_a_graph(tiny):
    network = analyze(tiny)
    assert network.name == "tiny" and network.family is None and network.has_classifier
    assert network.block_ends == ("block1_add", "block2_add", "block3_add")
    assert network.last_layer == "pool"
    assert network.output("pool") is tiny.get_layer("pool").output
    assert network.names[network.block_start("block2")] == "block2_conv"


def test_an_operation_with_several_outputs_is_called_again_once():
    calls = []

    class Halves(keras.layers.Layer):
        def call(self, x):
            calls.append(1)
            return x / 2, -x / 2

    image = keras.Input((4,))
    left, right = Halves()(image)
    nodes = graph(keras.Model(image, keras.layers.Add()([left, right * 3.0])))
    calls.clear()
    values = call_again(nodes, {0: np.ones((1, 4), "float32")}, range(1, len(nodes)))
    assert len(calls) == 1 and list(values) == [len(nodes) - 1]
    np.testing.assert_allclose(values[len(nodes) - 1], -np.ones((1, 4)))
