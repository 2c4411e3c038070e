"""`python -m transfer.predict` and `predict` return the classes and probabilities of the evaluation."""

import csv
import glob
import importlib
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from helpers.images import STRANGE
from PIL import Image

from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.images.image_inputs import find_images
from transfer.predict import main
from transfer.results.finished_runs import load_run
from transfer.results.predict import predict, predictions

predicting = importlib.import_module("transfer.results.predict")


def test_predictions_are_those_of_the_evaluation(strange_run, strange_folder):
    run = load_run(strange_run)
    data = run.data()
    expected = evaluate(run.model, data).probabilities
    predicted = predict(strange_run, [strange_folder / name for name in data.test.names])
    np.testing.assert_allclose([one.probabilities for one in predicted], expected, atol=1e-5)
    assert [one.label for one in predicted] == [data.class_names[i] for i in expected.argmax(axis=1)]


@pytest.mark.parametrize("few", [0, predicting.FEW])
def test_the_fast_engine_and_keras_predict_the_same(few, strange_run, monkeypatch):
    monkeypatch.setattr(predicting, "FEW", few)
    monkeypatch.setattr(predicting, "BATCH", 16)
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype("uint8")
    predicted = predict(strange_run, images, progress=False)
    expected = load_run(strange_run).model.predict(images.astype("float32"), verbose=0)
    assert [one.name for one in predicted] == [str(i) for i in range(40)]
    np.testing.assert_allclose([one.probabilities for one in predicted], expected, atol=1e-4)


def test_unreadable_images_are_reported_and_the_others_predicted(strange_run, tmp_path, strange_folder):
    good = next(strange_folder.rglob("*.png"))
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    items = [
        tmp_path / "bad.png",
        good,
        tmp_path / "text.jpg",
        tmp_path / "none.png",
        np.zeros((2, 2, 7)),
        b"?",
    ]
    predicted = predict(strange_run, items)
    assert [bool(one.problem) for one in predicted] == [True, False, True, True, True, True]
    assert predicted[0].label is None and predicted[0].top(2) == [] and predicted[1].label in STRANGE
    assert "no such file" in predicted[3].problem and "shape (2, 2, 7)" in predicted[4].problem


def test_encoded_images_and_arrays_are_the_same_image(strange_run, strange_folder):
    file = sorted(strange_folder.rglob("*.png"))[0]
    array = np.asarray(Image.open(file).convert("RGB"))
    by_path, by_bytes, by_array = predict(strange_run, [file, file.read_bytes(), array])
    alone = predict(strange_run, array)[0]
    for one in (by_bytes, by_array, alone):  # the position in a batch may change the last digit
        np.testing.assert_allclose(one.probabilities, by_path.probabilities, atol=1e-6)


def test_any_number_of_images_streams(strange_run):
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield np.zeros((8, 8, 3), "uint8")

    stream = predictions(strange_run, endless())
    for _ in range(5):
        assert next(stream).label in STRANGE
    assert len(drawn) <= 4 * predicting.BATCH
    stream.close()


