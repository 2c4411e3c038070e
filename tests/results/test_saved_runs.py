"""`save_run` writes a model that was trained in Python as a run that all functions and commands take."""

import importlib
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers.images import COLORS
from helpers.networks import make_tiny

from transfer.adviser.advise import advise
from transfer.cases.builders import large_similar, small_similar, unfreeze
from transfer.common.errors import InputError
from transfer.config import load_config
from transfer.evaluation.evaluate import evaluate
from transfer.exporters.export import export
from transfer.images.datasets import load_data
from transfer.results.file_names import RUN_FILES
from transfer.results.finished_runs import load_run
from transfer.results.predict import predict
from transfer.results.saved_runs import save_run
from transfer.training.fit import fit
from transfer.training.recipes import Recipe
from transfer.training.solved_again import solve_again

NAMES = tuple(COLORS)
ONLY_WITH_ADVICE = {"advice.json", "four_cases.png", "layer_curve.png"}


def color_arrays(each=20):
    """Return noisy images of three colors, and their labels."""
    rng = np.random.default_rng(0)
    colors = np.repeat(np.array([*COLORS.values()]), each, axis=0)[:, None, None]
    images = np.clip(colors + rng.integers(-30, 31, (3 * each, 40, 40, 3)), 0, 255).astype("uint8")
    return images, np.repeat(np.arange(3), each)


@pytest.fixture(scope="module")
def trained():
    """A model that was trained on arrays, its data and its log."""
    data = load_data(color_arrays(), class_names=NAMES, resize="pad", test=0.3)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    return model, data, fit(model, data, verbose=0, engine="keras", class_weights=True, seed=3)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    return save_run(*trained, tmp_path_factory.mktemp("saved") / "new" / "run")


@pytest.fixture(scope="module")
def untested():
    """A trained model without test images, whose run has few figures."""
    data = load_data(color_arrays(each=8), test=0)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    return model, data, fit(model, data, verbose=0, engine="keras")


def test_the_loaded_run_predicts_as_the_model(saved, trained):
    model, data, _ = trained
    run = load_run(saved.folder)
    assert run.class_names == NAMES and run.resize == "pad"
    expected = evaluate(model, data).probabilities
    for predicted in (run.predict(data.test), predict(saved.folder, data.test), predict(model, data.test)):
        np.testing.assert_allclose([one.probabilities for one in predicted], expected, atol=1e-4)


def test_the_folder_has_the_files_of_a_run_of_the_command(saved, strange_run):
    files = {path.name for path in saved.folder.iterdir()}
    command = {path.name for path in strange_run.iterdir()}
    assert files - {"mistakes.png"} == command - {"mistakes.png"} - ONLY_WITH_ADVICE
    assert files | command <= RUN_FILES
    assert [path.name for path in saved.folder.parent.iterdir()] == ["run"]


def test_the_options_are_those_of_the_training(saved, tmp_path, color_folder):
    config = saved.config
    assert (config.data, config.case, config.resize) == ("arrays in memory", "small-similar", "pad")
    assert config.class_weights and (config.seed, config.test, config.learning_rate) == (3, 0.3, None)
    assert saved.metrics["num_test"] == 18 and saved.metrics["optimizer"] == "Adam"
    card, page = ((saved.folder / name).read_text() for name in ("README.md", "report.html"))
    assert "transfer.save_run" in card and "transfer.save_run" in page
    assert "python -m transfer.train" not in card + page

    data = load_data(color_folder, val=6, test=0, few_shot=4)
    model = large_similar(make_tiny(), 3, preprocessing="tf", learning_rate=1e-3)
    recipe = Recipe(layer_decay=0.5)
    log = fit(model, data, epochs=1, batch_size=8, augment="standard", flip=False, verbose=0, recipe=recipe)
    config = save_run(model, data, log, tmp_path / "tuned").config
    assert (config.data, config.few_shot, config.val) == (str(color_folder), 4, 6)
    assert (config.epochs, config.batch_size, config.augment, config.flip) == (1, 8, "standard", "no")
    assert config.layer_decay == 0.5 and config.learning_rate == pytest.approx(1e-3)
    assert load_run(tmp_path / "tuned").data().splits.keys() == data.splits.keys()
    assert load_run(tmp_path / "tuned").data().val.names == data.val.names


