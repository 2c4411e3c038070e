"""A finished run is read again, and only what is the run's own."""

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.images import STRANGE

from transfer.common.errors import InputError
from transfer.images.split_file import read_split, training_digests
from transfer.results.finished_runs import add_labels, load_run, text_of
from transfer.results.run_records import read_record


@pytest.fixture
def run(strange_run, tmp_path):
    return Path(shutil.copytree(strange_run, tmp_path / "run"))


def test_a_run_gives_its_model_names_options_and_images(run, strange_folder):
    found = load_run(run)
    assert found.class_names == tuple(sorted(STRANGE)) and found.image_size == (32, 32)
    assert found.config.data == str(strange_folder) and found.metrics["num_train"] > 0
    data = found.data()
    rows = read_split(run / "split.csv")
    for split, part in data.splits.items():
        assert list(part.names) == [name for name, _, of in rows if of == split]
    assert training_digests(run / "split.csv") == {*data.train.digests, *data.val.digests}


def test_the_model_alone_knows_its_names(run, tmp_path):
    alone = tmp_path / "elsewhere.keras"
    shutil.copy(run / "model.keras", alone)
    found = load_run(alone)
    assert found.class_names == tuple(sorted(STRANGE)) and found.config is None
    with pytest.raises(InputError, match=r"config\.yaml"):
        found.data()


def test_other_images_become_the_test_set(run, strange_folder, tmp_path):
    some = tmp_path / "new"
    shutil.copytree(strange_folder / STRANGE[1], some / STRANGE[1])
    data = load_run(run).data(some)
    assert len(data.test) == 30 and not len(data.train)
    assert {data.class_names[i] for i in data.test.labels} == {STRANGE[1]}
    (some / STRANGE[1]).rename(some / "bleu")
    with pytest.raises(InputError, match="Unknown class 'bleu'"):
        load_run(run).data(some)


def test_what_is_no_run_is_said_with_what_is_near(run):
    with pytest.raises(InputError, match=r"Did you mean .*/run\?"):
        load_run(run.parent / "rum")
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"has no metrics\.json"):
        read_record(run)


def test_labels_that_do_not_fit_are_refused(run):
    (run / "labels.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="Expected 3 different class names"):
        load_run(run)


@pytest.mark.parametrize("name", ["metrics.json", "data.json", "advice.json", "evaluation.json"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_damaged_files_are_named(name, content, run):
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_record(run)


def test_damaged_predictions_are_named(run):
    for content in ("", "path,label\n", "path,label,predicted,group,a,b\nx,c,a,,1,0\n"):
        (run / "predictions.csv").write_text(content)
        with pytest.raises(InputError, match="predictions"):
            read_record(run)


# Security: files of a run may come from anywhere.


def test_a_model_with_code_of_its_own_is_refused_and_never_runs(tmp_path):
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
    Path("OWNED").unlink(missing_ok=True)  # it ran once, when it was made
    (folder / "labels.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="Keras cannot load"):
        load_run(folder)
    assert not Path("OWNED").exists()


def test_safe_mode_cannot_be_turned_off_from_within_the_file(tmp_path):
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
    with pytest.raises(InputError, match="Keras cannot load"):
        load_run(folder)


def test_paths_in_the_archive_do_not_lead_out_of_it(tmp_path, run):
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
        text_of(run / "labels.txt")
    (run / "network.png").unlink()
    (run / "network.png").symlink_to(secret)
    with pytest.raises(InputError, match="link"):
        read_record(run)


def test_a_text_in_place_of_a_image_is_not_put_on_a_page(run):
    (run / "network.png").write_text("<script>")
    with pytest.raises(InputError, match="Expected a PNG"):
        read_record(run)


class Evil:
    def __reduce__(self):
        return (Path("OWNED").write_text, ("x",))


def test_yaml_and_pickles_run_nothing(run):
    (run / "config.yaml").write_text("data: !!python/object/apply:os.system ['touch OWNED']\n")
    with pytest.raises(InputError, match="Cannot read the options"):
        load_run(run)
    (run / "model.keras").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="Keras cannot load"):
        load_run(run)
    assert not Path("OWNED").exists()


def test_the_model_loads_in_a_plain_keras_without_this_package(run):
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


def test_labels_are_put_in_once_and_keras_does_not_mind(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.save(tmp_path / "model.keras")
    add_labels(tmp_path / "model.keras", ("ants", "bées"))
    assert load_run(tmp_path / "model.keras").class_names == ("ants", "bées")
