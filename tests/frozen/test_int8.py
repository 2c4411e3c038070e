"""int8 runs only where training images set its ranges, differs little from Keras, and has its own features."""

import importlib.util
import logging
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers.networks import infer, make_tiny

import transfer
from transfer.common.errors import InputError
from transfer.config import AdviceConfig, TrainConfig
from transfer.frozen import engines, quantization
from transfer.frozen.engines import make_engine, relative_error
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.openvino_engine import INT8
from transfer.frozen.quantization import CALIBRATED, CHECKED, calibration_of
from transfer.frozen.store_keys import open_store
from transfer.networks import surgery

SIZE = (32, 32)
needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="the extra int8 is not installed"
)


@pytest.fixture(scope="module")
def data():
    return transfer.load_data("emoji")


@pytest.fixture(scope="module")
def base():
    return make_tiny()


@pytest.fixture(scope="module")
def extractor(base):
    return surgery.feature_extractor_of(
        surgery.clone(base, preprocess=keras.layers.Rescaling(1 / 127.5, offset=-1))
    )


@pytest.fixture(autouse=True)
def few_images(tmp_path, monkeypatch):
    """Quantize on a few images, in an empty cache."""
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantization, "CALIBRATED", 24)
    monkeypatch.setattr(quantization, "CHECKED", 8)
    monkeypatch.setitem(engines.TOLERANCE, "int8", 0.3)  # few and small images have larger errors


@pytest.fixture
def quantized(monkeypatch):
    """The calibrations of the networks that were quantized."""
    found, original = [], engines.quantize
    monkeypatch.setattr(engines, "quantize", lambda n, c, **o: found.append(c.key) or original(n, c, **o))
    return found


def engine_of(extractor, train):
    return make_engine(extractor, engine=INT8, calibration=calibration_of(train, SIZE))


def store_of(engine):
    """Return the folder of an engine's features."""
    return open_store(engine, image_size=SIZE, resize="stretch", dtype="float32", cache=FeatureCache()).folder


def test_calibration_takes_images_evenly_and_checks_on_others(data, monkeypatch):
    monkeypatch.setattr(quantization, "CALIBRATED", CALIBRATED)
    monkeypatch.setattr(quantization, "CHECKED", CHECKED)
    chosen = calibration_of(data.train, SIZE)
    assert (len(chosen.ranges), len(chosen.checks)) == (CALIBRATED, CHECKED)
    assert not set(chosen.ranges.digests) & set(chosen.checks.digests)
    assert set(chosen.ranges.labels) == set(chosen.checks.labels) == set(data.train.labels)
    assert chosen.key == calibration_of(data.train, SIZE).key
    others = [calibration_of(data.train.take(range(1, 300)), SIZE), calibration_of(data.train, (64, 64))]
    others.append(calibration_of(replace(data.train, resize="crop"), SIZE))
    assert len({chosen.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 9, 150, 200])
def test_calibration_of_few_images(count, data, monkeypatch):
    monkeypatch.setattr(quantization, "CALIBRATED", CALIBRATED)
    monkeypatch.setattr(quantization, "CHECKED", CHECKED)
    chosen = calibration_of(data.train.take(range(count)), SIZE)
    if count < 2:
        assert chosen is None
    else:
        assert 1 <= len(chosen.checks) <= CHECKED and len(chosen.ranges) >= 1
        assert len(chosen.checks) + len(chosen.ranges) == min(count, CALIBRATED + CHECKED)


@needs_nncf
def test_features_differ_little_and_later_runs_do_not_quantize_again(
    extractor, data, quantized, capfd, caplog
):
    with caplog.at_level(logging.INFO):
        engine = engine_of(extractor, data.train)
    assert engine.name == "openvino int8" and len(quantized) == 1
    assert "int8: features differ from float32 by" in caplog.text
    assert capfd.readouterr() == ("", "")
    assert logging.getLoggerClass() is logging.Logger
    images = np.stack([data.test.image(i, SIZE) for i in range(32)])
    result, expected = engine(images), infer(extractor, images.astype("float32"))
    assert 1e-3 < relative_error(result, expected) < 0.3
    again = engine_of(extractor, data.train)
    assert again.name == "openvino int8" and len(quantized) == 1
    np.testing.assert_array_equal(again(images), result)


@needs_nncf
def test_a_float_engine_replaces_int8_with_large_errors(extractor, data, quantized, monkeypatch, caplog):
    monkeypatch.setitem(engines.TOLERANCE, "int8", 1e-6)
    for _ in range(2):
        engine = engine_of(extractor, data.train)
        assert engine.name in ("openvino bfloat16", "openvino float32")
        (record,) = caplog.records
        assert record.message.startswith(f"{extractor.name!r}: engine openvino int8 differs from Keras by")
        assert store_of(engine) == store_of(make_engine(extractor))
        caplog.clear()
    assert len(quantized) == 1


