"""Engines equal plain Keras, and differences are noticed."""

import importlib.util
import logging
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.networks import (
    assert_bit_equal,
    calibrate,
    infer,
    make_tiny,
    raw_images,
    snapshot,
    two_replicas,
)

import transfer
from transfer.common.errors import InputError
from transfer.frozen import engines
from transfer.frozen.engines import TOLERANCE, Engine, engine_names, make_engine, relative_error
from transfer.networks import surgery
from transfer.networks.preprocessing import preprocessing_of

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not INSTALLED, reason="OpenVINO is not installed")
WAYS = [
    "keras predict",
    "keras",
    pytest.param("openvino float32", marks=needs_openvino),
    pytest.param("openvino bfloat16", marks=needs_openvino),
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Compiled networks of other tests are not used."""
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def raw_tiny():
    """A network that takes raw images."""
    return surgery.clone(make_tiny(), preprocess=keras.layers.Rescaling(1 / 127.5, offset=-1))


def mixed(size=32, *, normalization=False):
    """A network with BatchNorm, depthwise convolutions, relu6, dropout, and preprocessing that returns feature maps."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = image = keras.Input((size, size, 3))
    if normalization:
        x = layers.Normalization(mean=[120.0, 110, 100], variance=[60.0**2] * 3)(x)
    else:
        x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = layers.RandomFlip()(x)
    for width in (8, 16):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.SpatialDropout2D(0.5)(x)
    model = keras.Model(image, x, name="mixed")
    calibrate(model, raw_images(16, size))
    return model


def assert_equal(model, name, images, *, tolerance=None):
    """A single engine without a fallback returns the same as Keras."""
    result = Engine(model, [name], 32)(images)
    assert result.dtype == np.float32
    expected = infer(model, images.astype("float32"))
    assert result.shape == expected.shape
    limit = tolerance or (TOLERANCE["bfloat16"] if name.endswith("bfloat16") else 1e-4)
    assert relative_error(result, expected) <= limit


@pytest.mark.parametrize("name", WAYS)
def test_equals_keras(name, raw_tiny):
    assert_equal(raw_tiny, name, raw_images(19))


@pytest.mark.parametrize("normalization", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_maps_depthwise_relu6_and_random_layers_equal_keras(name, normalization):
    assert_equal(mixed(normalization=normalization), name, raw_images(9))


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS[1:])
@pytest.mark.parametrize(
    "builder", ["MobileNetV2", "MobileNetV3Small", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0"]
)
def test_families_equal_keras(builder, name):
    keras.utils.set_random_seed(0)
    base = getattr(keras.applications, builder)(
        weights=None, input_shape=(64, 64, 3), include_top=False, pooling="avg"
    )
    model = surgery.clone(base, preprocess=preprocessing_of(base))
    calibrate(model, raw_images(32, 64))
    # Random weights and noise images have larger rounding errors in bfloat16 than real ones.
    assert_equal(model, name, raw_images(9, 64), tolerance=0.3 if name.endswith("bfloat16") else 1e-3)


@pytest.mark.parametrize("name", WAYS[1:])
def test_real_weights_equal_keras(name):
    base = transfer.load_backbone("EfficientNetLite0", image_size=64)
    model = surgery.feature_extractor_of(surgery.clone(base, preprocess=preprocessing_of(base)))
    assert_equal(model, name, raw_images(9, 64), tolerance=0.15 if name.endswith("bfloat16") else 1e-4)


@pytest.mark.parametrize("name", WAYS)
def test_uint8_short_batches_and_single_images(name, raw_tiny):
    images = raw_images(7).round().astype("uint8")
    engine = Engine(raw_tiny, [name], 7)
    whole = engine(images)
    limit = TOLERANCE["bfloat16"] if name.endswith("bfloat16") else 1e-5
    assert relative_error(whole, infer(raw_tiny, images.astype("float32"))) <= limit
    for count in (5, 1, 2):
        part = engine(images[:count].astype("float32"))
        assert part.shape == (count, 5)
        np.testing.assert_allclose(part, whole[:count], rtol=1e-3, atol=1e-5)


def test_a_short_batch_is_not_traced_again(raw_tiny, monkeypatch):
    made = []
    original = engines.constant_function
    monkeypatch.setattr(engines, "constant_function", lambda *a: made.append(a[1]) or original(*a))
    engine = make_engine(raw_tiny, engine="keras", batch_size=8)
    for count in (8, 3, 1, 8):
        engine(raw_images(count))
    assert made == [(8, 32, 32, 3)]


class Windows(keras.layers.Layer):
    """Adds a mask that is made of slices, as the attention of Swin does."""

    def call(self, x):
        mask = keras.ops.zeros(x.shape[1:])
        for start in (0, 16):
            mask = keras.ops.slice_update(mask, [start, 0, 0], keras.ops.ones((8, *x.shape[2:])) * start)
        return x + mask


@needs_openvino
def test_openvino_runs_slice_updates_of_constants(raw_tiny):
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, raw_tiny(Windows()(image)))
    engine = Engine(model, ["openvino float32"], 4)
    np.testing.assert_allclose(engine(raw_images(4)), infer(model, raw_images(4)), rtol=1e-3, atol=1e-5)


def test_the_network_is_left_as_it_was(raw_tiny):
    before = snapshot(raw_tiny)
    make_engine(raw_tiny)(raw_images(4))
    assert_bit_equal(before, snapshot(raw_tiny))
    assert not raw_tiny.compiled


@pytest.mark.parametrize("name", WAYS)
def test_always_inference_mode(name):
    """A model whose layers act differently in training returns the same twice."""
    model, images = mixed(), raw_images(4)
    engine = Engine(model, [name], 4)
    np.testing.assert_array_equal(engine(images), engine(images))


@pytest.mark.parametrize("name", WAYS[1:])
def test_a_wrong_engine_is_replaced_by_the_next(name, raw_tiny, monkeypatch, caplog):
    original = Engine._start

    def wrong(engine, shape):
        run = original(engine, shape)
        return (lambda images: run(images)[:, ::-1]) if engine.name == name else run

    monkeypatch.setattr(Engine, "_start", wrong)
    images = raw_images(5)
    engine = Engine(
        raw_tiny, [name, "keras", "keras predict"] if name != "keras" else [name, "keras predict"], 8
    )
    with caplog.at_level(logging.WARNING):
        result = engine(images)
    assert engine.name == ("keras predict" if name == "keras" else "keras")
    assert relative_error(result, infer(raw_tiny, images)) < 1e-5
    assert f"engine {name} differs from Keras by" in caplog.text


@needs_openvino
def test_bfloat16_keeps_large_maps_in_float32(tmp_path):
    """The first layers cause most of the error; a network is cut where its maps are small."""
    base = transfer.load_backbone("EfficientNetLite0", image_size=64)
    model = surgery.feature_extractor_of(surgery.clone(base, preprocess=preprocessing_of(base)))
    assert engines.small_maps(model) is model.get_layer("block3a_project_bn").output
    images = raw_images(9, 64)
    expected = infer(model, images)
    errors = {}
    for parts in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not parts:
                patch.setattr(engines, "small_maps", lambda model: None)
            patch.setenv("TRANSFER_CACHE", str(tmp_path / str(parts)))
            errors[parts] = relative_error(Engine(model, ["openvino bfloat16"], 9)(images), expected)
    if engines.has_bfloat16():
        assert 1e-4 < errors[True] < 0.75 * errors[False]


def test_small_maps_are_never_inside_a_skip_connection_or_before_an_activation(tiny):
    assert engines.small_maps(tiny) is tiny.get_layer("block3_relu").output
    assert engines.small_maps(surgery.slice_at(tiny, "block2_add")) is None


@needs_openvino
def test_float32_replaces_a_wrong_bfloat16_engine(raw_tiny, monkeypatch, caplog):
    monkeypatch.setitem(engines.TOLERANCE, "bfloat16", 1e-6)
    engine = Engine(raw_tiny, ["openvino bfloat16", "openvino float32", "keras", "keras predict"], 8)
    engine(raw_images(5))
    assert engine.name == "openvino float32"
    assert len(caplog.records) == 1


@needs_openvino
def test_infinity_in_a_later_batch_is_noticed(raw_tiny, monkeypatch, caplog):
    original, bad = Engine._start, []

    def broken(engine, shape):
        run, wrong = original(engine, shape), engine.name.startswith("openvino")
        return (lambda images: run(images) * (np.inf if bad else 1)) if wrong else run

    monkeypatch.setattr(Engine, "_start", broken)
    engine = Engine(raw_tiny, ["openvino float32", "keras", "keras predict"], 8)
    engine(raw_images(5))
    assert not caplog.records
    bad.append(True)
    assert np.isfinite(engine(raw_images(5))).all()
    assert engine.name == "keras"


def test_a_failing_compiler_is_reported_in_one_line(raw_tiny, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no such\n   operation")

    monkeypatch.setattr(engines, "_openvino", fail)
    engine = Engine(raw_tiny, ["openvino float32", "keras", "keras predict"], 8)
    engine(raw_images(5))
    assert engine.name == "keras"
    assert (
        "engine openvino float32 failed (RuntimeError: no such operation). Using engine keras." in caplog.text
    )
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", WAYS)
def test_nan_weights_are_an_error_that_names_the_network(name, raw_tiny):
    layer = raw_tiny.get_layer("block2_conv")
    layer.set_weights([np.full_like(w, np.nan) for w in layer.get_weights()])
    with pytest.raises(InputError, match="'tiny' returns NaN or infinity on these images"):
        Engine(raw_tiny, [name, "keras predict"], 8)(raw_images(5))


@needs_openvino
def test_half_precision_models_are_compared_as_such():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(1 / 255, dtype="float32"),
            layers.Conv2D(8, 3, dtype="mixed_bfloat16"),
            layers.GlobalAveragePooling2D(dtype="mixed_bfloat16"),
        ]
    )
    for name in ("openvino float32", "keras"):
        engine = Engine(model, [name, "keras predict"], 8)
        assert engine(raw_images(5, 16)).dtype == np.float32
        assert engine.name == name


