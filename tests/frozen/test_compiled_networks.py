"""Compiled networks are read from disk by later runs, and only where they fit."""

import importlib.util
import zipfile

import numpy as np
import pytest
from helpers.networks import make_tiny, raw_images

from transfer import features
from transfer.common.cache_folder import default_cache_folder
from transfer.frozen import compiled_networks, engines
from transfer.frozen.compiled_networks import CompiledNetwork
from transfer.frozen.engines import Engine

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)
ALL = ("openvino float32", "keras", "keras predict")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path))
    return compiled_networks.compiled_folder()


@pytest.fixture
def compiled(monkeypatch):
    """The precisions that were compiled."""
    found, original = [], engines._openvino
    monkeypatch.setattr(engines, "_openvino", lambda *a: found.append(a[-1]) or original(*a))
    return found


def run(model, images, *, names=ALL):
    engine = Engine(model, list(names), 8)
    return engine(images), engine.name


@needs_openvino
def test_a_later_run_neither_compiles_nor_compares(compiled, monkeypatch):
    model, images = make_tiny(), raw_images(5)
    first, _ = run(model, images)
    assert compiled == ["float32"]
    monkeypatch.setattr(engines, "relative_error", lambda *_: pytest.fail("compared again"))
    again, name = run(model, images)
    assert compiled == ["float32"] and name == "openvino float32"
    np.testing.assert_array_equal(again, first)


@needs_openvino
@pytest.mark.parametrize("what", ["weights", "size", "processor"])
def test_another_network_size_or_processor_is_compiled(what, compiled, monkeypatch):
    model = make_tiny()
    run(model, raw_images(5))
    if what == "weights":
        layer = model.get_layer("block2_conv")
        layer.set_weights([2 * values for values in layer.get_weights()])
    if what == "processor":
        monkeypatch.setattr(engines, "processor", lambda: "another CPU")
    if what == "size":
        model = make_tiny(image_size=64)
    run(model, raw_images(5, model.input_shape[1]))
    assert len(compiled) == 2


@needs_openvino
def test_a_rejected_engine_is_rejected_again_without_compilation(compiled, monkeypatch, caplog):
    monkeypatch.setitem(engines.TOLERANCE, "float32", -1.0)
    model, images = make_tiny(), raw_images(5)
    for _ in range(2):
        monkeypatch.setattr(engines, "_tolerance", lambda name, _: -1 if "openvino" in name else 1)
        assert run(model, images)[1] == "keras"
    assert compiled == ["float32"]
    first, second = [record.getMessage() for record in caplog.records]
    assert first == second and "engine openvino float32 differs from Keras by" in first


@needs_openvino
@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "unknown"])
def test_a_damaged_file_is_replaced(damage, compiled, cache):
    model, images = make_tiny(), raw_images(5)
    first, _ = run(model, images)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 255
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    if damage == "unknown":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("part-0", b"what no version of OpenVINO reads")
    again, name = run(model, images)
    assert name == "openvino float32" and len(compiled) == 2
    np.testing.assert_array_equal(again, first)
    run(model, images)
    assert len(compiled) == 2


@needs_openvino
def test_a_folder_that_is_not_writable_changes_nothing(compiled, cache, caplog):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file in place of the folder")
    for _ in range(2):
        assert run(make_tiny(), raw_images(5))[1] == "openvino float32"
    assert len(compiled) == 2 and not caplog.records


def test_the_least_recently_used_networks_are_deleted(monkeypatch, cache):
    monkeypatch.setattr(compiled_networks, "LIMIT", 6000)
    network = CompiledNetwork((bytes(1000), bytes(500)))
    for key in "abc":
        compiled_networks.write(key, network)
    assert compiled_networks.read("a") == network
    compiled_networks.write("d", network)
    assert {key for key in "abcd" if compiled_networks.read(key)} == {"a", "c", "d"}
    compiled_networks.write("e", CompiledNetwork((bytes(1600),)))
    assert compiled_networks.read("e") is None, "too large"


def test_features_lists_and_clears_them(capsys):
    compiled_networks.write("a", CompiledNetwork((bytes(10**6),)))
    assert features.main(["--list"]) == 0
    assert "1 compiled network, 1.0 MB" in capsys.readouterr().out
    assert features.main(["--clear"]) == 0
    assert "Removed 1.0 MB" in capsys.readouterr().out
    assert not compiled_networks.sizes(default_cache_folder())
