"""`--custom-objects`: a network with custom layers, from training to export."""

import os
import subprocess
import sys

import pytest

from transfer import InputError, load_run, predict
from transfer.parsing import parse_arguments

PROGRAM = """
import keras

class Scale(keras.layers.Layer):
    def call(self, x):
        return x / 255

def swish(x):
    return x * keras.ops.sigmoid(2 * x)

class Block(keras.Model):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convs = [keras.layers.Conv2D(filters, 3, activation=swish) for _ in range(2)]

    def call(self, x):
        for conv in self.convs:
            x = conv(x)
        return x

    def get_config(self):
        return {"name": self.name, "filters": self.filters}

if __name__ == "__main__":
    L, image = keras.layers, keras.Input((32, 32, 3))
    maps = L.Conv2D(8, 3, activation=swish)(Scale()(image))
    maps = L.Lambda(swish, output_shape=(28, 28, 8))(Block(8)(L.ZeroPadding2D()(maps)))
    keras.Model(image, L.GlobalAveragePooling2D()(maps)).save("own.keras")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A folder with a program that has saved a network with custom layers and functions."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "my_layers.py").write_text(PROGRAM)
    # The layers of a program that runs itself belong to the module __main__.
    subprocess.run([sys.executable, "my_layers.py"], cwd=folder, check=True, capture_output=True)
    return folder


def run(folder, *arguments):
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def trained(program, color_folder):
    """The folder of a run with that network."""
    options = [
        "--model",
        "own.keras",
        "--preprocessing",
        "none",
        "--case",
        "small-similar",
        "--output",
        "run",
    ]
    done = run(
        program, "transfer.train", "--data", color_folder, *options, "--custom-objects", "my_layers.py"
    )
    assert done.returncode == 0, done.stderr
    return program / "run"


def test_a_run_is_not_loaded_without_its_module_and_says_which(trained):
    with pytest.raises(
        InputError, match=r"needs '(Scale|swish|Block)'.* --custom-objects my_layers\.py \(in Python"
    ):
        load_run(trained)


def test_commands_take_the_module(trained, program, color_folder):
    image = next(color_folder.rglob("*.png"))
    flag = ["--custom-objects", "my_layers"]
    shown = run(program, "transfer.predict", "run", image, *flag)
    assert (shown.returncode, shown.stderr) == (0, "")
    measured = run(program, "transfer.evaluate", "run", *flag, "--assert-accuracy-at-least", "0.9")
    assert measured.returncode == 0, measured.stderr
    written = run(program, "transfer.export", "run", "--to", "saved-model", "--output", "served", *flag)
    assert written.returncode == 0, written.stderr
    assert (program / "served" / "saved_model.pb").is_file() or list((program / "served").rglob("*.pb"))


def test_python_takes_the_module_too(trained, program, color_folder):
    loaded = load_run(trained, custom_objects=program / "my_layers.py")
    assert not predict(loaded, next(color_folder.rglob("*.png")))[0].problem


def test_a_yaml_file_alone_imports_no_module(trained):
    with pytest.raises(InputError, match=r"names the module 'my_layers\.py', whose code would be run"):
        parse_arguments(["--config", str(trained / "config.yaml")])
    flags = ["--config", str(trained / "config.yaml"), "--custom-objects", "my_layers.py"]
    assert parse_arguments(flags).custom_objects == "my_layers.py"
