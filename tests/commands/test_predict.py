"""`python -m transfer.predict` and `predict` return the classes and probabilities of the evaluation."""

import csv
import importlib
import io
import json
import sys

import numpy as np
import pytest
from helpers.images import STRANGE
from PIL import Image

from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.predict import main
from transfer.results.finished_runs import load_run
from transfer.results.predict import find_images, predict, predictions

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
    assert predicted[0].label == "" and predicted[0].top(2) == [] and predicted[1].label in STRANGE
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


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_output_is_valid(count, strange_run, strange_folder, capsys, monkeypatch):
    files = sorted(strange_folder.rglob("*.png"))[:count]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{file}\n" for file in files)))
    code, out, _ = run_command(capsys, strange_run, "-", "--format", "json")
    rows = json.loads(out)
    assert code == 0 and [row["path"] for row in rows] == [str(file) for file in files]
    assert all({c["class"] for c in row["classes"]} == set(STRANGE) for row in rows)


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
