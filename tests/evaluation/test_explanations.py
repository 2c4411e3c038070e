"""Heat maps and filter responses against closed forms and synthetic images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, calibrate, flags, make_tiny, policy, raw_images, snapshot

from transfer.cases import builders
from transfer.common.errors import InputError
from transfer.evaluation import explanation_plots
from transfer.evaluation.explanations import (
    agreement,
    explain,
    grad_cam,
    map_note,
    occlusion,
    strongest_responses,
)
from transfer.networks import surgery
from transfer.networks.gradients import head_of, receptive_fields, run, shown_layers, unnested

layers = keras.layers


def blobs(count: int = 6, size: tuple[int, int] = (32, 48), seed: int = 0):
    """Return grey images with one bright square each, colored by class, and the squares' corners."""
    rng = np.random.default_rng(seed)
    images = np.full((count, *size, 3), 90.0) + rng.normal(0, 2, (count, *size, 3))
    corners = [(int(rng.integers(0, size[0] - 8)), int(rng.integers(0, size[1] - 8))) for _ in range(count)]
    for i, (y, x) in enumerate(corners):
        images[i, y : y + 8, x : x + 8, i % 2] = 250
    return np.clip(images, 0, 255).astype("uint8"), corners


def by_hand(size: tuple[int | None, int | None] = (32, 48), *, activation: str | None = "softmax"):
    """Return a model with a red and a green filter, one for each class."""
    image = keras.Input((*size, 3))
    x = layers.Rescaling(1 / 255, name="scale")(image)
    x = layers.Conv2D(2, 3, strides=2, padding="same", activation="relu", name="colors")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(2, activation=activation, name="classes")(x), name="hand")
    kernel = np.zeros((3, 3, 3, 2))
    kernel[:, :, 0, 0] = kernel[:, :, 1, 1] = 1
    kernel[:, :, 2] = -1  # no response to grey
    model.get_layer("colors").set_weights([kernel, np.full(2, -0.5)])
    model.get_layer("classes").set_weights([np.array([[9.0, -9], [-9, 9]]), np.zeros(2)])
    return model


def nested(base, *, pool: bool = False, deeper: bool = False):
    """Return a model as in tutorials: preprocessing, the base as one layer, a head."""
    image = keras.Input(base.input_shape[1:])
    x = layers.Rescaling(1 / 127.5, offset=-1, name="to_tf")(image)
    if deeper:
        inside = keras.Input(base.input_shape[1:])
        base = keras.Model(inside, base(inside, training=False), name="wrapped")
    x = base(x, training=False)
    if pool:
        x = layers.GlobalAveragePooling2D(name="outer_pool")(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="head")(x), name="nested")


def flat_like(base, head):
    """Return the same network without nesting."""
    x = surgery.clone(base, preprocess=layers.Rescaling(1 / 127.5, offset=-1))
    features = layers.GlobalAveragePooling2D()(x.output) if len(x.output.shape) == 4 else x.output
    dense = layers.Dense(3, activation="softmax")
    model = keras.Model(x.input, dense(features))
    dense.set_weights(head.get_weights())
    return model


def test_grad_cam_has_a_closed_form_before_global_pooling():
    model = make_tiny()
    images = raw_images() / 127.5 - 1
    found = grad_cam(model, images, classes=2, layer="block2_add", batch_size=4)
    last = grad_cam(model, images, classes=[0, 1, 2, 3, 4, 0], batch_size=4)
    maps = keras.Model(model.input, model.get_layer("block3_add").output)(images, training=False).numpy()
    kernel = model.get_layer("classes").get_weights()[0][:, [0, 1, 2, 3, 4, 0]]
    sums = np.maximum(np.einsum("nhwk,kn->nhw", maps, kernel) / 16, 0)
    expected = np.stack([keras.ops.image.resize(s[..., None], (32, 32)).numpy()[..., 0] for s in sums])
    top = expected.max(axis=(1, 2), keepdims=True)
    assert (top > 0).sum() >= 3, "too few maps to compare"
    np.testing.assert_allclose(last, expected / np.where(top > 0, top, 1), atol=1e-4)
    assert found.shape == (6, 32, 32) and found.dtype == np.float32
    assert np.abs(found - last).max() > 0.1


