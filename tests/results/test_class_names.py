"""A Keras model without class names predicts with the names that the user gives, and refuses wrong ones."""

import importlib
import shutil

import keras
import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.results.finished_runs import load_run
from transfer.results.predict import Prediction, predict

NAMES = ["cat", "dog", "emu"]
IMAGE = np.random.default_rng(0).integers(0, 256, (12, 9, 3)).astype("uint8")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    scaled = [keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Flatten()]
    return keras.Sequential([*scaled, layers.Dense(3, "softmax")])


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mine.keras"
    model.save(path)
    return path


def test_a_model_and_its_file_predict_with_given_class_names(model, file, tmp_path):
    small = IMAGE[:8, :8]
    expected = model.predict(small[None].astype("float32"), verbose=0)[0]
    model.save(tmp_path / "old.h5")
    for source in (model, file, str(tmp_path / "old.h5"), load_run(file, class_names=NAMES)):
        names = None if hasattr(source, "folder") else NAMES
        one = predict(source, small, class_names=names)[0]
        np.testing.assert_allclose(one.probabilities, expected, atol=1e-6)
        assert one.label == NAMES[expected.argmax()]


def test_without_class_names_the_error_says_how_to_give_them(model, file, tmp_path, capsys):
    for source in (model, file):
        with pytest.raises(InputError, match=r"images, class_names=\[\.\.\.\]\)"):
            predict(source, IMAGE)
    for command in ("evaluate", "predict"):
        keras.utils.save_img(tmp_path / "image.png", IMAGE, scale=False)
        more = [str(tmp_path / "image.png")] if command == "predict" else []
        assert importlib.import_module(f"transfer.{command}").main([str(file), *more]) == 2
        assert "--class-names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abc", "as a list.*'abc'"),
        ({"cat": 0, "dog": 1, "emu": 2}, "as a list"),
        ([1, 2, 3], "as a list"),
        ([], "as a list"),
        (["cat", "dog"], "Expected 3 different class names.*Received: 2"),
        (["cat", "dog", "cat"], "'cat' more than once"),
    ],
)
def test_wrong_class_names_are_refused(names, message, model, file):
    for source in (model, file):
        with pytest.raises(InputError, match=message):
            predict(source, IMAGE, class_names=names)


def test_class_names_of_a_run_cannot_be_changed(strange_run, tmp_path):
    run = load_run(strange_run)
    alone = shutil.copy(strange_run / "model.keras", tmp_path / "alone.keras")
    for source in (run, run.model, strange_run, alone):
        assert predict(source, IMAGE, class_names=run.class_names)[0].label in run.class_names
        with pytest.raises(InputError, match="Expected the class names of the training"):
            predict(source, IMAGE, class_names=run.class_names[::-1])


def test_the_command_takes_class_names(file, tmp_path, capsys):
    path = tmp_path / "image.png"
    keras.utils.save_img(path, IMAGE, scale=False)
    command = importlib.import_module("transfer.predict")
    flags = [str(file), str(path), "--top", "3", "--class-names"]
    assert command.main([*flags, ",".join(NAMES)]) == 0
    assert all(name in capsys.readouterr().out for name in NAMES[:1])
    assert command.main([*flags, "cat,dog"]) == 2
    assert "Received: 2" in capsys.readouterr().err


def test_logits_and_images_of_any_size_are_refused(model):
    layers = keras.layers
    logits = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(InputError, match="returns probabilities"):
        predict(logits, IMAGE, class_names=NAMES)
    free = keras.Sequential(
        [keras.Input((None, None, 3)), layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")]
    )
    with pytest.raises(InputError, match="fixed image size"):
        predict(free, IMAGE, class_names=NAMES)
    with pytest.raises(InputError, match="probabilities of shape"):
        predict(keras.Sequential([keras.Input((8,)), layers.Dense(3)]), IMAGE, class_names=NAMES)


def test_no_images_give_no_predictions_and_a_warning(model, caplog):
    assert predict(model, [], class_names=NAMES) == []
    assert "Received no images" in caplog.text


@pytest.mark.parametrize("count", [0, -1, 1.5, None])
def test_the_number_of_classes_is_at_least_one(count):
    one = Prediction("x", ("cat", "dog"), np.array([0.25, 0.75]))
    with pytest.raises(InputError, match="1 or more"):
        one.top(count)
    assert one.top(9) == [("dog", 0.75), ("cat", 0.25)]


def test_deep_values_in_float_say_how_to_convert_them(model):
    one = predict(model, [np.full((8, 8, 3), 4000.0)], class_names=NAMES)[0]
    assert "convert them to uint16" in one.problem
    deep = predict(model, [np.full((8, 8, 3), 4000, "uint16")], class_names=NAMES)[0]
    assert "convert" not in deep.problem and "scale them to 0 to 255" in deep.problem