@pytest.mark.parametrize("engine", ["auto", pytest.param("openvino", marks=needs_openvino)])
def test_two_replicas(engine):
    with two_replicas().scope():
        model = surgery.clone(make_tiny(), preprocess=keras.layers.Rescaling(1 / 127.5, offset=-1))
    run = make_engine(model, engine=engine, precision="float32", batch_size=6)
    for count in (6, 5, 1):
        images = raw_images(count)
        result = run(images)
        assert result.shape == (count, 5)
        assert relative_error(result, np.asarray(model(images, training=False))) < 1e-4
    assert run.name == ("keras predict" if engine == "auto" else "openvino float32")


def test_names_in_order():
    def names(engine="auto", precision="auto", *, installed=True, bf16=True, plain=False):
        return engine_names(engine, precision, installed=installed, has_bfloat16=bf16, plain=plain)

    folded = ["keras", "keras predict"]
    assert names() == ["openvino bfloat16", "openvino float32", *folded]
    assert names(bf16=False) == names(precision="float32") == ["openvino float32", *folded]
    assert names(installed=False) == names("keras") == folded
    assert names(plain=True) == names("keras", plain=True) == ["keras predict"]
    assert names("openvino", plain=True) == ["openvino bfloat16", "openvino float32", "keras predict"]


