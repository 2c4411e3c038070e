"""Copies of networks with layers that get_config() does not describe: custom layers, subclassed blocks, Lambda."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, assert_same_function, raw_images, snapshot, two_replicas

import transfer
from transfer.common.errors import InputError
from transfer.common.keras_private import all_layers, count_calls
from transfer.networks import surgery
from transfer.networks.graphs import fingerprint

layers = keras.layers
IMAGES = raw_images(size=16) / 255.0


class Times(layers.Layer):
    """A layer without **kwargs: Keras cannot build it from its configuration."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor


class Project(layers.Layer):
    """A layer whose get_config() omits an argument without a default."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), trainable=False, initializer="ones", name="shift")
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, x):
        return (x + self.shift) @ self.kernel

    def get_config(self):
        return super().get_config()


class Omits(layers.Layer):
    """A layer whose get_config() omits an argument that has a default, and that it keeps under another name."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self._value = factor

    def call(self, x):
        return x * self._value

    def get_config(self):
        return super().get_config()


class Block(keras.Model):
    """A subclassed block with lists and dictionaries of layers."""

    def __init__(self, filters):
        super().__init__()
        self.convs = [layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(2)]
        self.rest = {"norm": layers.BatchNormalization(), "drop": (layers.Dropout(0.3), self.convs[0])}

    def call(self, x, training=False):
        for conv in self.convs:
            x = conv(x)
        return self.rest["drop"][0](self.rest["norm"](x, training=training), training=training)


class Chain(layers.Layer):
    """A layer that calls the layers or models that it is given."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = list(inner)

    def call(self, x, training=False):
        for layer in self.inner:
            x = layer(x)
        return x


class Enclosed(layers.Layer):
    """A layer that keeps a function around a layer, a method and a random generator."""

    def __init__(self, generator):
        super().__init__()
        conv = self.conv = layers.Conv2D(4, 3)
        self.run, self.way, self.generator, self.last = (lambda x: conv(x)), self.noisy, generator, None

    def noisy(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.generator)

    def call(self, x, training=False):
        self.last = self.run(x)
        return self.way(self.last) if training else self.last


class Tied(layers.Layer):
    """A layer that computes with the kernel of another layer of the network."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def call(self, x):
        return keras.ops.conv_transpose(x, self.other.kernel, padding="same")


class OwnSequential(keras.Sequential):
    def __init__(self, filters):
        super().__init__([layers.Conv2D(filters, 3), Times(2.0), layers.BatchNormalization()])


class OwnFunctional(keras.Model):
    def __init__(self, filters):
        image = keras.Input((16, 16, 3))
        super().__init__(image, Times(2.0)(layers.Conv2D(filters, 3)(image)))


class OwnCall(keras.Model):
    """A functional model that does more than call its layers."""

    def call(self, x, training=False, mask=None):
        return 2 * super().call(x, training=training)


class Normal(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype)


def swish(x):
    return x * keras.ops.sigmoid(1.7 * x)


def network(call) -> keras.Model:
    image = keras.Input((16, 16, 3), name="photo")
    maps = layers.Conv2D(3, 1, name="stem")(image)
    return keras.Model(image, layers.GlobalAveragePooling2D()(call(maps)), name="own")


def inner_model() -> keras.Model:
    image = keras.Input((16, 16, 3))
    return keras.Model(image, Times(2.0)(layers.BatchNormalization()(layers.Conv2D(4, 3)(image))))


def own_call() -> keras.Model:
    image = keras.Input((16, 16, 3))
    return OwnCall(image, layers.Conv2D(4, 3)(image))


def shared_by_nested_models(x):
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    image = keras.Input((16, 16, 3))
    first = keras.Sequential([keras.Input((16, 16, 3)), shared, layers.ReLU()], name="first")
    second = keras.Model(image, shared(shared(image)), name="second")
    return shared(second(first(x)))


def two_inputs_and_outputs(x):
    one, two = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    pair = keras.Model(
        [one, two], [layers.Conv2D(3, 3, padding="same")(one), Times(0.5)(layers.Add()([one, two]))]
    )
    first, second = pair([x, 2 * x])
    return layers.Concatenate()(pair([second, first]))


def tied(x):
    conv = layers.Conv2D(3, 3, padding="same", use_bias=False)
    return Tied(conv)(conv(x))