def test_maps_highlight_the_object_and_occlusion_agrees():
    images, corners = blobs()
    model = by_hand()
    heat, falls = grad_cam(model, images), occlusion(model, images, patch=10, stride=4)
    assert heat.shape == falls.shape == (6, 32, 48)
    for one, fall, (y, x) in zip(heat, falls, corners, strict=True):
        for found in (one, fall):
            row, column = np.unravel_index(found.argmax(), found.shape)
            assert y - 2 <= row <= y + 9 and x - 2 <= column <= x + 9
        assert one.max() == 1 and one.min() == 0
        assert agreement(one, fall) > 0.4
    assert (falls.max(axis=(1, 2)) > 0.05).all() and np.abs(falls).max() <= 1


def test_the_map_of_a_class_without_support_is_zero():
    images, _ = blobs(2)
    np.testing.assert_array_equal(grad_cam(by_hand(), images, classes=[1, 0]), 0)


def test_no_images_one_image_any_size_and_batches_of_any_size():
    model = by_hand((None, None))
    assert grad_cam(model, np.zeros((0, 20, 30, 3))).shape == (0, 20, 30)
    assert occlusion(model, np.zeros((0, 20, 30, 3))).shape == (0, 20, 30)
    images, _ = blobs(5, (31, 45))
    whole = grad_cam(model, images)
    np.testing.assert_allclose(whole[:1], grad_cam(model, images[:1]), atol=1e-6)
    np.testing.assert_allclose(whole, grad_cam(model, images.astype("float32"), batch_size=2), atol=1e-6)
    np.testing.assert_allclose(occlusion(model, images), occlusion(model, images, batch_size=7), atol=1e-6)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("deeper", [True, False])
def test_a_nested_base_gives_the_maps_of_the_flat_network(pool, deeper):
    base = keras.applications.MobileNetV2(
        weights=None, alpha=0.35, include_top=False, input_shape=(64, 64, 3), pooling=None if pool else "avg"
    )
    images = raw_images(4, 64)
    calibrate(base, images / 127.5 - 1)
    model = nested(base, pool=pool, deeper=deeper)
    flat = flat_like(base, model.get_layer("head"))
    for layer in (None, "block_12_add"):
        heat = grad_cam(model, images, layer=layer)
        assert heat.max() == 1
        np.testing.assert_allclose(heat, grad_cam(flat, images, layer=layer), atol=1e-5)
    falls = [occlusion(one, images, patch=32, stride=32) for one in (model, flat)]
    np.testing.assert_allclose(*falls, atol=1e-5)
    assert shown_layers(model) == shown_layers(flat)


def test_a_sequential_model_with_augmentation_and_a_base():
    base = make_tiny(top=False)
    change = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.2)])
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), change, base, layers.GlobalAveragePooling2D(), layers.Dense(2, "softmax")]
    )
    images = raw_images() / 127.5 - 1
    heat = grad_cam(model, images)
    np.testing.assert_array_equal(heat, grad_cam(model, images))
    np.testing.assert_array_equal(heat, grad_cam(model, images, layer="block3_add"))
    nodes = unnested(model)
    last = run(nodes, {0: keras.ops.convert_to_tensor(images)})[len(nodes) - 1]
    np.testing.assert_allclose(last, model(images, training=False), atol=1e-6)


@pytest.mark.parametrize("case", ["small-similar", "small-different", "large-similar", "large-different"])
def test_models_of_all_builders_have_maps(case):
    model = builders.build(case, make_tiny(), 3, preprocessing="tf")
    heat = grad_cam(model, raw_images())
    assert np.isfinite(heat).all() and heat.max() == 1


