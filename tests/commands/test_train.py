"""`python -m transfer.train` end to end: in this process on synthetic images, and once on the emoji."""

import csv
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from transfer import report
from transfer.config import load_config
from transfer.images.datasets import load_data
from transfer.results.finished_runs import load_run
from transfer.train import main

QUICK = ["--image-size", "32", "--strategy", "default"]
FILES = {
    "model.keras",
    "config.yaml",
    "labels.txt",
    "reference.npz",
    "split.csv",
    "data.json",
    "report.html",
    "history.csv",
    "metrics.json",
    "learning_curves.png",
    "confusion_matrix.png",
    "predictions.png",
    "network.png",
    "README.md",
    "evaluation.json",
    "predictions.csv",
    "classes.png",
    "blocks.png",
}
SOMETIMES = {"mistakes.png", "calibration.png"}
KEYS = {
    "case",
    "cut",
    "model",
    "num_classes",
    "num_train",
    "num_val",
    "num_test",
    "test_accuracy",
    "seconds_total",
    "seconds_features",
    "seconds_training",
    "trainable_parameters",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, so that files left behind are found."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("case", ["small-similar", "small-different", "large-similar", "large-different"])
def test_each_case_learns_colors_and_writes_a_complete_folder(case, color_folder, elsewhere):
    epochs = ["--epochs", "1"] if case.startswith("large") else []
    assert main(["--data", str(color_folder), "--case", case, "--output", "run", *QUICK, *epochs]) == 0
    folder = elsewhere / "run"
    assert {p.name for p in folder.iterdir()} - SOMETIMES == FILES
    metrics = metrics_of(folder)
    assert set(metrics) >= KEYS and metrics["case"] == case
    assert metrics["test_accuracy"] >= 0.9
    assert (metrics["num_train"], metrics["num_val"], metrics["num_test"]) == (63, 9, 18)
    assert (folder / "labels.txt").read_text().split() == ["blue", "green", "red"]
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert rows and float(rows[-1]["val_accuracy"]) >= 0
    for image in folder.glob("*.png"):
        assert np.asarray(Image.open(image).convert("L")).std() > 5  # not blank


def test_classes_that_flips_would_swap_are_not_flipped(color_folder, elsewhere, capsys):
    for name, color in (("turn_left", "red"), ("turn_right", "blue")):
        shutil.copytree(color_folder / color, elsewhere / "arrows" / name)
    flags = ["--data", "arrows", "--case", "large-similar", "--epochs", "1", "--output", "run", *QUICK]
    assert main(flags) == 0
    problem = "the classes 'turn_left' and 'turn_right' would swap"
    assert f"Horizontal flips are off: {problem}. (--flip)" in capsys.readouterr().out
    metrics = metrics_of(elsewhere / "run")
    assert metrics["flip"] is False and metrics["flip_problem"] == problem


def test_probabilities_are_calibrated_on_request(color_folder, elsewhere):
    main(["--data", str(color_folder), "--case", "small-similar", "--val", "30", "--output", "plain", *QUICK])
    main(["--config", "plain/config.yaml", "--calibrate", "--output", "calibrated"])
    plain, calibrated = (metrics_of(elsewhere / name) for name in ("plain", "calibrated"))
    assert plain["temperature"] is None and calibrated["temperature"] > 0
    one, two = (keras.models.load_model(elsewhere / name / "model.keras") for name in ("plain", "calibrated"))
    for a, b in zip(one.layers[-1].get_weights(), two.layers[-1].get_weights(), strict=True):
        np.testing.assert_allclose(a, calibrated["temperature"] * b, rtol=1e-5)
    assert plain["test_accuracy"] == calibrated["test_accuracy"]


def test_too_few_validation_images_to_calibrate_fail_before_training(color_folder, elsewhere, capsys):
    flags = ["--data", str(color_folder), "--case", "large-similar", "--calibrate", "--output", "run", *QUICK]
    assert main(flags) == 2
    printed = capsys.readouterr()
    assert "30 validation images" in printed.err and "Epoch" not in printed.out
    assert not list(elsewhere.iterdir())


def test_the_saved_model_classifies_raw_images_in_plain_keras(color_folder, elsewhere):
    main(["--data", str(color_folder), "--case", "small-similar", "--output", "run", *QUICK])
    model = keras.models.load_model(elsewhere / "run" / "model.keras")
    names = (elsewhere / "run" / "labels.txt").read_text().split()
    for path in sorted(color_folder.rglob("00.png")):
        raw = np.asarray(Image.open(path).resize((32, 32)))[None]
        assert names[int(model.predict(raw, verbose=0).argmax())] == path.parent.name


@pytest.mark.parametrize(
    "case",
    ["auto", pytest.param("large-similar", marks=pytest.mark.slow)],  # the second has active dropout
)
def test_config_yaml_reproduces_the_run(case, color_folder, elsewhere):
    more = ["--epochs", "2"] if case.startswith("large") else ["--model", "DemoCNN"]
    main(["--data", str(color_folder), "--case", case, "--seed", "5", "--output", "one", *QUICK, *more])
    main(["--config", "one/config.yaml", "--output", "two"])
    one, two = (keras.models.load_model(elsewhere / name / "model.keras") for name in ("one", "two"))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    work = {"engine", "num_computed", "peak_memory_mb"}  # the second run reads cached features
    stripped = [
        {k: v for k, v in metrics_of(elsewhere / n).items() if "sec" not in k and k not in work}
        for n in ("one", "two")
    ]
    assert stripped[0] == stripped[1]


def test_case_auto_logs_the_data_and_each_step(color_folder, capsys):
    main(["--data", str(color_folder), "--model", "DemoCNN", *QUICK])
    printed = capsys.readouterr().out
    assert "Your data: small (63 training images)" in printed
    assert "Head on " in printed and " Kept." in printed
    assert "Results: runs/colors-auto-1" in printed


def test_another_backbone_and_a_cut_by_name(color_folder, elsewhere):
    arguments = [
        "--model",
        "MobileNetV2",
        "--weights",
        "none",
        "--cut",
        "block_6_expand_relu",
        "--epochs",
        "1",
    ]
    assert (
        main(
            ["--data", str(color_folder), "--case", "small-different", "--output", "run", *arguments, *QUICK]
        )
        == 0
    )
    assert metrics_of(elsewhere / "run")["cut"] == "block_6_expand_relu"


def test_your_own_network_needs_a_preprocessing(color_folder, elsewhere, capsys):
    from helpers.networks import make_tiny

    make_tiny().save(elsewhere / "mine.keras")
    own = ["--data", str(color_folder), "--model", "mine.keras", "--case", "small-similar", "--output", "run"]
    assert main(own) == 2
    assert "preprocessing" in capsys.readouterr().err
    assert main([*own, "--preprocessing", "tf"]) == 0


def one_class(folder):
    Image.new("RGB", (8, 8)).save(
        (folder / "data" / "only").mkdir(parents=True) or folder / "data" / "only" / "1.png"
    )
    return ["--data", "data"]


def no_class(folder):
    (folder / "data").mkdir()
    return ["--data", "data"]


def used_output(folder):
    (folder / "used").mkdir()
    (folder / "used" / "mine.txt").write_text("mine")
    return ["--output", "used"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "small-similer"], "'small-similar'"),
        (["--model", "MobilNetV2"], "'MobileNetV2'"),
        (["--case", "small-similar", "--cut", "block6c_ad"], "'block6c_add'"),
        (["--data", "emojy"], "'emoji'"),
        (["--data", "tfds:tf_flower"], "tfds:tf_flowers"),
        (["--strategy", "mirored"], "'mirrored'"),
        (["--strategy", "tpu"], "No TPU"),
        (["--image-size", "16"], "at least 32"),
        (["--image-size", "0"], "image_size of 1 or more"),
        (["--epochs", "0"], "epochs of 1 or more"),
        (["--learning-rate", "-1"], "learning_rate above 0"),
        (["--weights", "nowhere.h5"], "nowhere.h5"),
        (["--model", "ResNet50"], "EfficientNetLite0"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--augment", "lite", "--case", "large-similar", "--image-size", "32"], "'light'"),
        (["--init", "randon", "--case", "large-different"], "'random'"),
        (["--init", "random", "--case", "small-similar"], "needs large-different"),
        (one_class, "at least 2 classes"),
        (no_class, "at least 2 classes"),
        (used_output, "not empty"),
    ],
)
def test_bad_input_gives_one_message_and_leaves_no_files(arguments, message, elsewhere, capsys):
    arguments = arguments(elsewhere) if callable(arguments) else arguments
    before = sorted(p.relative_to(elsewhere) for p in elsewhere.rglob("*"))
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert sorted(p.relative_to(elsewhere) for p in elsewhere.rglob("*")) == before


