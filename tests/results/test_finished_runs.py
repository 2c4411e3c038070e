"""Finished runs are loaded, and nothing outside their folder is read or executed."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.images import STRANGE

from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.images.datasets import load_data
from transfer.images.split_file import read_split, training_digests
from transfer.results.finished_runs import add_labels, load_run, read_text
from transfer.results.predict import predict
from transfer.results.run_records import read_record


@pytest.fixture
def run(strange_run, tmp_path):
    return Path(shutil.copytree(strange_run, tmp_path / "run"))


def test_a_loaded_run_has_its_model_class_names_options_and_images(run, strange_folder):
    loaded = load_run(run)
    assert loaded.class_names == tuple(sorted(STRANGE)) and loaded.image_size == (32, 32)
    assert loaded.config.data == str(strange_folder) and loaded.metrics["num_train"] > 0
    data = loaded.data()
    rows = read_split(run / "split.csv")
    for split, part in data.splits.items():
        assert list(part.names) == [name for name, _, of in rows if of == split]
    assert training_digests(run / "split.csv") == {*data.train.digests, *data.val.digests}


def test_the_model_of_a_loaded_run_knows_its_classes_and_its_training_images(run, strange_folder, caplog):
    loaded = load_run(run)
    data = loaded.data()
    evaluation = evaluate(loaded.model, data)
    assert evaluation.seen == 0 and "used for training" not in caplog.text
    assert [one.label for one in predict(loaded.model, data.test)] == [
        loaded.class_names[i] for i in evaluation.probabilities.argmax(axis=-1)
    ]
    other = load_data(strange_folder, seed=8)
    trained = training_digests(run / "split.csv")
    assert evaluate(loaded.model, other).seen == sum(digest in trained for digest in other.test.digests) > 0
    assert "were used for training or validation" in caplog.text
    with pytest.raises(InputError, match="Expected data with the classes of the model"):
        evaluate(loaded.model, replace(data, class_names=data.class_names[::-1]))


def test_a_single_keras_file_contains_its_class_names(run, tmp_path):
    alone = tmp_path / "elsewhere.keras"
    shutil.copy(run / "model.keras", alone)
    loaded = load_run(alone)
    assert loaded.class_names == tuple(sorted(STRANGE)) and loaded.config is None
    with pytest.raises(InputError, match=r"config\.yaml"):
        loaded.data()


def test_other_images_become_the_test_set(run, strange_folder, tmp_path):
    some = tmp_path / "new"
    shutil.copytree(strange_folder / STRANGE[1], some / STRANGE[1])
    data = load_run(run).data(some)
    assert len(data.test) == 30 and not len(data.train)
    assert {data.class_names[i] for i in data.test.labels} == {STRANGE[1]}
    (some / STRANGE[1]).rename(some / "bleu")
    with pytest.raises(InputError, match="Unknown class 'bleu'"):
        load_run(run).data(some)


def test_another_list_is_read_by_the_columns_of_the_run_or_by_usual_names(run, strange_folder, tmp_path):
    loaded = load_run(run)
    loaded = replace(
        loaded, config=replace(loaded.config, path_column="Datei", label_column="Art", group_column="x")
    )
    images = sorted(p for p in strange_folder.rglob("*") if p.is_file())[:3]
    for header in (("Art", "note", "Datei"), ("label", "note", "path")):
        with open(tmp_path / "new.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *((image.parent.name, 1, image) for image in images)])
        assert len(loaded.data(tmp_path / "new.csv").test) == 3


def test_a_missing_run_is_reported_with_similar_names(run):
    with pytest.raises(InputError, match=r"Did you mean .*/run\?"):
        load_run(run.parent / "rum")
    with pytest.raises(InputError, match=r"Runs in this folder: .*/run"):
        load_run(run.parent)
    with pytest.raises(InputError, match=r"Received an image: .*cat\.png\. The run comes first"):
        (run / "cat.png").write_bytes(b"")
        load_run(run / "cat.png")
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"has no metrics\.json"):
        read_record(run)


def test_class_names_that_do_not_match_the_model_are_refused(run):
    (run / "labels.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="Expected 3 different class names"):
        load_run(run)


@pytest.mark.parametrize("name", ["metrics.json", "data.json", "advice.json", "evaluation.json"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_damaged_files_are_reported(name, content, run):
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_record(run)


def test_damaged_predictions_are_reported(run):
    for content in ("", "path,label\n", "path,label,predicted,group,a,b\nx,c,a,,1,0\n"):
        (run / "predictions.csv").write_text(content)
        with pytest.raises(InputError, match="predictions"):
            read_record(run)


# Security: a run may come from anywhere.


def test_a_model_with_code_of_its_own_is_refused_and_never_executed(tmp_path):
    evil = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Lambda(lambda x: (Path("OWNED").write_text("x"), x)[1], output_shape=(32, 32, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    folder = tmp_path / "evil"
    folder.mkdir()
    evil.save(folder / "model.keras")
    Path("OWNED").unlink(missing_ok=True)  # the layer ran once, when the model was built
    (folder / "labels.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="has a Lambda layer"):
        load_run(folder)
    assert not Path("OWNED").exists()


def test_a_model_file_cannot_turn_safe_mode_off(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    folder = tmp_path / "evil"
    folder.mkdir()
    model.save(folder / "model.keras")
    names = {"config.json", "metadata.json", "model.weights.h5"}
    with zipfile.ZipFile(folder / "model.keras") as archive:
        files = {name: archive.read(name) for name in names}
    config = json.loads(files["config.json"])
    config["config"]["layers"][1] = {
        "module": "builtins",
        "class_name": "function",
        "config": "os.system",
        "registered_name": "function",
    }
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    (folder / "labels.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"Keras \S+ cannot load"):
        load_run(folder)


def test_paths_in_a_model_file_do_not_leave_the_folder(tmp_path, run):
    with zipfile.ZipFile(run / "model.keras", "a") as archive:
        archive.writestr("../../escaped.txt", "out")
        archive.writestr("/tmp/transfer-escaped.txt", "out")
    load_run(run)
    assert not (tmp_path.parent / "escaped.txt").exists() and not (tmp_path / "escaped.txt").exists()
    assert not Path("/tmp/transfer-escaped.txt").exists()


def test_links_out_of_the_run_are_not_followed(run, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret\nof somebody\nelse\n")
    (run / "labels.txt").unlink()
    (run / "labels.txt").symlink_to(secret)
    with pytest.raises(InputError, match="link out of it"):
        load_run(run)
    with pytest.raises(InputError, match="link out of it"):
        read_text(run / "labels.txt")
    (run / "network.png").unlink()
    (run / "network.png").symlink_to(secret)
    with pytest.raises(InputError, match="link"):
        read_record(run)


def test_a_text_file_named_png_is_refused(run):
    (run / "network.png").write_text("<script>")
    with pytest.raises(InputError, match="Expected a PNG"):
        read_record(run)


class Evil:
    def __reduce__(self):
        return (Path("OWNED").write_text, ("x",))


def test_yaml_and_pickles_execute_nothing(run):
    (run / "config.yaml").write_text("data: !!python/object/apply:os.system ['touch OWNED']\n")
    with pytest.raises(InputError, match="Cannot read the options"):
        load_run(run)
    (run / "config.yaml").unlink()
    (run / "model.keras").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="is not a model of Keras"):
        load_run(run)
    assert not Path("OWNED").exists()


def test_plain_keras_loads_the_model(run):
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype("float32")
    np.save(run / "images.npy", images)
    code = (
        "import sys; sys.modules['transfer'] = None\n"
        "import keras, numpy as np\n"
        "model = keras.models.load_model('model.keras', safe_mode=True)\n"
        "np.save('given.npy', model.predict(np.load('images.npy'), verbose=0))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=run, check=True, capture_output=True)
    expected = load_run(run).model.predict(images, verbose=0)
    np.testing.assert_allclose(np.load(run / "given.npy"), expected, atol=1e-6)


def test_class_names_inside_a_keras_file_are_read(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.save(tmp_path / "model.keras")
    add_labels(tmp_path / "model.keras", ("ants", "bées"))
    assert load_run(tmp_path / "model.keras").class_names == ("ants", "bées")
