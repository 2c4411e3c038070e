"""Saved models: every version of Keras loads ours, and ours loads those of other programs."""

import configparser
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from helpers.networks import assert_same_function, make_tiny, policy, raw_images

from transfer import InputError
from transfer.networks import model_files
from transfer.networks.model_files import save_model, saved_model

ROOT = Path(__file__).parents[2]
IMAGES = raw_images() / 127.5 - 1
SCRIPT = ROOT / "tests" / "scripts" / "keras_versions.py"


def config_in(file):
    with zipfile.ZipFile(file) as archive:
        return archive.read("config.json").decode()


def change_entry(file, entry, change):
    """Change a text in a .keras file."""
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents[entry] = change(contents[entry].decode()).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def floor():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return re.search(r"^keras>=([\d.]+)", parser["options"]["install_requires"], re.M)[1]


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """The environment of a process with the oldest Keras that setup.cfg allows."""
    folder = tmp_path_factory.mktemp("keras")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    if subprocess.run([*command, f"keras=={floor()}.0"], capture_output=True).returncode:
        pytest.skip("needs a network connection")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def run_script(job, place, environment=None):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), job, str(place)],
        capture_output=True,
        text=True,
        env=environment or {**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.slow
def test_the_oldest_keras_loads_our_models_and_we_load_its_models(oldest, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir(), old.mkdir()
    run_script("write", new)
    loaded = run_script("load", new, oldest)
    assert loaded[::2] == sorted(file.stem for file in new.glob("*.keras"))
    assert set(loaded[1::2]) == {"True"}
    run_script("write", old, oldest)
    assert run_script("load", old) == loaded


@pytest.mark.slow
def test_every_argument_that_keras_has_added_is_in_the_table(oldest, tmp_path):
    run_script("signatures", tmp_path / "old.json", oldest)
    run_script("signatures", tmp_path / "new.json")
    old, new = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("old", "new"))
    assert len(old) > 100
    added = {
        (name, default)
        for kind in set(old) & set(new)
        for name, default in new[kind].items()
        if name not in old[kind] and name not in ("args", "kwargs")
    }
    assert {name: default for name, default in added if repr(model_files._ADDED.get(name)) != default} == {}


def test_a_saved_model_lacks_the_keys_that_older_versions_refuse(tiny, tmp_path):
    save_model(tiny, tmp_path / "m.keras")
    text = config_in(tmp_path / "m.keras")
    assert not [key for key in model_files._ADDED if f'"{key}":' in text]
    assert '"epsilon": 0.001' in text  # other defaults stay: they may differ between versions
    assert_same_function(tiny, keras.models.load_model(tmp_path / "m.keras"), IMAGES)
    assert [file.name for file in tmp_path.iterdir()] == ["m.keras"]


@keras.saving.register_keras_serializable("test_model_files")
class Salted(keras.layers.Layer):
    """A layer with an argument of the name of one that Keras has added."""

    def __init__(self, salt, **kwargs):
        super().__init__(**kwargs)
        self.salt = salt

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "salt": self.salt}


def test_keys_of_custom_layers_and_other_values_stay(tmp_path):
    image = keras.Input((8, 8, 3))
    layer = keras.layers.Dense(3, kernel_initializer="zeros")
    model = keras.Model(image, layer(Salted(None)(image)))
    save_model(model, tmp_path / "m.keras")
    assert '"salt": null' in config_in(tmp_path / "m.keras")
    changed = model_files._for_all_versions(
        {
            "module": "keras.layers",
            "config": {"renorm": True, "renorm_momentum": 0.9, "renorm_clipping": None},
        }
    )
    assert changed["config"] == {"renorm": True, "renorm_momentum": 0.9}


def as_keras_2(file):
    """Change the configuration in an HDF5 file to what Keras 2 writes."""

    def change(layer, first):
        config = layer["config"]
        if layer["class_name"] == "DepthwiseConv2D":
            config["groups"] = 1
        if layer["class_name"] == "BatchNormalization":
            config.update(axis=[3], fused=True, renorm=False)
        if layer["class_name"] == "InputLayer":
            config["batch_input_shape"] = config.pop("batch_shape")
            config.pop("optional", None)
        elif first:
            config["batch_input_shape"] = [None, 32, 32, 3]
        config["dtype"] = {"class_name": "Policy", "config": {"name": "float32"}}
        config.pop("quantization_config", None)
        layer["module"] = "keras.src.engine"

    with h5py.File(file, "r+") as opened:
        config = json.loads(opened.attrs["model_config"])
        for number, layer in enumerate(config["config"]["layers"]):
            change(layer, number == 0)
        text = json.dumps(config).replace('"block_a"', '"block/a"')
        opened.attrs["model_config"] = text.encode()
        opened.attrs["keras_version"] = b"2.15.0"


def old_network():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(4, 3, name="block_a"),
            layers.DepthwiseConv2D(3),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ],
        name="old",
    )


def test_a_file_of_keras_2_loads_with_its_weights(tmp_path):
    model = old_network()
    model.save(tmp_path / "m.h5")
    as_keras_2(tmp_path / "m.h5")
    before = (tmp_path / "m.h5").read_bytes()
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(tmp_path / "m.h5")
    assert_same_function(model, saved_model(tmp_path / "m.h5"), IMAGES)
    assert (tmp_path / "m.h5").read_bytes() == before


@pytest.mark.parametrize(("saved", "name"), [("m.h5", "m.keras"), ("m.keras", "m.h5"), ("m.h5", "m.hdf5")])
def test_the_content_decides_and_not_the_suffix(saved, name, tiny, tmp_path):
    tiny.save(tmp_path / saved)
    (tmp_path / saved).rename(tmp_path / name)
    assert_same_function(tiny, saved_model(tmp_path / name), IMAGES)