def test_unavailable_bfloat16_is_reported(caplog):
    assert (
        engine_names("auto", "bfloat16", installed=True, has_bfloat16=False, plain=False)[0]
        == "openvino float32"
    )
    assert engine_names("auto", "bfloat16", installed=False, has_bfloat16=False, plain=False)[0] == "keras"
    assert [r.message.split(": ")[1] for r in caplog.records] == [
        "this CPU has no bfloat16 in hardware. Using engine openvino float32.",
        "only OpenVINO computes in bfloat16. Using engine keras.",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openvinno"}, "Did you mean 'openvino'"),
        ({"precision": "bfloat"}, "Did you mean 'bfloat16'"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"engine": "keras", "precision": "bfloat16"}, "the model's own precision"),
    ],
)
def test_wrong_options(options, message, raw_tiny):
    with pytest.raises(InputError, match=message):
        make_engine(raw_tiny, **options)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 16, 32, 3), "uint8"),
        np.zeros((32, 32, 3), "uint8"),
        np.zeros((0, 32, 32, 3), "uint8"),
        np.zeros((9, 32, 32, 3), "uint8"),
        np.zeros((2, 32, 32, 3), "complex64"),
    ],
)
def test_wrong_images(images, raw_tiny):
    with pytest.raises(InputError, match=r"Expected 1 to 8 images of shape \(32, 32, 3\)"):
        make_engine(raw_tiny, engine="keras", batch_size=8)(images)