@needs_nncf
def test_features_of_other_training_images_are_kept_apart(extractor, data, quantized):
    stores = [store_of(make_engine(extractor))]
    for train in (data.train, data.train.take(range(100))):
        stores.append(store_of(engine_of(extractor, train)))
    assert len(set(stores)) == 3
    assert len(set(quantized)) == 2


@needs_nncf
def test_fit_and_evaluate_use_one_quantized_network(base, data, quantized):
    model = transfer.small_similar(base, data.num_classes, preprocessing="tf")
    log = transfer.fit(model, data, engine=INT8, verbose=0)
    assert log.engine == "openvino int8"
    result = transfer.evaluate(model, data, engine=INT8)
    assert quantized == [calibration_of(data.train, SIZE).key]
    plain = transfer.evaluate(model, data)
    assert relative_error(result.probabilities, plain.probabilities) > 1e-3
    assert abs(result.accuracy - plain.accuracy) < 0.15


@needs_nncf
def test_upper_layers_train_on_features_in_full_precision(base, data, quantized):
    model = transfer.small_similar(base, data.num_classes, preprocessing="tf", unfreeze_from="block3_conv")
    log = transfer.fit(model, data, engine=INT8, epochs=1, initial_head="keep", flip=True, verbose=0)
    assert log.engine == "openvino float32" and not quantized


def test_without_training_images(extractor, base, data):
    model = transfer.small_similar(base, data.num_classes, preprocessing="tf")
    with pytest.raises(InputError, match=r"needs training images.*--quantize int8"):
        make_engine(extractor, engine=INT8, calibration=None)
    with pytest.raises(InputError, match="needs training images"):
        transfer.predict(model, [np.zeros((9, 9, 3), "uint8")], class_names=data.class_names, engine=INT8)
    with pytest.raises(InputError, match=r"needs (training images|NNCF)"):
        transfer.evaluate(model, np.full((12, *SIZE, 3), 200, "uint8"), np.arange(12), engine=INT8)


def test_options_that_compare_layers_refuse_int8():
    with pytest.raises(InputError, match="--case small-similar or small-different"):
        TrainConfig(engine=INT8)
    assert TrainConfig(engine=INT8, case="small-similar").engine == INT8
    with pytest.raises(InputError, match="advice compares layers in full precision"):
        AdviceConfig(engine=INT8)


def test_a_missing_package_is_reported_before_any_work(base, data, monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    model = transfer.small_similar(base, data.num_classes, preprocessing="tf")
    with pytest.raises(InputError, match=r'needs NNCF.*pip install "transfer-cases\[int8\]"'):
        transfer.fit(model, None, engine=INT8)


@pytest.mark.parametrize("what", ["on_accelerator", "_TENSORFLOW"])
def test_accelerators_and_jax_are_refused(what, monkeypatch):
    monkeypatch.setattr(engines, what, (lambda: True) if what == "on_accelerator" else False)
    with pytest.raises(InputError, match=r"engine='openvino-int8' (runs on the CPU|needs TensorFlow)"):
        engines.check_engine(INT8)


@needs_nncf
def test_no_telemetry_is_sent():
    """Import and quantization open no socket and import no telemetry."""
    code = """
import socket, sys
def refuse(*a, **k): raise SystemExit("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import keras, transfer
from transfer.frozen import quantization
from transfer.frozen.engines import make_engine
quantization.CALIBRATED, quantization.CHECKED = 8, 4
data = transfer.load_data("emoji")
model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()])
make_engine(model, engine="openvino-int8", calibration=quantization.calibration_of(data.train, (16, 16)))
import nncf.telemetry.wrapper
print(isinstance(nncf.telemetry.wrapper.telemetry, nncf.telemetry.wrapper.NNCFTelemetry))
print(any(name.startswith("openvino_telemetry") for name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ["False", "False"], result.stderr[-2000:]


@needs_nncf
def test_networks_with_several_outputs(data):
    image = keras.Input((*SIZE, 3))
    maps = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    pooled = [keras.layers.GlobalAveragePooling2D()(x) for x in (maps, keras.layers.Conv2D(8, 3)(maps))]
    engine = engine_of(keras.Model(image, pooled), data.train)
    assert engine(np.zeros((1, *SIZE, 3), "uint8")).shape == (1, 16)