KINDS = {
    "without kwargs": lambda: Times(3.0),
    "an argument omitted": lambda: Project(5),
    "a default omitted": lambda: Omits(5.0),
    "subclassed block": lambda: Block(4),
    "list of layers": lambda: Chain(layers.Conv2D(4, 3), Times(2.0), Block(4)),
    "holds models": lambda: Chain(inner_model(), layers.Conv2D(4, 3), OwnSequential(4)),
    "encloses layers": lambda: Enclosed(keras.random.SeedGenerator(1)),
    "wraps": lambda: layers.TimeDistributed(layers.Dense(4, activation=swish)),
    "own sequential": lambda: OwnSequential(4),
    "own functional": lambda: OwnFunctional(4),
    "own call": own_call,
    "own functions": lambda: layers.Conv2D(4, 3, activation=swish, kernel_initializer=Normal()),
    "shared by nested models": lambda: shared_by_nested_models,
    "two inputs and outputs": lambda: two_inputs_and_outputs,
    "tied": lambda: tied,
    "lambda": lambda: layers.Lambda(lambda x: keras.ops.relu(x - 0.1)),
    "lambda with a name": lambda: layers.Lambda(swish),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = network(KINDS[kind]())
    for weight in model.weights:
        weight.assign(np.abs(np.random.normal(1, 0.3, weight.shape)))
    return model


@kinds
def test_a_copy_is_equal_independent_and_of_the_same_fingerprint(kind):
    model = make(kind)
    before, calls = snapshot(model), [count_calls(layer) for layer in all_layers(model)]
    model.get_layer("stem").trainable = False
    copy = surgery.clone(model)
    assert_same_function(model, copy, IMAGES, tolerance=0)
    assert [layer.name for layer in copy.layers[1:]] == [layer.name for layer in model.layers[1:]]
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    assert fingerprint(copy) == fingerprint(model)
    first, second = (np.asarray(m(IMAGES, training=True)) for m in (model, copy))
    np.testing.assert_array_equal(first, second)  # also random numbers

    parts = [
        {id(part) for layer in all_layers(m) for part in (layer, *layer.variables)} for m in (model, copy)
    ]
    assert not parts[0] & parts[1] and len(parts[0]) == len(parts[1])
    kept = snapshot(model)
    copy.trainable = True
    copy.set_weights([w + 1 for w in copy.get_weights()])
    copy(IMAGES, training=True)
    assert not model.get_layer("stem").trainable
    assert_bit_equal(snapshot(model), kept)
    assert [count_calls(layer) for layer in all_layers(model)] == calls and len(before) == len(kept)


@kinds
def test_all_cases_are_built_and_train_only_their_layers(kind):
    model = make(kind)
    before = snapshot(model)
    for case in transfer.Case:
        built = transfer.build(case, model, 3, preprocessing="none")
        values = {weight.path: np.asarray(weight) for weight in built.weights}
        built.run_eagerly = True
        built.train_on_batch(IMAGES, np.arange(len(IMAGES)) % 3)
        trained = {weight.path for weight in built.trainable_weights}
        changed = {weight.path for weight in built.weights if not np.array_equal(weight, values[weight.path])}
        frozen = case in (transfer.Case.SMALL_SIMILAR, transfer.Case.SMALL_DIFFERENT)
        assert all("head" in path for path in trained) == frozen
        assert {path for path in changed if "seed" not in path} <= trained and any(
            "head" in path for path in changed
        )
    assert_bit_equal(snapshot(model), before)


@kinds
def test_random_weights_are_new_and_follow_the_seed(kind):
    model = make(kind)
    one, same, other = (surgery.clone(model, weights="random", seed=s).get_weights() for s in (1, 1, 2))
    kernels = [i for i, w in enumerate(one) if w.ndim > 1]
    if kind != "own functions":  # its initializer has no seed that Keras could set
        assert_bit_equal(one, same)
    assert all((one[i] != other[i]).any() and (one[i] != model.get_weights()[i]).any() for i in kernels)


@kinds
def test_a_copy_has_its_variables_in_the_strategy(kind):
    model = make(kind)
    with two_replicas().scope():
        copy = surgery.clone(model)
    assert all(
        len(variable.value.values) == 2 for variable in copy.variables if hasattr(variable.value, "values")
    )
    assert {type(variable.value) for variable in copy.trainable_variables} <= {
        type(copy.get_layer("stem").kernel.value)
    }
    assert_same_function(model, copy, IMAGES, tolerance=1e-6)


def test_a_layer_that_cannot_be_copied_is_one_sentence_with_the_remedy():
    class Locked(layers.Layer):
        def __init__(self, lock):
            super().__init__(name="locked")
            self.lock = lock

        def call(self, x):
            return x

    with pytest.raises(
        InputError, match=r"'locked' cannot be copied.*its lock cannot.*Return all arguments"
    ) as error:
        surgery.clone(network(Locked(threading.Lock())))
    assert "\n" not in str(error.value)


def test_random_weights_need_to_know_how_they_are_drawn():
    class Drawn(layers.Layer):
        def __init__(self, *sizes):
            super().__init__(name="drawn")

        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale")

        def call(self, x):
            return x * self.scale

    model = network(Drawn(1))
    assert_same_function(model, surgery.clone(model), IMAGES, tolerance=0)
    with pytest.raises(InputError, match=r"'drawn' cannot be copied.*scale_initializer"):
        surgery.clone(model, weights="random")


def test_a_layer_that_is_filled_later_is_not_built_again_without_its_parts():
    class Filled(layers.Layer):
        def __init__(self):
            super().__init__(name="filled")
            self.parts = []

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    layer = Filled()
    layer.parts.append(layers.Conv2D(4, 3))
    model = network(layer)
    assert_same_function(model, surgery.clone(model), IMAGES, tolerance=0)
    with pytest.raises(InputError, match=r"'filled' cannot be copied.* 1 layers instead of 2"):
        surgery.clone(model, image_size=(20, 20))


def test_a_network_of_another_size_does_not_share_the_layers_in_a_list():
    class Steps(layers.Layer):
        def __init__(self, steps):
            super().__init__()
            self.steps = steps

        def call(self, x):
            return self.steps[1](self.steps[0](x))

    model = network(Steps([layers.Conv2D(4, 3), Times(2.0)]))
    copy = surgery.clone(model, image_size=(20, 20))
    assert not {id(weight) for weight in model.weights} & {id(weight) for weight in copy.weights}
    np.testing.assert_array_equal(copy.get_weights()[2], model.get_weights()[2])


@pytest.mark.parametrize("how", [{"image_size": (20, 20)}, {"weights": "random"}])
def test_an_omitted_argument_keeps_its_value_where_layers_are_built_again(how):
    copy = surgery.clone(network(Omits(5.0)), **how)
    assert next(layer for layer in copy.layers if isinstance(layer, Omits))._value == 5.0


def test_a_copy_of_another_size_is_built_again():
    class Positions(layers.Layer):
        def build(self, shape):
            self.places = np.linspace(0, 1, shape[2], dtype="float32")[:, None]

        def call(self, x):
            return x + self.places

    copy = surgery.clone(network(Positions()), image_size=(20, 20))
    assert copy(np.zeros((1, 20, 20, 3))).shape == (1, 3)


def test_the_precision_reaches_the_layers_in_a_block():
    copy = surgery.clone(network(Block(4)), precision="mixed_bfloat16")
    block = next(layer for layer in copy.layers if isinstance(layer, Block))
    assert {layer.compute_dtype for layer in all_layers(block)} == {"bfloat16"}
    assert {weight.dtype for weight in block.trainable_weights} == {"float32"}


def test_low_rank_matrices_in_a_block_are_added_in_copies():
    model = network(Chain(layers.Dense(4), Times(2.0)))
    dense = next(layer for layer in all_layers(model) if isinstance(layer, layers.Dense))
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    copy = surgery.clone(model)
    assert_same_function(model, copy, IMAGES, tolerance=1e-6)
    assert not any("lora" in weight.path for weight in copy.weights)


@pytest.mark.parametrize(
    "one, other",
    [
        (Omits(2.0), Omits(3.0)),
        (Chain(Times(2.0)), Chain(Times(3.0))),
        (layers.Lambda(lambda x: x * 2.0), layers.Lambda(lambda x: x * 3.0)),
        (layers.Activation(lambda x: x * 2.0), layers.Activation(lambda x: x * 3.0)),
        (layers.Lambda((lambda k: lambda x: x * k)(2.0)), layers.Lambda((lambda k: lambda x: x * k)(3.0))),
    ],
)
def test_the_fingerprint_tells_layers_apart_that_their_configuration_does_not(one, other):
    image = keras.Input((16, 16, 3))
    first, second = (keras.Model(image, layer(image)) for layer in (one, other))
    assert fingerprint(first) != fingerprint(second)


class Complete(Block):
    """A subclassed block that plain Keras loads."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters)
        self.filters = filters
        self.name = kwargs.get("name", self.name)

    def get_config(self):
        return {"name": self.name, "filters": self.filters}


def test_a_trained_copy_is_loaded_by_plain_keras_with_the_same_classes(tmp_path):
    x = keras.Input((16, 16, 3))
    maps = layers.Conv2D(3, 3, activation=swish)(Complete(4)(x))
    base = keras.Model(x, Omits()(layers.Lambda(swish)(maps)))
    model = transfer.large_similar(base, 3, preprocessing="none")
    model.train_on_batch(IMAGES, np.arange(len(IMAGES)) % 3)
    model.save(tmp_path / "model.keras")
    own = {kind.__name__: kind for kind in (Complete, Omits, swish)}
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects=own, compile=False)
    assert_same_function(model, again, IMAGES, tolerance=1e-6)
