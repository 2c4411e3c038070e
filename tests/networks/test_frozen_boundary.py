"""Splitting at the frozen boundary, on every family and on small graphs with special cases."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, calibrate, infer, make_tiny, policy, raw_images, snapshot

from transfer.common.errors import InputError
from transfer.networks import graphs, surgery
from transfer.networks.backbones import load_backbone
from transfer.networks.families import FAMILIES
from transfer.networks.frozen_boundary import frozen_bytes, split_at_frozen_boundary
from transfer.networks.preprocessing import preprocessing_of

layers = keras.layers
IMAGES, LABELS = raw_images(8) / 255.0, np.arange(8) % 5


def functional(call, *, shape=(32, 32, 3)) -> keras.Model:
    image = keras.Input(shape)
    return keras.Model(image, call(image), name="own")


def conv(width: int, name: str, **options) -> keras.layers.Conv2D:
    return layers.Conv2D(width, 3, padding="same", name=name, **options)


def train_from(model: keras.Model, first: str, **options) -> keras.Model:
    """Set the flags as `unfreeze` does: this layer and the layers behind it train."""
    names = [node.op.name for node in graphs.graph(model)]
    late = set(names[names.index(first) :])
    return surgery.set_trainable(model, lambda name: name in late, **options)


def train_only(model: keras.Model, *names: str, **options) -> keras.Model:
    return surgery.set_trainable(model, lambda name: name in names, **options)


def crossing(model: keras.Model, **options) -> list[str]:
    """Return the layers whose outputs cross the boundary; check what holds for every split."""
    extractor, upper = split_at_frozen_boundary(model, **options)
    assert not [weight.path for weight in extractor.weights if weight.trainable]
    assert [weight.path for weight in upper.trainable_weights] == [w.path for w in model.trainable_weights]
    own = {id(layer) for layer in model.layers if layer.weights}
    assert {id(layer) for part in (extractor, upper) for layer in part.layers if layer.weights} == own
    return [tensor._keras_history.operation.name for tensor in extractor.outputs]


def assert_exact(model: keras.Model, images=IMAGES, tolerance: float = 1e-6, **options) -> None:
    extractor, upper = split_at_frozen_boundary(model, **options)
    ours, theirs = np.asarray(upper(extractor(images)), "float32"), infer(model, images)
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# Every family


def live(op) -> bool:
    """Return whether training changes a layer's output, computed in another way than in the package."""
    if not isinstance(op, layers.Layer):
        return False
    noise = (layers.Dropout, layers.SpatialDropout2D, layers.GaussianNoise, layers.RandomFlip)
    trains = bool(op.trainable_variables)
    return trains or isinstance(op, noise) or (isinstance(op, layers.BatchNormalization) and op.trainable)


def frozen_kernels(model: keras.Model) -> set[str]:
    """Return the layers with matrices of weights that depend on frozen layers only."""
    nodes, below = graphs.graph(model), []
    for node in nodes:
        below.append(live(node.op) or any(below[parent] for parent in node.parents))
    return {
        node.op.name
        for node, waits in zip(nodes, below, strict=True)
        if not waits and any(len(weight.shape) > 1 for weight in getattr(node.op, "weights", ()))
    }


def boundaries(model: keras.Model) -> list[str]:
    """Return layers with weights: an early one, one in the middle, the last, and one inside a block with branches."""
    nodes = graphs.graph(model)
    weighted = [
        p for p, node in enumerate(nodes) if any(len(w.shape) > 1 for w in getattr(node.op, "weights", ()))
    ]
    inside = [place for place in weighted if place not in graphs.bottlenecks(nodes)] or weighted
    places = [weighted[1], weighted[len(weighted) // 3], inside[len(inside) // 2], weighted[-1]]
    return [nodes[place].op.name for place in dict.fromkeys(places)]


MEMBERS = {family: next(iter(entry.constructors)) for family, entry in FAMILIES.items()}
QUICK = ("MobileNetV2", "MobileNetV3")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MEMBERS]
)
def test_every_family_splits_at_the_end_of_its_frozen_part(family):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    size = FAMILIES[family].min_size
    model = load_backbone(MEMBERS[family], weights="none", image_size=size, include_top=False)
    images = np.asarray(preprocessing_of(model)(raw_images(4, size)))
    calibrate(model, images)
    before = snapshot(model)
    for first in boundaries(model):
        train_from(model, first)
        for ignore_noise in (False, True) if "EfficientNet" in family else (False,):
            crossing(model, ignore_noise=ignore_noise)
            assert_exact(model, images, ignore_noise=ignore_noise)
            extractor, upper = split_at_frozen_boundary(model, ignore_noise=ignore_noise)
            if not ignore_noise:
                assert frozen_kernels(model) <= {layer.name for layer in extractor.layers}, first
                assert not frozen_kernels(model) & {layer.name for layer in upper.layers}, first
            assert frozen_bytes(extractor) == sum(2 * int(np.prod(t.shape[1:])) for t in extractor.outputs)
    assert_bit_equal(snapshot(model), before)