def test_a_head_on_several_layers_includes_all_paths():
    model = builders.small_similar(make_tiny(), 3, preprocessing="tf", cut="all")
    images = raw_images()
    assert shown_layers(model)[-1] == "block3_add"
    nodes = unnested(model)
    place = next(i for i, node in enumerate(nodes) if node.op.name == "block1_add")
    heat = grad_cam(model, images, classes=1, layer="block1_add")
    maps = run(nodes, {0: keras.ops.convert_to_tensor(images)}, last=place)
    head = head_of(nodes)

    def logit(change):
        values = {**maps, place: maps[place] + change}
        return head.logits(run(nodes, values, last=head.position)[head.position]).numpy()[:, 1]

    step = 1e-2 * float(np.abs(maps[place]).mean())
    slopes = [logit(step * np.eye(8, dtype="float32")[k]) - logit(-step * np.eye(8, dtype="float32")[k])
              for k in range(8)]  # fmt: skip
    sums = np.maximum(np.einsum("nhwk,kn->nhw", maps[place], np.array(slopes)), 0)
    expected = np.stack([keras.ops.image.resize(s[..., None], (32, 32)).numpy()[..., 0] for s in sums])
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(heat, expected, atol=0.03)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_model_is_not_changed(compiled):
    base = make_tiny(top=False)
    base.trainable = False
    model = nested(base, pool=True)
    images = raw_images()
    if compiled:
        model.compile("adam", "sparse_categorical_crossentropy")
        model.train_on_batch(images, np.arange(6) % 3)
    optimizer = [v.numpy().copy() for v in model.optimizer.variables] if compiled else []
    before, set_before, calls = snapshot(model), flags(model), call_counts(model)
    written = model.to_json()
    grad_cam(model, images)
    occlusion(model, images[:1])
    strongest_responses(model, images)
    assert_bit_equal(before, snapshot(model))
    assert set_before == flags(model) and model.to_json() == written
    assert calls == call_counts(model), "no layer was called symbolically"
    if compiled:
        assert_bit_equal(optimizer, [v.numpy() for v in model.optimizer.variables])
        model.train_on_batch(images, np.arange(6) % 3)


def call_counts(model):
    """Count the calls of each layer on symbolic tensors."""
    return [
        (len(x._inbound_nodes), len(x._outbound_nodes)) for x in model._flatten_layers() if x is not model
    ]


def test_heads_without_softmax_with_flatten_and_with_one_output():
    images, _ = blobs(4)
    with_softmax = grad_cam(by_hand(), images, classes=0)
    np.testing.assert_allclose(grad_cam(by_hand(activation=None), images, classes=0), with_softmax, atol=1e-6)
    hand = by_hand(activation=None)
    apart = keras.Model(hand.input, layers.Softmax()(hand.output))
    np.testing.assert_allclose(grad_cam(apart, images, classes=0), with_softmax, atol=1e-6)
    np.testing.assert_allclose(occlusion(apart, images), occlusion(by_hand(), images), atol=1e-6)
    one = keras.Model(
        hand.input, layers.Dense(1, activation="sigmoid", name="one")(hand.get_layer("pool").output)
    )
    one.get_layer("one").set_weights([np.array([[-9.0], [9]]), np.zeros(1)])
    for number in (0, 1):
        two = grad_cam(by_hand(), images, classes=number)
        np.testing.assert_allclose(grad_cam(one, images, classes=number), two, atol=1e-6)
    flat = keras.Sequential(
        [keras.Input((32, 48, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(2)]
    )
    assert grad_cam(flat, images).shape == (4, 32, 48)


def test_logits_of_probabilities_before_another_layer_are_their_logarithms():
    images, _ = blobs(4)
    hand = by_hand()
    model = keras.Model(hand.input, layers.Activation("linear")(hand.output))
    heat = grad_cam(model, images)
    np.testing.assert_allclose(heat.argmax(), grad_cam(hand, images).argmax())
    np.testing.assert_allclose(occlusion(model, images), occlusion(hand, images), atol=1e-5)


def test_mixed_precision_models_have_maps():
    with policy("mixed_bfloat16"):
        model = by_hand()
    images, corners = blobs()
    for one, (y, x) in zip(grad_cam(model, images), corners, strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        assert y - 2 <= row <= y + 9 and x - 2 <= column <= x + 9


def test_errors_say_what_is_expected():
    model, (images, _) = make_tiny(), blobs(2, (32, 32))
    with pytest.raises(InputError, match="Did you mean 'block3_add'"):
        grad_cam(model, images, layer="block3_ad")
    with pytest.raises(InputError, match="'pool' with"):
        grad_cam(model, images, layer="pool")
    with pytest.raises(InputError, match=r"shape \(N, 32, 32, 3\)"):
        grad_cam(model, images[:, :30])
    with pytest.raises(InputError, match="first axis"):
        grad_cam(model, images[0])
    with pytest.raises(InputError, match="0 to 4"):
        grad_cam(model, images, classes=5)
    with pytest.raises(InputError, match="one for each of 2"):
        grad_cam(model, images, classes=[1, 2, 3])
    with pytest.raises(InputError, match="stride <= patch"):
        occlusion(model, images, patch=4, stride=5)
    with pytest.raises(InputError, match="gray value"):
        occlusion(model, images, fill=300)
    with pytest.raises(InputError, match="same shape"):
        agreement(np.zeros((3, 3)), np.zeros((3, 4)))
    plain = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2, "softmax")])
    with pytest.raises(InputError, match="a model with feature maps"):
        grad_cam(plain, np.zeros((1, 8, 8, 3)))
    broken = make_tiny()
    broken.get_layer("classes").set_weights([np.full((16, 5), np.nan), np.zeros(5)])
    with pytest.raises(InputError, match="NaN or infinity"):
        grad_cam(broken, images)