def test_a_run_of_arrays_does_not_know_its_images(saved, tmp_path, capsys):
    with pytest.raises(InputError, match=r"arrays in memory.*run\.data\(\(images, labels\)\)"):
        saved.data()
    assert len(saved.data(color_arrays(each=2)).test) == 6
    command = importlib.import_module("transfer.evaluate")
    assert command.main([str(saved.folder)]) == 2
    assert "--data DIR" in capsys.readouterr().err


def test_commands_take_the_run(saved, color_folder, capsys):
    commands = {
        name: importlib.import_module(f"transfer.{name}") for name in ("report", "evaluate", "predict")
    }
    (saved.folder / "report.html").unlink()
    assert commands["report"].main([str(saved.folder)]) == 0
    assert "<title>" in (saved.folder / "report.html").read_text()
    assert commands["evaluate"].main([str(saved.folder), "--data", str(color_folder)]) == 0
    image = next((color_folder / "red").iterdir())
    assert commands["predict"].main([str(saved.folder), str(image)]) == 0
    assert "Accuracy" in capsys.readouterr().out


def test_a_used_folder_is_kept(saved, trained, tmp_path):
    with pytest.raises(InputError, match="overwrite=True"):
        save_run(*trained, saved.folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.jpg").touch()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty, and it is not a run"):
            save_run(*trained, other, overwrite=overwrite)
    with pytest.raises(InputError, match="a file"):
        save_run(*trained, other / "photo.jpg" / "run")
    checkpoints = tmp_path / ".interrupted.partial" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "1.npz").touch()
    with pytest.raises(InputError, match="interrupted training"):
        save_run(*trained, tmp_path / "interrupted")
    assert (checkpoints / "1.npz").exists() and (other / "photo.jpg").exists()