def test_dropout_inside_an_efficientnet_ends_the_frozen_part_unless_it_is_ignored():
    model = load_backbone("EfficientNetLite0", weights="none", image_size=32, include_top=False)
    train_from(model, "block6a_expand_conv")
    assert crossing(model) == ["block2a_project_bn", "block2b_project_bn"]
    assert crossing(model, ignore_noise=True) == ["block5c_add"]


# Training


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("first", ["block1_branch", "block2_conv", "block2_branch", "block3_bn", "classes"])
def test_training_the_upper_layers_equals_training_the_model(first, pinned):
    whole = train_from(make_tiny(), first, pin_batchnorm=pinned)
    parted = train_from(make_tiny(), first, pin_batchnorm=pinned)
    before = {layer.name: snapshot(layer) for layer in parted.layers}
    extractor, upper = split_at_frozen_boundary(parted)
    features = extractor.predict(IMAGES, verbose=0)
    for model in (whole, upper):
        model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    for batch in (slice(0, 4), slice(4, 8)):
        whole.train_on_batch(IMAGES[batch], LABELS[batch])
        part = [x[batch] for x in features] if isinstance(features, list) else features[batch]
        upper.train_on_batch(part, LABELS[batch])
    for a, b in zip(snapshot(whole), snapshot(parted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    moved = {
        n
        for n, old in before.items()
        if any((a != b).any() for a, b in zip(old, snapshot(parted.get_layer(n)), strict=True))
    }
    names = [layer.name for layer in parted.layers if layer.weights]
    late = set(names[names.index(first) :])
    assert moved == {name for name in late if not (pinned and name.endswith("_bn"))}


def test_training_the_upper_layers_draws_the_same_dropout_as_training_the_model():
    def network():
        keras.utils.set_random_seed(0)
        inside = [conv(4, "first"), conv(4, "second"), layers.Dropout(0.5), layers.GlobalAveragePooling2D()]
        model = keras.Sequential([keras.Input((32, 32, 3)), *inside, layers.Dense(5, "softmax")])
        return train_from(model, "second")

    whole, parted = network(), network()
    extractor, upper = split_at_frozen_boundary(parted)
    for model, x in ((whole, IMAGES), (upper, extractor(IMAGES))):
        model.compile("sgd", "sparse_categorical_crossentropy")
        for _ in range(2):
            model.train_on_batch(x, LABELS)
    for a, b in zip(snapshot(whole), snapshot(parted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# Which tensors cross


def residual(x):
    x = conv(4, "first")(x)
    y = conv(4, "second")(x)
    y = conv(4, "third")(y)
    return conv(4, "last")(layers.Add(name="add")([x, y]))


@pytest.mark.parametrize(
    "first, expected",
    [
        ("second", ["first"]),
        ("third", ["first", "second"]),
        ("last", ["add"]),
    ],
)
def test_a_boundary_inside_a_residual_block_cuts_both_branches(first, expected):
    model = train_from(functional(residual), first)
    assert crossing(model) == expected
    assert_exact(model)


def test_a_frozen_layer_behind_a_trainable_one_belongs_to_the_upper_layers():
    model = train_only(functional(residual), "second", "last")
    assert crossing(model) == ["first"]
    assert model.get_layer("third") in split_at_frozen_boundary(model)[1].layers
    assert_exact(model)


def test_operations_that_only_enlarge_a_tensor_run_behind_the_boundary():
    def call(x):
        x = layers.UpSampling2D(name="larger")(layers.ZeroPadding2D(name="pad")(conv(4, "first")(x)))
        return conv(2, "last")(x)

    model = train_from(functional(call), "last")
    assert crossing(model) == ["first"]
    assert_exact(model)


def test_an_activation_is_computed_again_if_its_input_crosses_too():
    def call(x):
        x = conv(4, "first")(x)
        y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
        return layers.Add()([conv(4, "last")(y), x])

    model = functional(call)
    calibrate(model, IMAGES)
    assert crossing(train_only(model, "last")) == ["first"]
    assert_exact(model)
    norm = snapshot(model.get_layer("bn"))
    split_at_frozen_boundary(model)[1](split_at_frozen_boundary(model)[0](IMAGES), training=True)
    assert_bit_equal(snapshot(model.get_layer("bn")), norm)


def test_a_frozen_convolution_is_not_computed_again_to_save_space():
    def call(x):
        x = conv(2, "first")(x)
        return layers.Concatenate()([conv(3, "last")(x), conv(64, "wide")(x)])

    model = train_only(functional(call), "last")
    assert crossing(model) == ["first", "wide"]
    assert_exact(model)


def test_the_latest_of_equally_large_tensors_crosses():
    def call(x):
        return conv(2, "last")(
            layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(conv(4, "first")(x)))
        )

    assert crossing(train_from(functional(call), "last")) == ["relu"]


def test_images_cross_if_a_layer_behind_the_boundary_reads_them():
    def call(x):
        return conv(2, "last")(layers.Concatenate()([conv(4, "middle")(conv(4, "first")(x)), x]))

    model = train_only(functional(call), "middle", "last")
    assert crossing(model) == [model.layers[0].name, "first"]
    assert_exact(model)


def test_preprocessing_in_front_of_a_trainable_network_is_the_feature_extractor():
    model = surgery.clone(make_tiny(), preprocess=layers.Rescaling(2.0, name="scale"))
    assert crossing(surgery.set_trainable(model, True)) == ["scale"]
    assert_exact(model)


def test_images_do_not_cross_if_nothing_reads_them():
    model = train_only(functional(lambda x: conv(2, "last")(layers.ZeroPadding2D(name="pad")(x))), "last")
    assert crossing(model) == ["pad"]


def test_with_only_the_head_trainable_vectors_cross():
    model = train_only(make_tiny(), "classes")
    extractor, upper = split_at_frozen_boundary(model)
    assert extractor.output_shape == (None, 16)
    assert [layer.name for layer in upper.layers[1:]] == ["classes"]
    assert_exact(model, tolerance=0)


def double_use(x):
    shared = conv(4, "shared")
    x = shared(conv(4, "first")(x))
    return conv(2, "last")(shared(conv(4, "middle")(x)))


def test_a_frozen_layer_called_on_both_sides_is_in_both_models():
    model = train_only(functional(double_use), "middle", "last")
    extractor, upper = split_at_frozen_boundary(model)
    shared = model.get_layer("shared")
    assert shared in extractor.layers and shared in upper.layers
    assert_exact(model)


def test_operations_without_layers_and_with_several_outputs_are_split():
    def call(x):
        low, high = keras.ops.split(conv(4, "first")(x), 2, axis=-1)
        return conv(2, "last")(low * 2.0 + keras.ops.roll(high, shift=1, axis=1)) + conv(2, "other")(high)

    model = train_only(functional(call), "last")
    crossing(model)
    assert_exact(model)


def test_a_nested_model_is_frozen_as_a_whole_or_not_at_all():
    inner = keras.Sequential([keras.Input((32, 32, 3)), conv(4, "a"), conv(4, "b")], name="inner")
    model = keras.Sequential([keras.Input((32, 32, 3)), conv(3, "first"), inner, conv(2, "last")])
    assert crossing(train_only(model, "last")) == ["inner"]
    inner.layers[-1].trainable = True
    assert crossing(model) == ["first"]
    assert_exact(model)


def test_tensors_keep_their_type_under_mixed_precision():
    with policy("mixed_bfloat16"):
        model = train_from(functional(residual), "third")
        extractor, upper = split_at_frozen_boundary(model)
        assert {tensor.dtype for tensor in (*extractor.outputs, *upper.inputs)} == {"bfloat16"}
        assert_exact(model, tolerance=0)


def test_both_parts_save_and_load(tmp_path):
    model = train_from(make_tiny(), "block2_branch")
    for number, part in enumerate(split_at_frozen_boundary(model)):
        part.save(tmp_path / f"{number}.keras")
    extractor, upper = (keras.models.load_model(tmp_path / f"{number}.keras") for number in (0, 1))
    np.testing.assert_allclose(upper(extractor(IMAGES)), model(IMAGES), atol=1e-6)


# What is not frozen


@pytest.mark.parametrize(
    "make, frozen",
    [
        (lambda: layers.Dropout(0.5), False),
        (lambda: layers.Dropout(0.0), True),
        (lambda: layers.GaussianNoise(0.5), False),
        (lambda: layers.RandomFlip(), False),
        (lambda: keras.Sequential([layers.SpatialDropout2D(0.5)]), False),
        (lambda: layers.BatchNormalization(), False),
        (lambda: layers.BatchNormalization(trainable=False), True),
        (lambda: layers.BatchNormalization(scale=False, center=False), False),
        (lambda: keras.Sequential([layers.BatchNormalization(scale=False, center=False)]), False),
        (lambda: layers.Normalization(mean=[0.0] * 4, variance=[1.0] * 4), True),
        (lambda: layers.SpectralNormalization(layers.Conv2D(4, 1), trainable=False), False),
        (lambda: layers.GroupNormalization(2, trainable=False), True),
        (lambda: layers.ReLU(), True),
    ],
)
def test_a_layer_with_random_numbers_or_a_changing_state_is_not_frozen(make, frozen):
    layer = make()
    layer.name = "asked"
    model = functional(lambda x: conv(2, "last")(layer(conv(4, "first", trainable=False)(x))))
    assert crossing(model) == (["asked"] if frozen else ["first"])


def test_ignored_noise_is_not_applied_when_the_upper_layers_train():
    def call(x):
        x = layers.Dropout(0.5, name="drop")(layers.ZeroPadding2D(20, name="pad")(conv(4, "first")(x)))
        return conv(2, "last")(layers.ZeroPadding2D(20)(x))

    model = train_from(functional(call), "last")
    assert crossing(model) == ["first"]
    assert crossing(model, ignore_noise=True) == ["drop"]
    extractor, upper = split_at_frozen_boundary(model, ignore_noise=True)
    np.testing.assert_array_equal(upper(extractor(IMAGES), training=True), model(IMAGES, training=False))


def test_a_model_without_frozen_first_layers_is_refused():
    for model, message in (
        (make_tiny(), "'block1_conv' trains"),
        (train_only(make_tiny(), "block1_conv", "classes"), "'block1_conv' trains"),
        (
            functional(lambda x: conv(2, "last")(layers.Dropout(0.5, name="drop")(x))),
            "'drop' draws random numbers",
        ),
        (
            functional(
                lambda x: conv(2, "last")(layers.BatchNormalization(center=False, scale=False, name="bn")(x))
            ),
            "'bn' takes its statistics from each batch",
        ),
    ):
        with pytest.raises(InputError, match=f"whose layer {message}"):
            split_at_frozen_boundary(model)


def test_a_model_without_trainable_layers_is_refused():
    model = surgery.set_trainable(make_tiny(), False)
    with pytest.raises(InputError, match="'tiny', whose layers are all frozen"):
        split_at_frozen_boundary(model)
    model = make_tiny()
    model.trainable = False
    with pytest.raises(InputError, match="'tiny', whose layers are all frozen"):
        split_at_frozen_boundary(model)


# Sizes


def test_bytes_are_summed_over_all_crossing_tensors():
    model = train_from(functional(residual), "third")
    assert frozen_bytes(split_at_frozen_boundary(model)[0]) == 2 * (32 * 32 * 4) * 2


def test_with_a_head_on_several_layers_vectors_cross_instead_of_maps():
    model = surgery.attach_head(surgery.join_at(graphs.analyze(make_tiny()), ["block1_add", "block3_add"]), 5)
    train_only(model, "block3_conv", "block3_branch", "head")
    assert crossing(model) == ["joined_0_unit", "block2_add"]
    assert frozen_bytes(split_at_frozen_boundary(model)[0]) == 2 * (8 + 8 * 8 * 12)
    assert_exact(model)


def test_bytes_are_unknown_for_images_of_any_size():
    model = train_from(functional(residual, shape=(None, None, 3)), "third")
    extractor, _ = split_at_frozen_boundary(model)
    assert_exact(model)
    with pytest.raises(InputError, match="for images of one size"):
        frozen_bytes(extractor)