def test_a_model_with_keys_of_a_newer_version_loads_if_they_hold_defaults(tiny, tmp_path, monkeypatch):
    tiny.save(tmp_path / "m.keras")
    change_entry(
        tmp_path / "m.keras", "config.json", lambda text: text.replace('"filters"', '"new": 7, "filters"')
    )
    with pytest.raises(InputError, match="'new': 7"):
        saved_model(tmp_path / "m.keras")
    monkeypatch.setitem(model_files._ADDED, "new", 7)
    assert_same_function(tiny, saved_model(tmp_path / "m.keras"), IMAGES)


def test_the_error_names_both_versions(tiny, tmp_path):
    tiny.save(tmp_path / "m.keras")
    change_entry(
        tmp_path / "m.keras", "config.json", lambda text: text.replace('"filters"', '"new": 7, "filters"')
    )
    change_entry(tmp_path / "m.keras", "metadata.json", lambda t: t.replace(keras.__version__, "99.1.0"))
    with pytest.raises(InputError) as raised:
        saved_model(tmp_path / "m.keras")
    assert f"Keras {keras.__version__} cannot load" in str(raised.value)
    assert "which Keras 99.1.0 wrote: Unrecognized" in str(raised.value)
    assert str(raised.value).endswith('Update Keras: pip install "keras>=99.1.0".')


def write_lambda(file):
    image = keras.Input((8, 8, 3))
    keras.Model(image, keras.layers.Lambda(lambda x: x / 255)(image)).save(file)


def write_keras_2(file):
    make_tiny().save(file)
    change_entry(file, "metadata.json", lambda text: text.replace(keras.__version__, "2.15.0"))
    change_entry(file, "config.json", lambda text: text.replace('"filters"', '"new": 7, "filters"'))


def write_cut_off(file):
    make_tiny().save(file)
    file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("m.keras", write_lambda, "has a Lambda layer, which holds code of its own that is not run"),
        ("m.h5", write_lambda, "has a Lambda layer, which holds code of its own that is not run"),
        ("m.keras", write_keras_2, r"by Keras 2\.15\.0, and Keras \S+ reads only \.h5 files of Keras 2"),
        ("m.keras", write_cut_off, "is cut off or damaged"),
        ("m.keras", lambda f: f.write_bytes(b""), "is empty"),
        ("m.keras", lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        ("m.h5", lambda f: f.write_text("<!DOCTYPE html><html>"), "is a web page"),
        ("m.h5", lambda f: f.write_bytes(b"\x80\x04K\x01."), "is not a model of Keras"),
    ],
)
def test_a_file_that_cannot_be_loaded_raises_one_sentence(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as raised:
        saved_model(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_weights_without_a_network_are_reported_as_weights(tiny, tmp_path):
    tiny.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.weights.h5").rename(tmp_path / "m.h5")
    with pytest.raises(InputError, match=r"holds weights without their network. Pass it as --weights"):
        saved_model(tmp_path / "m.h5")


MODULE = """
import keras
print("imported")  # the log of a test shows whether the module is imported

class Scale(keras.layers.Layer):
    def call(self, x):
        return x / 255
"""


@pytest.fixture
def custom(tmp_path, monkeypatch):
    """A folder with a module that defines a layer, and a model with that layer."""
    (tmp_path / "own_layers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    scale = vars(model_files._module("own_layers.py", str(tmp_path)))["Scale"]
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3)(scale()(image))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)).save(tmp_path / "own.keras")
    model_files._module.cache_clear()
    monkeypatch.delitem(sys.modules, "own_layers", raising=False)
    return tmp_path


@pytest.mark.parametrize("form", ["own_layers", "own_layers.py", "path", "dictionary"])
def test_custom_layers_come_from_a_module_or_a_dictionary(form, custom, monkeypatch):
    given = {"path": custom / "own_layers.py"}.get(form, form)
    if form == "dictionary":
        given = model_files.find_objects("own_layers")
    path = list(sys.path)
    assert saved_model(custom / "own.keras", custom_objects=given).layers[1].name.startswith("scale")
    assert sys.path == path


def test_no_module_is_imported_unless_it_is_named(custom, capsys):
    with pytest.raises(InputError, match=r"needs 'Scale', .* --custom-objects own_layers \(in Python"):
        saved_model(custom / "own.keras", module="own_layers")
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"needs 'Scale', .* --custom-objects MODULE"):
        saved_model(custom / "own.keras")


@pytest.mark.parametrize("name", ["gone", "gone.py", "broken.py", "empty"])
def test_a_module_that_cannot_be_imported_is_named(name, custom):
    (custom / "broken.py").write_text("1 / 0")
    (custom / "empty").write_text("")
    with pytest.raises(InputError, match=f"Cannot import the custom objects '{name}'"):
        saved_model(custom / "own.keras", custom_objects=name)


def test_other_forms_of_custom_objects_are_refused():
    with pytest.raises(
        InputError, match="Expected custom_objects as the name or the path of a Python module"
    ):
        model_files.find_objects([Salted])


def test_a_mixed_precision_model_keeps_its_policies(tmp_path):
    with policy("mixed_bfloat16"):
        model = make_tiny()
    save_model(model, tmp_path / "m.keras")
    loaded = saved_model(tmp_path / "m.keras")
    assert [layer.dtype_policy.name for layer in loaded.layers[1:]] == [
        x.dtype_policy.name for x in model.layers[1:]
    ]
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
