"""Cloning, slicing, freezing, heads, and the analysis of graphs, on small networks of every kind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import keras
import numpy as np
import pytest
from helpers.networks import (
    assert_bit_equal,
    assert_same_function,
    calibrate,
    flags,
    infer,
    make_tiny,
    policy,
    raw_images,
    snapshot,
)

from transfer.common.errors import InputError
from transfer.networks import graphs, surgery
from transfer.networks.backbones import load_backbone

layers = keras.layers
IMAGES = raw_images(size=16) / 255.0


def chain(*inside, name="chain", shape=(16, 16, 3)) -> keras.Sequential:
    return keras.Sequential([keras.Input(shape), *inside], name=name)


def functional(call, *, shape=(16, 16, 3), name="own") -> keras.Model:
    image = keras.Input(shape)
    return keras.Model(image, call(image), name=name)


def normalizing_efficientnet() -> keras.Model:
    model = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))
    normalization = next(x for x in model.layers if isinstance(x, layers.Normalization))
    normalization.adapt_mean.assign([0.4, 0.5, 0.6])
    normalization.adapt_variance.assign([0.1, 0.2, 0.3])
    normalization.finalize_state()
    calibrate(model, raw_images())
    return model


def nested() -> keras.Model:
    inner = chain(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Dropout(0.5), name="inner")
    calibrate(inner, IMAGES)
    return chain(inner, layers.GlobalAveragePooling2D(), layers.Dense(2, "softmax"), name="outer")


def twice_used() -> keras.Model:
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    return functional(lambda x: shared(shared(x)))


class Doubled(keras.Model):
    """A subclass of keras.Model with a functional graph."""


def of_own_class() -> keras.Model:
    image = keras.Input((16, 16, 3))
    return Doubled(image, layers.Conv2D(2, 3)(image), name="doubled")


NETWORKS = {
    "functional": lambda: make_tiny(image_size=16),
    "sequential": lambda: chain(layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)),
    "nested": nested,
    "shared layer": twice_used,
    "subclass": of_own_class,
    "operations without layers": lambda: functional(lambda x: keras.ops.multiply(x, x) + 1.0),
    "lambda": lambda: functional(lambda x: layers.Lambda(lambda t: 2 * t)(x)),
}


# Clone


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_clone_computes_the_same_with_the_same_layer_names(kind):
    model = NETWORKS[kind]()
    clone = surgery.clone(model)
    assert_same_function(model, clone, IMAGES, tolerance=0)
    assert clone.name == model.name
    ours, theirs = ([n.op.name for n in graphs.graph(m)[1:]] for m in (clone, model))
    assert ours == theirs
    assert_bit_equal(snapshot(clone), snapshot(model))


@pytest.mark.parametrize("kind", ["functional", "sequential", "nested"])
def test_a_clone_shares_nothing_with_its_original(kind):
    model = NETWORKS[kind]()
    clone = surgery.clone(model)
    before, flags_before = snapshot(model), flags(model)
    clone.set_weights([w + 1 for w in clone.get_weights()])
    clone.trainable = False
    clone(IMAGES, training=True)
    assert_bit_equal(snapshot(model), before)
    assert flags(model) == flags_before
    assert not any((a == b).all() for a, b in zip(snapshot(clone), before, strict=True))


def test_a_clone_of_a_compiled_model_is_not_compiled_and_leaves_it_alone():
    model = make_tiny()
    model.compile("sgd", "sparse_categorical_crossentropy")
    optimizer = model.optimizer
    assert not surgery.clone(model).compiled
    assert model.optimizer is optimizer


def test_a_clone_copies_the_statistics_of_normalization():
    model = normalizing_efficientnet()
    for weights in ("copy", "random"):
        clone = surgery.clone(model, weights=weights)
        normalization = next(x for x in clone.layers if isinstance(x, layers.Normalization))
        np.testing.assert_allclose(np.ravel(normalization.mean), [0.4, 0.5, 0.6], rtol=1e-6)
        np.testing.assert_allclose(np.ravel(normalization.variance), [0.1, 0.2, 0.3], rtol=1e-6)
    assert_same_function(model, surgery.clone(model), raw_images())


def test_random_weights_keep_the_statistics_of_a_nested_normalization():
    inner = chain(layers.Normalization(name="scale"), layers.Conv2D(2, 3, name="conv"), name="inner")
    inner.get_layer("scale").adapt(IMAGES)
    clone = surgery.clone(chain(inner), weights="random").get_layer("inner")
    assert_bit_equal(clone.get_layer("scale").get_weights(), inner.get_layer("scale").get_weights())
    assert (clone.get_layer("conv").kernel.numpy() != inner.get_layer("conv").kernel.numpy()).any()
    np.testing.assert_allclose(
        clone.get_layer("scale")(IMAGES), inner.get_layer("scale")(IMAGES), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: chain(x, name="inside")])
def test_a_clone_draws_the_same_random_numbers_as_its_original(wrap):
    model = chain(wrap(layers.Dropout(0.5)))
    model(IMAGES, training=True)
    clone = surgery.clone(model)
    first, second = (np.asarray(m(IMAGES, training=True)) for m in (model, clone))
    np.testing.assert_array_equal(first, second)
    assert (np.asarray(model(IMAGES, training=True)) != first).any()


def test_random_weights_follow_the_seed_and_leave_the_process_generator_alone():
    import random

    model = make_tiny()
    random.seed(5)
    expected = random.random()
    random.seed(5)
    one, same, other = (surgery.clone(model, weights="random", seed=s).get_weights() for s in (1, 1, 2))
    assert random.random() == expected
    assert_bit_equal(one, same)
    kernels = [i for i, w in enumerate(one) if w.ndim == 4]
    assert all((one[i] != other[i]).any() and (one[i] != model.get_weights()[i]).any() for i in kernels)


def test_a_clone_takes_another_image_size():
    model = make_tiny(image_size=32)
    clone = surgery.clone(model, image_size=(48, 64))
    assert clone.input_shape == (None, 48, 64, 3)
    assert_bit_equal(clone.get_weights(), model.get_weights())


def test_an_image_size_that_does_not_fit_is_refused_in_one_sentence():
    flat = chain(layers.Flatten(), layers.Dense(2, name="wide"))
    with pytest.raises(InputError, match=r"'chain' cannot take images of shape \(8, 8, 3\): .*layer 'wide'"):
        surgery.clone(flat, image_size=(8, 8))
    valid = chain(layers.Conv2D(2, 9))
    with pytest.raises(InputError, match=r"cannot take images of shape \(4, 4, 3\)"):
        surgery.clone(valid, image_size=(4, 4))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: layers.Conv2D(2, 3)(x),
        lambda x: layers.Add()([layers.Conv2D(3, 3, padding="same")(x), x]),
        lambda x: keras.ops.add(x1=x, x2=x),
        lambda x: layers.MultiHeadAttention(2, 3)(query=x, value=x),
    ],
)
def test_preprocessing_reaches_everything_that_reads_the_input(call):
    model = functional(call)
    clone = surgery.clone(model, preprocess=layers.Rescaling(3.0, name="scale"))
    assert clone.layers[0].name == "image"
    np.testing.assert_allclose(infer(clone, IMAGES), infer(model, 3 * IMAGES), rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_called_image_does_not_collide_with_the_input():
    model = functional(lambda x: layers.Conv2D(2, 3, name="image")(x))
    clone = surgery.clone(model, preprocess=layers.Rescaling(1.0))
    assert [layer.name for layer in clone.layers].count("image") == 1


@pytest.mark.parametrize("kind", [AttributeError, KeyError, NotImplementedError, ZeroDivisionError])
def test_the_error_names_a_layer_whose_own_code_raises(kind):
    class Stubborn(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.lock = threading.Lock()  # the attributes cannot be copied either

        def get_config(self):
            raise kind("not today")

        def call(self, x):
            return x

    with pytest.raises(InputError, match=r"'stubborn' cannot .*copied.*not today"):
        surgery.clone(functional(Stubborn(name="stubborn")))


def test_models_without_a_graph_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    one, two = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    built = Subclassed()
    built(np.zeros((1, 4)))
    for model in (built, keras.Sequential([layers.Dense(2)]), "MobileNetV2"):
        with pytest.raises(InputError, match="no graph of layers"):
            surgery.clone(model)
    with pytest.raises(InputError, match="with 2 and 1"):
        surgery.slice_at(keras.Model([one, two], layers.Add()([one, two])), "add")
    with pytest.raises(InputError, match="with 1 and 2"):
        surgery.clone(keras.Model(one, [layers.Conv2D(1, 1)(one), one]))


# Names


def test_made_up_names_are_numbered_from_zero_in_the_same_order():
    layers.Conv2D(1, 1), layers.Conv2D(1, 1)
    model = chain(*[layers.Conv2D(2, 1) for _ in range(12)], layers.ReLU(name="mine"), layers.Flatten())
    names = [layer.name for layer in surgery.renumber(model).layers]
    assert names == ["conv2d", *(f"conv2d_{i}" for i in range(1, 12)), "mine", "flatten"]


def test_a_taken_name_is_skipped():
    model = chain(layers.Conv2D(2, 1), layers.ReLU(name="conv2d"), layers.Conv2D(2, 1), layers.Conv2D(2, 1))
    names = [layer.name for layer in surgery.renumber(model).layers]
    assert names == ["conv2d_1", "conv2d", "conv2d_2", "conv2d_3"]
    assert surgery.clone(model).count_params() == model.count_params()


def test_renumbered_networks_save_and_load(tmp_path):
    layers.Conv2D(1, 1), layers.BatchNormalization()
    model = chain(layers.Conv2D(2, 3), layers.BatchNormalization(), layers.Conv2D(4, 3), layers.Flatten())
    surgery.renumber(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert_same_function(model, loaded, IMAGES, tolerance=0)


# Reading graphs


def test_a_network_slices_at_every_layer():
    model = make_tiny()
    for node in graphs.graph(model)[1:]:
        sliced = surgery.slice_at(model, node.op.name)
        assert sliced.output.shape == node.tensor.shape
        assert np.isfinite(np.asarray(sliced(raw_images()))).all()


def test_slices_share_layers_with_their_model():
    model = make_tiny()
    sliced = surgery.slice_at(model, "block2_add")
    assert sliced.get_layer("block1_conv") is model.get_layer("block1_conv")


def test_an_unknown_layer_lists_the_nearest():
    with pytest.raises(InputError, match=r"Unknown layer of 'tiny' 'block2_ad'\. Did you mean 'block2_add'"):
        surgery.slice_at(make_tiny(), "block2_ad")


def test_the_output_of_a_layer_is_that_of_its_last_call():
    model = twice_used()
    assert graphs.analyze(model).output("shared") is model.outputs[0]


def test_a_graph_lists_each_operation_after_its_inputs():
    nodes = graphs.graph(make_tiny())
    assert nodes[0].parents == ()
    assert all(parent < place for place, node in enumerate(nodes) for parent in node.parents)
    add = next(node for node in nodes if node.op.name == "block1_add")
    assert [nodes[p].op.name for p in add.parents] == ["block1_relu", "block1_branch"]


def test_every_path_runs_through_the_bottlenecks():
    nodes = graphs.graph(make_tiny())
    necks = [nodes[place].op.name for place in graphs.bottlenecks(nodes)]
    inside = {f"block{n}_branch" for n in (1, 2, 3)}
    assert necks == [node.op.name for node in nodes if node.op.name not in inside]


# Classifiers


def tops() -> dict[str, tuple[list, str]]:
    """Return ends of networks, and the name of the layer before their classifier."""
    conv, dense = layers.Conv2D, layers.Dense
    start = [conv(4, 3, name="conv"), layers.ReLU(name="relu")]
    pool = layers.GlobalAveragePooling2D
    kept = pool(keepdims=True, name="pool")
    return {
        "dense softmax": ([*start, pool(name="pool"), dense(3, "softmax", name="top")], "pool"),
        "dense sigmoid": ([*start, pool(name="pool"), dense(3, "sigmoid", name="top")], "pool"),
        "dense logits": ([*start, pool(name="pool"), dense(3, name="top")], "pool"),
        "dense, then softmax": ([*start, pool(name="pool"), dense(3), layers.Softmax()], "pool"),
        "dense, then activation": (
            [*start, pool(name="pool"), dense(3), layers.Activation("softmax")],
            "pool",
        ),
        "after a hidden layer": ([*start, pool(), dense(8, "relu", name="fc"), dense(3, "softmax")], "fc"),
        "after dropout": ([*start, pool(), layers.Dropout(0.1, name="drop"), dense(3, "softmax")], "drop"),
        "mobilenet": ([*start, kept, conv(3, 1), layers.Flatten(), layers.Activation("softmax")], "pool"),
        "mobilenet logits": ([*start, kept, conv(3, 1), layers.Reshape((3,))], "pool"),
        "squeezenet": ([*start, conv(3, 1), layers.ReLU(), pool(), layers.Softmax()], "relu"),
        "no top": ([*start], "relu"),
        "pooled": ([*start, pool(name="pool")], "pool"),
        "flattened map": ([*start, conv(3, 3), layers.Flatten(name="flat")], "flat"),
        "hidden dense": ([*start, pool(), dense(8, "relu", name="fc")], "fc"),
        "hidden dense, then relu": ([*start, pool(), dense(8), layers.ReLU(name="act")], "act"),
        "embedding": ([*start, pool(), dense(8), layers.UnitNormalization(name="unit")], "unit"),
    }


def test_the_layer_before_the_classifier_is_found():
    found = {kind: graphs.analyze(chain(*inside)).last_layer for kind, (inside, _) in tops().items()}
    assert found == {kind: expected for kind, (_, expected) in tops().items()}


def test_a_classifier_on_the_bare_input_is_not_cut_off():
    assert graphs.analyze(chain(layers.Dense(3, "softmax", name="all"), shape=(4,))).last_layer == "all"


# Flags


def trains(model: keras.Model) -> set[str]:
    return {variable.path for variable in model.trainable_variables}


def test_flags_are_set_layer_by_layer():
    model = surgery.set_trainable(make_tiny(), lambda name: name.startswith("block3"))
    assert trains(model) == {
        "block3_conv/kernel",
        "block3_branch/kernel",
        "block3_branch/bias",
    }
    assert model.trainable


def test_a_model_frozen_by_hand_can_be_unfrozen():
    model = make_tiny()
    for layer in model.layers:
        layer.trainable = False
    surgery.set_trainable(model, True, pin_batchnorm=False)
    assert len(model.trainable_variables) == len(make_tiny().trainable_variables)
    model.trainable = False
    assert len(surgery.set_trainable(model, True).trainable_variables) == 3 + 2 * 3 + 2


def test_pinned_batchnorm_keeps_weights_and_statistics_in_training_mode():
    model = surgery.set_trainable(make_tiny(), True)
    norm = model.get_layer("block1_bn")
    before = snapshot(norm)
    model(raw_images(), training=True)
    assert_bit_equal(snapshot(norm), before)
    surgery.set_trainable(model, True, pin_batchnorm=False)
    model(raw_images(), training=True)
    assert (snapshot(norm)[2] != before[2]).any()


def test_flags_reach_into_nested_models_and_pin_batchnorm_there():
    model = surgery.set_trainable(nested(), lambda name: name == "inner")
    assert len(model.trainable_variables) == 2
    inner = model.get_layer("inner")
    before = snapshot(inner.layers[1])
    model(IMAGES, training=True)
    assert_bit_equal(snapshot(inner.layers[1]), before)
    assert len(surgery.set_trainable(model, False).trainable_variables) == 0


def test_layers_of_a_nested_model_frozen_one_by_one_can_be_unfrozen():
    model = nested()
    for layer in model.get_layer("inner").layers:
        layer.trainable = False
    assert len(surgery.set_trainable(model, True).trainable_variables) == 4


def test_batchnorm_uses_statistics_of_all_replicas_only_if_it_trains():
    model = surgery.set_trainable(make_tiny(), True, pin_batchnorm=False, synchronized=True)
    assert model.get_layer("block1_bn").synchronized
    surgery.set_trainable(model, True, synchronized=True)
    assert not model.get_layer("block1_bn").synchronized


# Heads


def test_a_head_pools_maps_and_takes_vectors_as_they_are():
    maps = surgery.attach_head(make_tiny(top=False), 4)
    assert [layer.name for layer in maps.layers[-2:]] == ["head_pool", "head"]
    vectors = surgery.attach_head(surgery.slice_at(make_tiny(), "pool"), 4)
    assert [layer.name for layer in vectors.layers[-2:]] == ["pool", "head"]
    for model in (maps, vectors):
        assert model.output_shape == (None, 4)
        np.testing.assert_allclose(np.asarray(model(raw_images())).sum(axis=1), 1, atol=1e-5)


def test_a_head_on_a_sequence_takes_the_mean_of_its_tokens():
    model = surgery.attach_head(chain(layers.Reshape((48, 16), name="rows")), 4)
    few = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]))
    rows, pooled = (
        np.asarray(keras.Model(model.input, model.get_layer(name).output)(few))
        for name in ("rows", "head_pool")
    )
    np.testing.assert_allclose(pooled, rows.mean(axis=1), rtol=1e-4, atol=1e-5)


def test_a_head_on_other_shapes_is_refused():
    with pytest.raises(InputError, match=r"Received: 'rows' with \(None, 2, 2, 12, 16\)"):
        surgery.attach_head(chain(layers.Reshape((2, 2, 12, 16), name="rows")), 4)


@pytest.mark.parametrize("classes", [1, 0, -2, 2.5, "3", None])
def test_a_head_of_fewer_than_two_classes_is_refused(classes):
    with pytest.raises(InputError, match="at least 2 classes"):
        surgery.attach_head(make_tiny(top=False), classes)


def test_the_number_of_classes_may_be_a_numpy_integer():
    assert surgery.attach_head(make_tiny(top=False), np.int64(4)).output_shape == (None, 4)


def test_a_head_follows_its_seed():
    one, same, other = (
        surgery.attach_head(make_tiny(top=False), 4, seed=s).get_weights()[-2] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_head_computes_in_float32_under_mixed_precision():
    with policy("mixed_bfloat16"):
        extractor = chain(layers.Conv2D(4, 3))
        model = surgery.attach_head(extractor, 4)
        probabilities = np.asarray(model(IMAGES))
    assert extractor.layers[-1].compute_dtype == "bfloat16"
    assert model.layers[-1].compute_dtype == "float32"
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_a_second_head_gets_a_name_of_its_own():
    first = surgery.attach_head(make_tiny(top=False), 4)
    second = surgery.attach_head(first, 3)
    assert [layer.name for layer in second.layers[-2:]] == ["head", "new_head"]


def test_the_feature_extractor_computes_the_input_of_the_head():
    model = surgery.attach_head(make_tiny(top=False), 4)
    features = surgery.feature_extractor_of(model)(raw_images())
    np.testing.assert_array_equal(model.layers[-1](features), model(raw_images()))


# Several layers at once


def expected_join(model, names, images) -> np.ndarray:
    parts = []
    for name in names:
        y = np.asarray(surgery.slice_at(model, name)(images, training=False), "float64")
        y = y.mean(axis=(1, 2)) if y.ndim == 4 else y
        parts.append(y / np.linalg.norm(y, axis=1, keepdims=True))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    "network, names",
    [
        ("tiny", ["block1_add", "block2_branch", "pool"]),
        ("MobileNetV2", ["block_2_add", "block_13_expand", "out_relu", "global_average_pooling2d"]),
        ("EfficientNetLite0", ["block2a_project_bn", "block5c_add", "top_activation"]),
    ],
)
def test_a_join_gives_each_layers_average_at_unit_length(network, names):
    size = 16 if network == "tiny" else 32
    images = raw_images(4, size) / 127.5 - 1
    model = (
        make_tiny(image_size=16)
        if network == "tiny"
        else load_backbone(network, weights="none", image_size=32)
    )
    calibrate(model, images)
    before = snapshot(model)
    joined = surgery.join_at(graphs.analyze(model), names[::-1])
    np.testing.assert_allclose(infer(joined, images), expected_join(model, names, images), atol=1e-5)
    assert joined.get_layer(names[0]) is model.get_layer(names[0])
    assert_bit_equal(snapshot(model), before)


def test_a_join_at_one_layer_is_a_slice_without_scaling():
    model = make_tiny()
    for names in (["block2_add"], ["block2_add", "block2_add"]):
        joined = surgery.join_at(graphs.analyze(model), names)
        assert [layer.name for layer in joined.layers][-1] == "block2_add"
        assert joined.output.shape == (None, 8, 8, 12)


def test_a_join_keeps_only_the_layers_that_its_outputs_need():
    def call(x):
        x = layers.Conv2D(3, 3, name="start")(x)
        side = layers.Conv2D(4, 3, name="side")(x)
        other = layers.Conv2D(4, 3, name="other")(x)
        return layers.Add(name="sum")([layers.ReLU(name="relu")(side), layers.ReLU(name="gone")(other)])

    joined = surgery.join_at(graphs.analyze(functional(call)), ["other", "relu"])
    names = {layer.name for layer in joined.layers}
    assert {"start", "side", "other", "relu"} <= names and not {"gone", "sum"} & names


def test_a_join_of_zero_outputs_is_zero_and_has_gradients():
    import tensorflow as tf

    model = functional(lambda x: layers.Conv2D(3, 1, name="last")(layers.ReLU(name="relu")(-x)))
    joined = surgery.join_at(graphs.analyze(model), ["relu", "last"])
    with tf.GradientTape() as tape:
        y = joined(IMAGES)
        loss = tf.reduce_sum(y * y[:, ::-1])
    assert not np.asarray(y)[:, :3].any()
    assert np.isfinite(np.asarray(y)).all()
    assert all(np.isfinite(np.asarray(g)).all() for g in tape.gradient(loss, joined.trainable_variables))


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_a_join_computes_in_float32_under_mixed_precision(name):
    with policy(name):
        model = make_tiny(image_size=16)
        joined = surgery.clone(surgery.join_at(graphs.analyze(model), ["block1_add", "block3_add"]))
        lengths = np.square(np.asarray(joined(IMAGES))).sum(axis=1)
    new = [layer for layer in joined.layers if layer.name.startswith("joined")]
    assert len(new) == 5 and {layer.compute_dtype for layer in new} == {"float32"}
    assert joined.output.dtype == "float32"
    np.testing.assert_allclose(lengths, 2, atol=1e-5)
    np.testing.assert_allclose(
        joined(IMAGES), expected_join(model, ["block1_add", "block3_add"], IMAGES), atol=1e-5
    )


def test_a_join_of_a_join_has_names_of_its_own(tmp_path):
    first = surgery.join_at(graphs.analyze(make_tiny(image_size=16)), ["block1_add", "block2_add"])
    second = surgery.clone(surgery.join_at(graphs.analyze(first), ["block1_add", "joined"]))
    names = [layer.name for layer in second.layers]
    assert len(set(names)) == len(names) and names[-1] == "new_joined"
    second.save(tmp_path / "model.keras")
    assert_same_function(second, keras.models.load_model(tmp_path / "model.keras"), IMAGES, tolerance=0)


def test_a_saved_join_loads_in_plain_keras(tmp_path):
    model = surgery.attach_head(
        surgery.join_at(graphs.analyze(make_tiny(image_size=16)), ["block1_add", "block3_add"]), 3
    )
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "expected.npy", infer(model, IMAGES))
    code = """
        import sys, keras, numpy as np
        y = keras.models.load_model("model.keras")(np.load("images.npy"))
        np.testing.assert_array_equal(np.asarray(y), np.load("expected.npy"))
        assert not [name for name in sys.modules if name.split(".")[0] == "transfer"]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, check=True)


def test_joins_of_no_layer_of_unknown_layers_and_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="at least one layer"):
        surgery.join_at(graphs.analyze(make_tiny()), [])
    with pytest.raises(InputError, match="Did you mean 'block2_add'"):
        surgery.join_at(graphs.analyze(make_tiny()), ["block1_add", "block2_ad"])
    rows = chain(layers.Reshape((2, 2, 12, 16), name="rows"), layers.Dense(2, name="last"))
    with pytest.raises(InputError, match=r"Received: 'rows' with \(None, 2, 2, 12, 16\)"):
        surgery.join_at(graphs.analyze(rows), ["rows", "last"])
