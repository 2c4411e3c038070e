"""The demonstration network: layers, weights, builders, cuts, drawings."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal
from matplotlib.figure import Figure

from transfer.cases import cuts
from transfer.cases.builders import (
    build,
    large_different,
    large_similar,
    small_different,
    small_similar,
    unfreeze,
)
from transfer.cases.decisions import decision_of
from transfer.cases.policies import Case
from transfer.common.errors import InputError
from transfer.lesson.drawings import filters_plot, lesson_drawing, network_drawing
from transfer.lesson.shapes import SHAPES, make_shapes
from transfer.networks import graphs, surgery
from transfer.networks.backbones import block_ends
from transfer.networks.demo_cnn import SEES, WEIGHTS, DemoCNN, save_weights

BUILDERS = (small_similar, small_different, large_similar, large_different)


@pytest.fixture(scope="module")
def demo() -> keras.Model:
    return DemoCNN()


@pytest.fixture(scope="module")
def fresh():
    """Return images that the network was not trained on."""
    return make_shapes(200, seed=2_000_000)


def ready(images):
    return images.astype("float32") / 127.5 - 1


def test_layers_and_block_ends(demo):
    weighted = {layer.name: layer.output.shape[1:] for layer in demo.layers if layer.weights}
    assert weighted == {
        "conv1": (24, 24, 32),
        "conv2": (12, 12, 64),
        "conv3": (6, 6, 128),
        "fc1": (256,),
        "fc2": (128,),
        "predictions": (40,),
    }
    assert tuple(weighted) == tuple(SEES)
    assert demo.name == "democnn"
    assert demo.input_shape == (None, 48, 48, 3)
    assert block_ends(demo) == ["conv1", "conv2", "conv3"]
    assert graphs.analyze(demo).last_layer == "fc2"
    assert cuts.cuts_of(graphs.analyze(demo), "all") == ("conv1", "conv2", "conv3", "fc2")


def test_the_installed_weights_classify_shapes(demo, fresh):
    images, labels = fresh
    right = np.asarray(demo(ready(images))).argmax(axis=1) == labels
    assert right.mean() > 0.9
    random = np.asarray(DemoCNN(weights=None)(ready(images))).argmax(axis=1) == labels
    assert random.mean() < 0.15


def test_the_weights_file_is_small_and_holds_arrays_only():
    assert WEIGHTS.stat().st_size < 1_000_000
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        assert {array.dtype.name for array in arrays.values()} == {"float16"}
        assert len(arrays.files) == 12


def test_first_filters_are_smooth(demo):
    """Neighboring weights of trained filters are similar; those of random filters are not."""

    def roughness(kernel):
        kernel = kernel - kernel.mean(axis=(0, 1), keepdims=True)
        return np.square(np.diff(kernel, axis=0)).mean() / np.square(kernel).mean()  # 2 for noise

    assert roughness(np.asarray(demo.get_layer("conv1").kernel)) < 1
    assert roughness(np.asarray(DemoCNN(weights=None).get_layer("conv1").kernel)) > 1.7


@pytest.mark.parametrize("builder", BUILDERS)
def test_all_four_builders_run_on_it(builder, demo, fresh):
    before = demo.get_weights()
    model = builder(demo, 4)
    images, labels = fresh
    model.fit(images[:32], labels[:32] % 4, verbose=0)
    assert_bit_equal(demo.get_weights(), before)
    assert np.asarray(model(images[:8].astype("float32"))).shape == (8, 4)
    trained = {layer.name for layer in model.layers if layer.trainable_weights}
    assert trained == (
        {"head"} if builder in BUILDERS[:2] else {"conv1", "conv2", "conv3", "fc1", "fc2", "head"}
    )


@pytest.mark.parametrize("cut", ["conv1", "conv2", "conv3", "fc1", "fc2"])
def test_it_can_be_cut_at_each_layer(cut, demo, fresh):
    model = small_different(demo, 3, cut=cut)
    assert decision_of(model).cut == cut
    images = fresh[0][:4]
    whole = np.asarray(surgery.slice_at(demo, cut)(ready(images)))
    features = surgery.feature_extractor_of(model)(images.astype("float32"))
    whole = whole.mean(axis=(1, 2)) if whole.ndim == 4 else whole
    np.testing.assert_allclose(np.asarray(features), whole, atol=1e-4)


def test_case_2_keeps_edges_and_shapes(demo):
    assert decision_of(small_different(demo, 3)).cut == "conv2"
    assert decision_of(small_different(demo, 3)).cut_away == ("conv3",)


def test_it_can_be_built_with_all_arguments():
    assert DemoCNN(False).output_shape == (None, None, None, 128)
    assert DemoCNN(False, pooling="avg").output_shape == (None, 128)
    assert DemoCNN(False, pooling="max", input_shape=(64, 32, 3)).output_shape == (None, 128)
    assert DemoCNN(True, None, input_shape=(64, 64, 1), classes=7).output_shape == (None, 7)
    logits = DemoCNN(classifier_activation=None, name="mine")
    assert logits.name == "mine"
    assert np.asarray(logits(np.zeros((1, 48, 48, 3)))).sum() != pytest.approx(1)


def test_it_can_be_built_on_a_tensor():
    image = keras.Input((48, 48, 3), name="image")
    model = DemoCNN(input_tensor=keras.layers.Rescaling(1 / 127.5, -1)(image))
    assert model.inputs[0] is image
    images = make_shapes(3)[0]
    np.testing.assert_allclose(
        np.asarray(model(images.astype("float32"))), np.asarray(DemoCNN()(ready(images))), atol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weights": "imagenet"}, "no ImageNet weights"),
        ({"weights": "missing.npz"}, "Received: 'missing.npz'"),
        ({"weights": __file__}, "ends in .npz or .h5"),
        ({"classes": 10}, "has 40 classes. Received: classes=10"),
        ({"classes": 0, "weights": None}, "at least 1. Received: 0"),
        ({"classes": True, "weights": None}, "Received: True"),
        ({"include_top": False, "pooling": "average"}, "Did you mean 'avg'"),
        ({"input_shape": (15, 48, 3)}, r"at least 16 pixels.*\(15, 48, 3\)"),
        ({"input_shape": (None, None, 3)}, "None only if include_top=False"),
        ({"input_shape": (48, 48)}, r"Received: \(48, 48\)"),
        ({"input_shape": (64, 64, 3)}, "do not fit democnn: 'fc1' has a kernel of shape"),
        ({"input_shape": (48, 48, 1)}, "do not fit democnn: 'conv1' has a kernel"),
    ],
)
def test_refuses_arguments(arguments, says):
    with pytest.raises(InputError, match=says):
        DemoCNN(**arguments)


def test_refuses_files_without_weights(tmp_path):
    (tmp_path / "junk.npz").write_bytes(b"junk")
    np.savez(tmp_path / "objects.npz", **{"conv1/kernel": np.array([{}], dtype=object)})
    np.savez(tmp_path / "few.npz", **{"conv1/kernel": np.zeros((7, 7, 3, 32))})
    for name in ("junk", "objects", "few"):
        with pytest.raises(InputError, match="do not fit democnn"):
            DemoCNN(weights=tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match=r"ends in \.npz"):
        save_weights(DemoCNN(weights=None), tmp_path / "a.h5")


def test_refuses_channels_first():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(InputError, match="channels_last"):
            DemoCNN(weights=None)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_the_origin_of_the_weights_is_documented():
    text = Path(WEIGHTS).with_name("README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in text
    assert "pretrain_demo_cnn.py" in text


# Drawings


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("case", list(Case))
def test_the_lesson_drawing_shows_the_model(case, demo):
    model = build(case, demo, 12)
    words = texts(lesson_drawing(model, demo))
    assert [word for word in words if word in SEES][-1] == "predictions"
    assert words.count("conv2") == words.count("predictions") == words.count("new head") == 1
    # What comes behind the new head was cut away.
    cut = words[words.index("new head") :]
    assert ("conv3" in cut) == (case is Case.SMALL_DIFFERENT)
    assert "\N{BLACK SCISSORS}" in words
    assert {"edges", "shapes", "cut away"} <= set(words)


def test_the_lesson_drawing_shows_trainable_layers(demo):
    def legend(model):
        return [text.get_text() for text in lesson_drawing(model, demo).legends[0].get_texts()]

    model = small_similar(demo, 3)
    assert legend(model)[0].startswith("frozen")
    assert len(legend(model)) == 3
    assert len(legend(unfreeze(model, from_layer="conv3"))) == 4
    assert len(legend(large_different(demo, 3, init="random"))) == 2
    assert len(texts(network_drawing(demo))) == 21
    with pytest.raises(InputError, match="Expected a model from a builder"):
        lesson_drawing(demo, demo)


def test_filters_are_drawn(demo):
    assert len(filters_plot(demo.get_layer("conv1").kernel).axes) == len(SHAPES) - 8
    with pytest.raises(InputError, match="first layer see colors"):
        filters_plot(demo.get_layer("conv2").kernel)