def test_agreement_is_a_rank_correlation_and_never_nan():
    rng = np.random.default_rng(0)
    one = rng.uniform(size=(28, 40))
    assert agreement(one, one**3, grid=28) > 0.95
    assert abs(agreement(one, rng.uniform(size=(28, 40)))) < 0.5
    assert agreement(one, np.full((28, 40), 0.1)) == 0
    assert agreement(np.zeros((1, 1)), np.ones((1, 1))) == 0


def test_receptive_fields_of_known_networks():
    applications = keras.applications
    known = [  # Araujo et al. 2019, and by hand
        (applications.VGG16, {"block1_conv2": 5, "block5_conv3": 196, "block5_pool": 212}),
        (applications.MobileNet, {"conv_pw_1_relu": 7, "conv_pw_13_relu": 315}),
        (applications.MobileNetV2, {"expanded_conv_project_BN": 7, "block_16_project_BN": 491}),
    ]
    for make, sides in known:
        nodes = unnested(make(weights=None, include_top=False, input_shape=(32, 32, 3)))
        fields = {n.op.name: f.size for n, f in zip(nodes, receptive_fields(nodes), strict=True)}
        assert {name: fields[name] for name in sides} == sides


def test_receptive_fields_of_a_small_network():
    image = keras.Input((64, 64, 3))
    x = layers.Conv2D(2, (1, 7), name="wide")(image)  # 7
    x = layers.MaxPooling2D(2, name="pool")(x)  # 8, step 2
    x = layers.DepthwiseConv2D(3, dilation_rate=2, name="dilated")(x)  # 8 + 4 * 2
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="gate")(x)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.Conv2DTranspose(2, 2, strides=2, name="up")(x)  # 16 + 1, step 1
    nodes = unnested(keras.Model(image, layers.Conv2D(1, 3, name="last")(x)))
    found = {n.op.name: tuple(f) for n, f in zip(nodes, receptive_fields(nodes), strict=True)}
    assert [found[name] for name in ("wide", "pool", "dilated", "gated", "up", "last")] == [
        (7, 1), (8, 2), (16, 2), (16, 2), (17, 1), (19, 1),
    ]  # fmt: skip
    assert found["gate"][0] == np.inf


def test_shown_layers_are_ends_of_blocks_at_all_depths():
    model = keras.applications.ResNet50(weights=None)
    assert shown_layers(model) == ["conv1_relu", "conv2_block3_out", "conv4_block6_out", "conv5_block3_out"]
    assert shown_layers(model, most=1) == ["conv5_block3_out"]
    assert shown_layers(make_tiny(), most=9) == ["block1_add", "block2_add", "block3_add"]