def test_an_earlier_run_is_replaced_on_request(untested, tmp_path):
    run = save_run(*untested, tmp_path / "run")
    assert run.metrics["test_accuracy"] is None and not (run.folder / "predictions.csv").exists()
    assert "no test images" in (run.folder / "README.md").read_text()
    exported = run.folder / "exported" / "onnx"
    exported.mkdir(parents=True)
    (run.folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"other files, such as notes\.txt"):
        save_run(*untested, run.folder, overwrite=True)
    (run.folder / "notes.txt").unlink()
    save_run(*untested, run.folder, overwrite=True)
    assert not exported.exists() and load_run(run.folder).class_names == ("0", "1", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_does_not_belong_together_is_refused(trained, tmp_path):
    model, data, log = trained
    place = tmp_path / "run"
    with pytest.raises(InputError, match="log that fit returned"):
        save_run(model, data, log.history, place)
    with pytest.raises(InputError, match="data that fit got"):
        save_run(model, replace(data, train=data.val), log, place)
    with pytest.raises(InputError, match=r"18 test images\. Received one of 6"):
        save_run(model, data, log, place, evaluation=evaluate(model, data, split="val"))
    with pytest.raises(InputError, match="class names are unknown"):
        save_run(small_similar(make_tiny(), 3, preprocessing="tf"), data, log, place)
    with pytest.raises(InputError, match="Expected a folder"):
        save_run(model, data, log, None)
    with pytest.raises(InputError, match=r"Received: ndarray\..*pass \(images, labels\)"):
        save_run(model, color_arrays()[0], log, place)
    with pytest.raises(InputError, match=r"other training images\..*'val': validation_data"):
        save_run(model, color_arrays(each=10), log, place)
    with pytest.raises(InputError, match=r"a builder made in this process.*model\.save\('mine\.keras'\)"):
        save_run(keras.Sequential([keras.Input((8, 8, 3)), *make_head()]), data, log, place)
    with pytest.raises(InputError, match=r"save_run: unknown argument 'overwite'\. Did you mean overwrite\?"):
        save_run(model, data, log, place, overwite=True)
    assert not list(tmp_path.iterdir())


def make_head():
    """Return the layers of a classifier of three classes."""
    return [keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]


@pytest.mark.parametrize("options", [{}, {"validation_split": 0.25, "seed": 4, "class_names": NAMES}])
def test_images_in_memory_are_saved_in_the_splits_of_fit(options, tmp_path):
    images, labels = color_arrays(each=8)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    log = fit(model, images, labels, verbose=0, engine="keras", **options)
    run = save_run(model, (images, labels), log, tmp_path / "run")
    assert run.class_names == options.get("class_names", ("0", "1", "2"))
    assert run.config.val == options.get("validation_split", 0.1)
    assert "test_accuracy" not in run.metrics or run.metrics["test_accuracy"] is None


def test_a_continued_training_and_its_advice_are_saved(tmp_path):
    data, base = load_data(color_arrays(), test=0), make_tiny()
    advice = advise(data, base, preprocessing="tf", engine="keras", trial=False)
    model = small_similar(base, 3, preprocessing="tf")
    log = fit(model, data, verbose=0, engine="keras")
    unfreeze(model, from_layer="block3_conv")
    second = fit(model, data, epochs=1, verbose=0, engine="keras")
    run = save_run(model, data, [log, second], tmp_path / "run", advice=advice)
    assert run.config.unfreeze_from == "block3_conv" and run.config.epochs == 1
    assert run.metrics["expected_accuracy"] == advice.choice.expected_accuracy
    assert {path.name for path in run.folder.iterdir()} >= ONLY_WITH_ADVICE
    assert len((run.folder / "history.csv").read_text().splitlines()) == 1 + len(log.rows) + len(second.rows)
    assert load_config(run.folder / "config.yaml") == run.config


def test_a_model_is_exported_with_the_data_of_its_training(trained, tmp_path):
    model, data, _ = trained
    with pytest.raises(InputError, match="output=FOLDER"):
        export(model, "saved-model")
    exported = export(model, "saved-model", output=tmp_path / "served")
    assert exported.num_images == len(data.test)
    assert (tmp_path / "served" / "labels.txt").read_text().split() == [*NAMES]
    again = export(model, "saved-model", output=tmp_path / "served", data=data)
    assert again.num_images == len(data.test)


def test_an_export_needs_images_that_are_still_known(saved, tmp_path):
    with pytest.raises(InputError, match=r"arrays in memory.*verify the exported file"):
        export(saved, "saved-model", output=tmp_path / "served")
    own = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])
    with pytest.raises(InputError, match=r"class_names=\[\.\.\.\]"):
        export(own, "saved-model", output=tmp_path / "served")
    with pytest.raises(InputError, match="no longer in memory"):
        export(own, "saved-model", output=tmp_path / "served", class_names=NAMES)
    images, labels = color_arrays(each=2)
    names = np.array(NAMES)[labels]
    options = {"output": tmp_path / "served", "class_names": NAMES, "data": (images, names)}
    assert export(own, "saved-model", **options).num_images == 6


class Twice(keras.layers.Layer):
    """A custom layer, which Keras does not find by its name."""

    def call(self, x):
        return x * 2.0


def test_a_model_with_custom_layers_is_saved_with_a_warning(untested, tmp_path, caplog):
    tiny, data = make_tiny(), untested[1]
    model = small_similar(
        keras.Model(tiny.input, Twice()(tiny.get_layer("pool").output)), 3, preprocessing="tf"
    )
    run = save_run(model, data, fit(model, data, verbose=0, engine="keras"), tmp_path / "run")
    assert run.model is model and "needs 'Twice'" in caplog.text
    again = load_run(tmp_path / "run", custom_objects={"Twice": Twice})
    for one, other in zip(run.predict(data.val), again.predict(data.val), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)


def test_sets_of_a_head_that_saw_the_validation_images_use_held_out_predictions(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (120, 24, 24, 3)).astype("uint8"), np.arange(120) % 3
    data = load_data((images, labels), val=40, test=0, near_duplicates=False)
    model = large_similar(make_tiny(), 3, preprocessing="tf")
    log = fit(model, data, epochs=1, verbose=0)
    again = solve_again(model, data, engine="keras")
    run = save_run(again.model, again.data, [log, again.log], tmp_path / "run")
    expected = 1 - again.val_probabilities[np.arange(len(data.val)), data.val.labels]
    np.testing.assert_allclose(run.reference.scores, np.sort(expected), atol=1e-6)
    assert (log + again.log + log).val_probabilities is None