def test_a_network_of_any_size_keeps_the_size_of_the_first_batch():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image)))
    engine = make_engine(model, engine="keras")
    assert engine(raw_images(3, 20)).shape == (3, 4)
    with pytest.raises(InputError, match=r"\(20, 20, 3\)"):
        engine(raw_images(3, 24))


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**_clean_environment(), **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def _clean_environment():
    import os

    hidden = {"CI", "TF_BUILD", "JENKINS_URL"}  # OpenVINO sends nothing if one of these is set
    return {name: value for name, value in os.environ.items() if name not in hidden}


def test_not_installed():
    code = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "openvino":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import keras, numpy as np
from transfer.frozen.engines import make_engine
from transfer.common.errors import InputError
model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
make_engine(model)
engine = make_engine(model)
print(engine(np.ones((2, 8, 8, 3), "uint8")).shape, engine.name)
try:
    make_engine(model, engine="openvino")
except InputError as error:
    print(error)
"""
    done = run_python(code)
    first, second = done.stdout.splitlines()
    assert first == "(2, 3) keras"
    assert "Install it with pip install openvino" in second
    assert done.stderr.count("OpenVINO is not installed. Keras runs the frozen layers instead") == 1


@needs_openvino
def test_no_telemetry_is_sent(tmp_path):
    """Import and compilation open no socket, start no telemetry thread, and write no file about the user."""
    code = """
import socket, sys, threading
def refuse(*args, **kwargs):
    print("CALLED", args)
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import keras, numpy as np
from transfer.frozen.engines import make_engine
model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
engine = make_engine(model, engine="openvino")
engine(np.ones((2, 8, 8, 3), "uint8"))
print(engine.name.split()[0])
print(any(name.startswith("openvino_telemetry") for name in sys.modules))
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
"""
    lines = run_python(code, HOME=str(tmp_path)).stdout.splitlines()
    assert lines == ["openvino", "False", "openvino.tools.ovc.telemetry_stub"]
    assert not (tmp_path / "intel").exists()


def test_relative_error():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0
    assert relative_error(np.array([np.nan, 4.0]), np.array([3.0, 4.0])) == np.inf
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == np.inf


def test_networks_with_early_outputs_do_not_use_bfloat16_automatically(tiny, monkeypatch):
    monkeypatch.setattr(engines, "import_openvino", lambda: object())
    monkeypatch.setattr(engines, "has_bfloat16", lambda: True)
    both = keras.Model(tiny.inputs[0], [tiny.get_layer("block1_add").output, tiny.get_layer("pool").output])
    assert make_engine(both).name == "openvino float32"
    assert make_engine(both, precision="bfloat16").name == "openvino bfloat16"
    assert make_engine(tiny).name == "openvino bfloat16"
