"""Wrong settings of Keras raise one sentence that names the file or the variable."""

import json
import os
import subprocess
import sys

import pytest

from transfer import InputError
from transfer.common import keras_setup

GOOD = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of Keras' settings, as a process sees it before it imports Keras."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    return tmp_path


def write(home, **changes):
    (home / "keras.json").write_text(json.dumps({**GOOD, **changes}), encoding="utf-8")


def test_the_settings_that_keras_writes_are_valid(home):
    keras_setup.check_keras()
    assert keras_setup.backend() == "tensorflow"
    write(home, floatx="float64")
    keras_setup.check_keras()


def test_jax_is_a_valid_backend_if_it_is_installed(home):
    pytest.importorskip("jax")
    write(home, backend="jax")
    keras_setup.check_keras()
    assert keras_setup.backend() == "jax"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("backend", name) for name in ("theano", "cntk", "mxnet", "torch", "numpy", "openvino", "", None)],
        *[("image_data_format", name) for name in ("channels_first", "NHWC", None)],
        *[("floatx", name) for name in ("bfloat16", "float", "mixed_float16", 32)],
        *[("epsilon", value) for value in (1, "1e-7", 0.0, -1e-7, 0.5, None)],
    ],
)
def test_a_wrong_setting_names_the_file_and_the_value(home, key, value):
    write(home, **{key: value})
    with pytest.raises(InputError) as raised:
        keras_setup.check_keras()
    message = str(raised.value)
    assert str(home / "keras.json") in message
    assert key in message
    assert (json.dumps(value) if key != "backend" else repr(str(value))) in message


@pytest.mark.parametrize("text", ["{", '{"backend": "jax",}', "[]", '"jax"', "\ufeff{}", "<html>"])
def test_a_file_that_keras_would_ignore_is_an_error(home, text):
    (home / "keras.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="Correct or delete the file"):
        keras_setup.check_keras()


def test_an_empty_file_and_an_empty_variable_are_no_settings(home, monkeypatch):
    (home / "keras.json").write_text("")
    monkeypatch.setenv("KERAS_BACKEND", "")
    keras_setup.check_keras()
    assert keras_setup.backend() == "tensorflow"


def test_a_folder_in_place_of_the_file_is_an_error(home):
    (home / "keras.json").mkdir()
    with pytest.raises(InputError, match="Cannot read the settings of Keras in"):
        keras_setup.check_keras()


@pytest.mark.parametrize("name", ["torch", "openvino", "numpy", "TensorFlow", "pytorch"])
def test_a_wrong_variable_is_reported_even_if_the_file_is_valid(home, monkeypatch, name):
    write(home)
    monkeypatch.setenv("KERAS_BACKEND", name)
    with pytest.raises(InputError, match=f"{name!r}, from the environment variable KERAS_BACKEND"):
        keras_setup.check_keras()


def test_a_backend_that_is_not_installed_says_how_to_install_it(home, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(keras_setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'jax', which is not installed\. Install it \(pip install"):
        keras_setup.check_keras()


def test_a_limit_must_be_a_number(home, monkeypatch):
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "many")
    with pytest.raises(InputError, match=r"KERAS_MAX_EPOCHS\. Received: 'many'"):
        keras_setup.check_keras()


def test_a_wrong_backend_of_matplotlib_is_one_sentence(strange_run, tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    done = run("-m", "transfer.predict", strange_run, tmp_path / "image.png", MPLBACKEND="junk")
    assert done.returncode == 2
    assert done.stderr.startswith("Expected a backend of matplotlib in the environment variable MPLBACKEND")
    assert "Received: 'junk'. Change or unset the variable." in done.stderr and done.stderr.count("\n") == 1


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_a_command_prints_one_sentence_and_exits_with_2(color_folder, tmp_path):
    done = run(
        *("-m", "transfer.train", "--data", color_folder, "--output", tmp_path / "o"), KERAS_BACKEND="torch"
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "KERAS_BACKEND" in done.stderr


def test_in_python_the_first_name_raises_the_same_sentence(tmp_path):
    write(tmp_path, image_data_format="channels_first")
    code = "import transfer\ntry:\n    transfer.build\nexcept transfer.InputError as error:\n    print(error)"
    done = run("-c", code, KERAS_HOME=str(tmp_path))
    assert done.stdout.startswith("Expected 'image_data_format': \"channels_last\" in ")
    assert done.stderr == ""


def test_a_broken_tensorflow_is_one_sentence(color_folder, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('DLL load failed')")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = run("-m", "transfer.advice", "--data", color_folder, PYTHONPATH=paths)
    assert done.returncode == 2
    assert done.stderr.startswith("TensorFlow cannot be imported: DLL load failed. Install it again: pip")