def test_a_source_without_images_is_reported(tmp_path):
    with pytest.raises(InputError, match="Found none"):
        list(find_images(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        list(find_images(tmp_path / "nothing"))


def run_command(capsys, *arguments):
    code = main([str(a) for a in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_of_several_sources_a_missing_one_is_skipped_and_reported(strange_run, strange_folder, capsys):
    code, out, err = run_command(capsys, strange_run, strange_folder, "no/such.png", "nothing/*.png")
    assert code == 1 and len(out.splitlines()) == 90
    assert "Skipped no/such.png: no such file" in err and "Skipped nothing/*.png: no such file" in err


def test_the_table_shows_classes_and_probabilities(strange_run, strange_folder, capsys):
    code, out, _ = run_command(capsys, strange_run, strange_folder, "--top", 2)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 90
    assert all(any(name in line for name in STRANGE) and line.count("%") == 2 for line in lines)


def test_csv_is_quoted_and_reads_back(strange_run, strange_folder, capsys, monkeypatch):
    monkeypatch.chdir(strange_folder / STRANGE[0])
    code, out, _ = run_command(capsys, strange_run, "=1+1.png", "=1+2.png", "--format", "csv", "--top", 9)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [row["path"] for row in rows] == ["'=1+1.png", "'=1+2.png"]
    for row in rows:
        cells = [value for key, value in row.items() if "class" in key or key == "path"]
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
        assert sum(float(row[f"probability{i}"]) for i in (1, 2, 3)) == pytest.approx(1, abs=1e-5)


def pass_list(monkeypatch, content):
    """Put a list of files on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.mark.parametrize("count", [1, 3])
def test_json_output_is_valid(count, strange_run, strange_folder, capsys, monkeypatch):
    files = sorted(strange_folder.rglob("*.png"))[:count]
    pass_list(monkeypatch, "".join(f"{file}\n" for file in files).encode())
    code, out, _ = run_command(capsys, strange_run, "-", "--format", "json")
    rows = json.loads(out)
    assert code == 0 and [row["path"] for row in rows] == [str(file) for file in files]
    assert all({c["class"] for c in row["classes"]} == set(STRANGE) for row in rows)


def test_lists_of_windows_are_read(strange_run, strange_folder, capsys, monkeypatch):
    files = sorted(strange_folder.rglob("*.png"))[:2]
    pass_list(monkeypatch, "".join(f"{file}\r\n" for file in files).encode("utf-16"))
    code, out, err = run_command(capsys, strange_run, "-")
    assert code == 0 and [line.split(".png")[0] for line in out.splitlines()] == [
        str(f)[:-4] for f in files
    ], err


@pytest.mark.parametrize("content", [b"", b"\r\n \n"])
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_an_empty_list_is_refused(content, form, strange_run, capsys, monkeypatch):
    pass_list(monkeypatch, content)
    code, out, err = run_command(capsys, strange_run, "-", "--format", form)
    assert code == 2 and out == "" and "one path per line on standard input. Received none" in err


def test_patterns_are_expanded_and_urls_are_refused(strange_run, strange_folder, capsys):
    place = strange_folder / STRANGE[1]
    pattern = f"{glob.escape(str(place))}/=1+[12].png"
    code, out, _ = run_command(capsys, strange_run, pattern)
    assert code == 0 and [line.split("  ")[0] for line in out.splitlines()] == [
        f"{place}/=1+{i}.png" for i in (1, 2)
    ]
    code, out, err = run_command(capsys, strange_run, "https://example.com/cat.jpg")
    assert code == 2 and out == "" and "Download the image first" in err
    code, out, err = run_command(capsys, strange_run, f"{place}/*.jpg")
    assert code == 2 and "Found none" in err


def test_unreadable_images_have_no_classes_in_csv_and_json(strange_run, strange_folder, tmp_path, capsys):
    good = next(strange_folder.rglob("*.png"))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, out, _ = run_command(capsys, strange_run, tmp_path, good, "--format", "csv", "--top", 2)
    rows = list(csv.reader(io.StringIO(out)))
    assert (
        code == 1
        and rows[1] == [str(tmp_path / "bad.png"), "", "", "", ""]
        and len(rows[2]) == 5
        and rows[2][3]
    )
    code, out, _ = run_command(capsys, strange_run, tmp_path, good, "--format", "json")
    bad, row = json.loads(out)
    assert code == 1 and bad["classes"] == [] and "broken" in bad["problem"] and "problem" not in row


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only text as file names")
def test_file_names_may_have_any_bytes(strange_run, strange_folder, tmp_path, capsys, monkeypatch):
    name = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    with open(name, "wb") as file:
        file.write(next(strange_folder.rglob("*.png")).read_bytes())
    pass_list(monkeypatch, name)
    for source in ("-", tmp_path):
        code, out, _ = run_command(capsys, strange_run, source)
        assert code == 0 and "\\udcff.png" in out


def test_the_run_comes_first(strange_run, strange_folder):
    run = load_run(strange_run)
    image = np.full((8, 8, 3), 99, "uint8")
    for given in ([image], image, None, strange_folder.name.encode(), run.config):
        with pytest.raises(InputError, match=r"as the first argument of predict\(run, images\)"):
            predict(given, run)
    with pytest.raises(InputError, match="The run comes first"):
        predict(run, run)
    assert predict(run.model, image)[0].label == predict(run, image)[0].label
    with pytest.raises(InputError, match="Expected a run's folder"):
        predict(strange_folder, strange_run)


def test_a_warning_counts_unreadable_images(strange_run, caplog):
    image = np.full((8, 8, 3), 99, "uint8")
    predicted = predict(strange_run, [image / 255, image, image / 255])
    assert [one.label is None for one in predicted] == [True, False, True]
    assert predicted[0].probabilities is None and predicted[0].probability is None
    assert (
        "2 images of 3 cannot be read. The first is 0: a maximum of 0.3882; multiply by 255." in caplog.text
    )
    with pytest.raises(InputError, match="multiply by 255"):
        predict(strange_run, np.stack([image, image]) / 255)


def test_a_data_set_is_predicted_as_a_stream(strange_run):
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3)).astype("uint8")
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(9))).batch(4)
    by_data_set, by_array = predict(strange_run, dataset), predict(strange_run, images)
    assert len(by_data_set) == 9
    for one, other in zip(by_data_set, by_array, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


def test_exit_codes(strange_run, strange_folder, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    good = next(strange_folder.rglob("*.png"))
    code, out, err = run_command(capsys, strange_run, good, bad)
    assert code == 1 and len(out.splitlines()) == 1 and f"Skipped {bad}" in err
    assert run_command(capsys, tmp_path / "no-run", good)[0] == 2
    assert run_command(capsys, strange_run, tmp_path / "nothing")[0] == 2
    code, _, err = run_command(capsys, strange_run, good, "--top", 0)
    assert code == 2 and "--top" in err
    code, _, err = run_command(capsys, strange_run, good, "--engine", "kears")
    assert code == 2 and "keras" in err


def test_heat_maps_are_written_to_their_folder(strange_run, strange_folder, tmp_path, capsys):
    files = sorted(strange_folder.rglob("*.png"))[:3]
    place = tmp_path / "heat"
    code, *_ = run_command(capsys, strange_run, *files, "--gradcam", place)
    assert code == 0 and len(list(place.iterdir())) == 3
    for file in place.iterdir():
        assert np.asarray(Image.open(file).convert("L")).std() > 5


def unlike(strange_folder, tmp_path):
    """Write an image that is unlike those of the run, and return it with one of the run."""
    pixels = np.random.default_rng(0).integers(0, 2, (24, 24, 1)) * np.full(3, 255)
    Image.fromarray(pixels.astype("uint8")).save(tmp_path / "other.png")
    return tmp_path / "other.png", sorted(strange_folder.rglob("*.png"))[0]


def test_data_frames_say_which_images_are_known(strange_run, strange_folder, tmp_path):
    pytest.importorskip("pandas")
    found = predict(strange_run, unlike(strange_folder, tmp_path)).to_dataframe()
    assert found["known"].tolist() == [False, True]


def test_images_of_no_class_are_marked(strange_run, strange_folder, tmp_path, capsys):
    other, own = unlike(strange_folder, tmp_path)
    run = load_run(strange_run)
    first, second = predict(run, [other, own])
    assert first.known is False and second.known is True and first.distance > second.distance
    assert predict(strange_run, [own])[0].known is True
    assert [one.known for one in predict(run.model, [other])] == [None]
    code, out, _ = run_command(capsys, strange_run, other, own, "--abstain")
    assert code == 0 and ["unknown" in line for line in out.splitlines()] == [True, False]
    assert "unknown" not in run_command(capsys, strange_run, other)[1]
    _, out, _ = run_command(capsys, strange_run, other, own, "no/such.png", "--abstain", "--format", "csv")
    assert [row["known"] for row in csv.DictReader(io.StringIO(out))] == ["false", "true", ""]
    rows = json.loads(run_command(capsys, strange_run, other, own, "--abstain", "--format", "json")[1])
    assert [row["known"] for row in rows] == [False, True] and rows[0]["distance"] > rows[1]["distance"]


def test_sets_contain_the_true_class_as_often_as_wanted(strange_run, strange_folder, capsys):
    run = load_run(strange_run)
    data = run.data()
    predicted = run.predict(data.test, coverage=0.8)
    names = [data.class_names[label] for label in data.test.labels]
    covered = [name in one.prediction_set for name, one in zip(names, predicted, strict=True)]
    assert np.mean(covered) >= 0.7 and all(one.prediction_set[0] == one.label for one in predicted)
    assert predict(run, data.test)[0].prediction_set is None
    files = sorted(strange_folder.rglob("*.png"))[:2]
    sizes = [len(one.prediction_set) for one in run.predict(files, coverage=0.9)]
    _, out, _ = run_command(capsys, strange_run, *files, "--coverage", 0.9)
    assert [line.count("%") for line in out.splitlines()] == sizes
    for form, read in (("json", json.loads), ("csv", lambda text: [*csv.DictReader(io.StringIO(text))])):
        rows = read(run_command(capsys, strange_run, *files, "--coverage", 0.9, "--format", form)[1])
        found = [row["prediction_set"] for row in rows]
        assert [len(json.loads(one) if form == "csv" else one) for one in found] == sizes


def test_without_a_reference_the_options_say_what_to_do(strange_run, strange_folder, tmp_path, capsys):
    old = shutil.copytree(strange_run, tmp_path / "old")
    (old / "reference.npz").unlink()
    file = next(strange_folder.rglob("*.png"))
    assert run_command(capsys, old, file)[0] == 0 and predict(old, file)[0].known is None
    for option in (["--abstain"], ["--coverage", 0.9]):
        code, out, err = run_command(capsys, old, file, *option)
        assert code == 2 and out == "" and f"--config {old}/config.yaml" in err
    with pytest.raises(InputError, match="Pass the folder of a run"):
        predict(load_run(old).model, file, coverage=0.9)
    code, out, err = run_command(capsys, strange_run, file, "--coverage", 0.9999, "--format", "csv")
    assert code == 2 and out == "" and "9,999 validation images or more" in err


def test_a_damaged_reference_is_reported(strange_run, strange_folder, tmp_path, capsys):
    damaged = shutil.copytree(strange_run, tmp_path / "damaged")
    whole = (damaged / "reference.npz").read_bytes()
    for content in (whole[:100], b"", b"no archive"):
        (damaged / "reference.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"Cannot read .*reference\.npz.* Or delete it"):
            load_run(damaged)
    arrays = dict(np.load(strange_run / "reference.npz"))
    for change in ({"directions": arrays["directions"][:, 0]}, {"distances": np.full(3, np.nan)}):
        np.savez(damaged / "reference.npz", **(arrays | change))
        with pytest.raises(InputError, match="Cannot read"):
            load_run(damaged)
    np.savez_compressed(damaged / "reference.npz", **(arrays | {"scores": np.zeros(2**22)}))
    with pytest.raises(InputError, match="more than"):
        load_run(damaged)
    np.savez(damaged / "reference.npz", **(arrays | {"directions": np.ones((4, 9999), "int8")}))
    with pytest.raises(InputError, match="different runs"):
        predict(damaged, next(strange_folder.rglob("*.png")))