def test_crops_show_the_color_of_the_filter():
    images, corners = blobs(12)
    responses = strongest_responses(by_hand(), images, layers=["colors"], filters=2, count=4, batch_size=5)
    assert {one.filter for one in responses} == {0, 1} and {one.layer for one in responses} == {"colors"}
    for one in responses:
        assert len(one.crops) == len(set(one.images)) == 4
        assert list(one.strengths) == sorted(one.strengths, reverse=True)
        for image, (row, column), crop in zip(one.images, one.places, one.crops, strict=True):
            y, x = corners[image]
            assert image % 2 == one.filter and y <= row < y + 8 and x <= column < x + 8
            assert crop.dtype == np.uint8 and crop.shape == (8, 8, 3)
            assert (crop[..., one.filter] == 250).mean() > 0.2


def test_one_pass_gives_the_same_maps_and_responses():
    images, _ = blobs(12)
    model = by_hand()
    heat, responses = explain(model, images, 5, batch_size=4)
    np.testing.assert_allclose(heat, grad_cam(model, images[:5]), atol=1e-6)
    expected = strongest_responses(model, images)
    for one, other in zip(responses, expected, strict=True):
        assert (one.layer, one.filter, one.images, one.places) == (
            other.layer,
            other.filter,
            other.images,
            other.places,
        )


def test_few_images_and_inactive_filters():
    model = by_hand()
    assert strongest_responses(model, np.zeros((0, 32, 48, 3))) == []
    assert strongest_responses(model, np.zeros((3, 32, 48, 3)), layers=["colors"]) == []
    images, _ = blobs(2)
    assert [len(one.crops) for one in strongest_responses(model, images, layers=["colors"])] == [2, 2]


def test_the_note_on_heat_maps_warns_of_few_cells_and_names_the_explained_layer():
    assert map_note(by_hand(), (32, 48)) == "Grad-CAM map of 16 x 24 cells"
    assert map_note(by_hand((None, None)), (8, 32)).startswith("Grad-CAM map of 4 x 16 cells: coarse")
    several = builders.small_similar(make_tiny(), 3, cut=["block1_add", "block2_add"], preprocessing="tf")
    assert "of the last of 2 layers that the head sees" in map_note(several, (32, 32))
    sheet = explanation_plots.heat_sheet(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8)), ["t"], note="coarse")
    assert sheet.get_suptitle() == "coarse"


def test_figures_can_be_drawn(tmp_path):
    images, _ = blobs(7)
    model = make_tiny(image_size=32)
    sheet = explanation_plots.heat_sheet(images, grad_cam(by_hand(), images), ["a $ title^{ " * 9] * 7)
    sheet.savefig(tmp_path / "heat.png")
    responses = strongest_responses(model, raw_images() / 127.5 - 1)
    explanation_plots.response_sheet(responses).savefig(tmp_path / "responses.png")
    explanation_plots.heat_sheet(np.zeros((0, 8, 8, 3)), np.zeros((0, 8, 8)), []).savefig(tmp_path / "no.png")
    explanation_plots.response_sheet([]).savefig(tmp_path / "none.png")


def test_on_jax_without_tensorflow():
    pytest.importorskip("jax")
    from distributed.test_jax_devices import WITHOUT

    code = WITHOUT + (
        "import numpy as np\n"
        "from evaluation.test_explanations import blobs, by_hand\n"
        "from transfer.evaluation.explanations import agreement, grad_cam, map_note, occlusion, strongest_responses\n"
        "model, (images, corners) = by_hand(), blobs(4)\n"
        "heat = grad_cam(model, images)\n"
        "best = [np.unravel_index(one.argmax(), one.shape) for one in heat]\n"
        "print([-2 <= r - y < 10 and -2 <= c - x < 10 for (r, c), (y, x) in zip(best, corners)])\n"
        "falls = occlusion(model, images, patch=8, batch_size=8)\n"
        "print([agreement(a, b) > 0.4 for a, b in zip(heat, falls)])\n"
        "print(len(strongest_responses(model, images)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "False" not in done.stdout and done.stdout.endswith("2\n")