def test_ctrl_c_while_tensorflow_traces_gives_one_message(monkeypatch, capsys):
    def interrupted(*args):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stopped:
            raise AssertionError("Nesting violated") from stopped

    monkeypatch.setattr("transfer.train.run", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err.startswith("Stopped. The same command resumes from the last checkpoint")


def test_an_unknown_flag_is_reported(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--modell", "x"])
    assert exit.value.code == 2 and "--modell" in capsys.readouterr().err


def test_help_imports_neither_tensorflow_nor_keras():
    code = (
        "import sys, transfer.train\n"
        "try: transfer.train.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--image-size" in done.stdout and "--config" in done.stdout


def test_standard_error_has_only_the_message(elsewhere):
    command = [sys.executable, "-m", "transfer.train", "--model", "NoSuchNet", "--data", "emoji"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=elsewhere)
    assert done.returncode == 2
    assert done.stderr.startswith("Unknown model 'NoSuchNet'") and len(done.stderr.splitlines()) == 1
    assert not list(elsewhere.iterdir())


def test_options_without_effect_are_logged_once_and_change_nothing(color_folder, elsewhere, capsys):
    flags = ["--data", str(color_folder), "--model", "DemoCNN", "--case", "1", *QUICK]
    assert main([*flags, "--output", "plain"]) == 0
    assert "Ignored" not in capsys.readouterr().out
    useless = ["--augment", "strong", "--ema", "0.9", "--learning-rate", "0.1", "--time-budget", "9m"]
    assert main([*flags, *useless, "--output", "more"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Ignored")]
    assert [line.partition(":")[0] for line in lines] == [
        "Ignored --augment, --ema",
        "Ignored --time-budget",
        "Ignored learning_rate",
    ]
    one, two = (keras.models.load_model(elsewhere / name / "model.keras") for name in ("plain", "more"))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert load_config("more/config.yaml").augment == "strong"  # the record has what was given


def test_an_option_that_fit_refuses_fails_before_the_images_are_read(elsewhere, capsys):
    assert main(["nowhere", "--case", "3", "--dropout", "0.5"]) == 2
    error = "Expected no --dropout with --case large-similar. It applies to a head in epochs."
    assert capsys.readouterr().err.startswith(error)


def test_without_test_images_the_validation_accuracy_is_logged(color_folder, elsewhere, capsys):
    flags = ["--model", "DemoCNN", "--case", "1", "--test", "0", "--output", "run", *QUICK]
    assert main([str(color_folder), *flags]) == 0
    assert (
        "No test images, so the report has no test results. Validation accuracy: " in capsys.readouterr().out
    )


@pytest.mark.slow
def test_without_flags_it_trains_on_the_emoji_from_any_folder(elsewhere):
    subprocess.run([sys.executable, "-m", "transfer.train"], check=True, cwd=elsewhere, capture_output=True)
    (folder,) = (elsewhere / "runs").iterdir()
    assert folder.name == "emoji-auto-1"
    advice = {"advice.json", "four_cases.png", "layer_curve.png", "steps.json"}
    assert {p.name for p in folder.iterdir()} - SOMETIMES == FILES | advice
    metrics = metrics_of(folder)
    assert metrics["num_classes"] == load_data("emoji").num_classes == 12
    assert metrics["test_accuracy"] >= 0.74 and metrics["expected_accuracy"] > 0.7


def test_a_head_on_several_layers_and_on_all_layers(color_folder, elsewhere, capsys):
    arguments = ["--data", str(color_folder), "--case", "small-similar", *QUICK]
    assert main([*arguments, "--cut", "block5c_add,block2b_add", "--output", "two"]) == 0
    assert metrics_of(elsewhere / "two")["cuts"] == ["block2b_add", "block5c_add"]
    assert metrics_of(elsewhere / "two")["cut"] == "block5c_add"
    assert main([*arguments, "--cut", "all", "--output", "all"]) == 0
    assert len(metrics_of(elsewhere / "all")["cuts"]) == 17
    assert metrics_of(elsewhere / "all")["test_accuracy"] >= 0.9
    assert main([*arguments, "--cut", "block5c_add,block2b_ad", "--output", "none"]) == 2
    assert "Did you mean 'block2b_add'" in capsys.readouterr().err


def test_a_run_is_complete_before_its_figures_which_ctrl_c_may_stop(
    color_folder, elsewhere, monkeypatch, capsys
):
    shown = []

    def interrupted(evaluation):
        accuracy = load_run("run").metrics["test_accuracy"]
        shown.append((f"Test accuracy: {accuracy:.1%} on", capsys.readouterr().out))
        raise KeyboardInterrupt

    command = [str(color_folder), "--model", "DemoCNN", "--case", "1", "--output", "run", *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr("transfer.evaluation.evaluation_plots.confusion_matrix", interrupted)
        assert main(command) == 0
    [(expected, printed)] = shown
    assert expected in printed
    end = capsys.readouterr().out
    assert "The run is complete. To write its pages: python -m transfer.report run\n" in end
    assert end.endswith("Results: run\n") and expected not in end
    assert not (elsewhere / "run" / "report.html").exists() and not list(elsewhere.glob(".*"))
    assert main(command) == 0 and "This run is complete." in capsys.readouterr().out
    assert report.main(["run"]) == 0
    assert "Confusion matrix" not in (elsewhere / "run" / "report.html").read_text()
