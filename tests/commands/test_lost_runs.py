"""Runs at risk: missing images, finished and running runs, wrong options, and unusual outputs."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer.cases.builders import large_similar, small_similar
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.images import datasets
from transfer.images.datasets import load_data
from transfer.networks.backbones import load_backbone
from transfer.results.run_folders import run_folder
from transfer.train import main
from transfer.training.fit import fit

QUICK = ["--model", "DemoCNN", "--image-size", "48", "--case", "small-similar"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def folder(color_folder, tmp_path):
    """Images that may be removed."""
    return Path(shutil.copytree(color_folder, tmp_path / "data"))


def remove(path):
    path.unlink()
    return "no such file"


def truncate(path):
    path.write_bytes(path.read_bytes()[:40])
    return "changed after it was checked"


def replace(path):
    Image.new("RGB", (40, 40), "white").save(path)
    return "changed after it was checked"


def unmount(path):
    path.parents[1].rename(path.parents[2] / "unmounted")
    return "is gone"


LOSSES = [remove, truncate, replace, unmount]


def losing(monkeypatch, lose, split="train"):
    """Lose an image as soon as the data are checked; return a list that receives its path and the expected words."""
    lost, load = [], datasets.load_data

    def load_and_lose(*args, **options):
        data = load(*args, **options)
        if not lost:
            path = Path(data.splits[split].images[3])
            lost.extend([path, lose(path)])
        return data

    monkeypatch.setattr(datasets, "load_data", load_and_lose)
    return lost


@pytest.mark.parametrize("case", ["small-similar", "large-similar"])
@pytest.mark.parametrize("lose", LOSSES)
def test_an_image_lost_after_the_check_is_reported_in_one_line(case, lose, folder, monkeypatch, capsys):
    lost = losing(monkeypatch, lose)
    command = ["--data", str(folder), *QUICK, "--case", case, "--epochs", "1", "--output", "run"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert lost[1] in line and str(lost[0].parent) in line
    assert not Path("run").exists()
    if lose is not unmount and case == "small-similar":
        assert main(command) == 0  # without the image, or with its new content
        what = "changed" if lose is replace else "gone"
        assert f"1 image is {what}: '{lost[0].parent.name}/{lost[0].name}'" in capsys.readouterr().out
        assert not Path(".run.partial").exists()


@pytest.mark.parametrize("engine", ["keras", "openvino"])
def test_a_test_image_lost_before_the_evaluation_is_reported_and_the_training_is_kept(
    engine, folder, monkeypatch, capsys
):
    if engine == "openvino":
        pytest.importorskip("openvino")
    lost = losing(monkeypatch, remove, split="test")
    content = {path: path.read_bytes() for path in folder.rglob("*.png")}
    command = ["--data", str(folder), *QUICK, "--engine", engine, "--output", "run"]
    assert main(command) == 2
    assert str(lost[0]) in capsys.readouterr().err
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert f"1 image is gone: '{lost[0].parent.name}/{lost[0].name}'" in printed and ".run.partial" in printed
    lost[0].write_bytes(content[lost[0]])
    assert main(command) == 0
    assert "Resuming: the training was complete" in capsys.readouterr().out


@pytest.mark.parametrize("build", [small_similar, large_similar])
def test_fit_and_evaluate_raise_input_error_for_a_lost_image(build, folder, cache):
    data = load_data(folder)
    model = build(load_backbone("DemoCNN", image_size=48), data.num_classes)
    shutil.rmtree(folder)
    for work in (lambda: fit(model, data, epochs=1, cache=cache), lambda: evaluate(model, data, cache=cache)):
        with pytest.raises(InputError, match=r"Cannot read .*\.png: no such file") as raised:
            work()
        assert "\n" not in str(raised.value)


def test_a_replaced_image_does_not_enter_the_cache_under_the_old_content(folder, cache):
    data = load_data(folder)
    model = small_similar(load_backbone("DemoCNN", image_size=48), data.num_classes)
    before = Path(data.train.images[0]).read_bytes()
    replace(Path(data.train.images[0]))
    with pytest.raises(InputError, match="changed after it was checked"):
        fit(model, data, cache=cache)
    Path(data.train.images[0]).write_bytes(before)
    assert np.isfinite(fit(model, data, cache=cache).rows[-1]["loss"])


def test_the_same_command_on_a_finished_run_says_that_it_is_complete(folder, capsys):
    command = ["--data", str(folder), *QUICK, "--output", "run"]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("run").iterdir()}
    capsys.readouterr()
    for again in (command, [*command, "--resume"], ["--config", "run/config.yaml", "--output", "run"]):
        assert main(again) == 0
        printed = capsys.readouterr()
        assert "complete" in printed.out and "Results: run" in printed.out and not printed.err
    assert main([*command, "--seed", "4", "--val", "0.2"]) == 2
    printed = capsys.readouterr().err
    assert "seed was 0, now 4" in printed and "val was 0.1, now 0.2" in printed
    assert {path: path.stat().st_mtime_ns for path in Path("run").iterdir()} == before
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["engine"]
    assert main([*command[:-1], "again"]) == 0  # reads all features from the cache
    assert "engine" not in json.loads(Path("again/metrics.json").read_text())


def test_an_automatic_case_counts_as_the_same_options(folder, capsys):
    command = ["--data", str(folder), *QUICK, "--case", "auto", "--output", "run", "--time-budget", "10s"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "complete" in capsys.readouterr().out


def test_resume_without_an_output_finds_the_finished_run(folder, capsys):
    command = ["--data", str(folder), *QUICK]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.count("Results: runs/data-small-similar-1") == 2
    assert main([*command, "--resume", "--seed", "1"]) == 2


def test_an_output_is_in_use_only_while_another_run_writes_to_it(folder, capsys):
    command = ["--data", str(folder), *QUICK, "--output", "run"]
    with run_folder("run", "x"):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert "in use: another run is writing" in printed.err and "images" not in printed.out
    Path(".run.partial").mkdir()
    Path(".run.partial/lock").touch()  # of a killed run
    assert main(command) == 0


@pytest.mark.parametrize("name", ["out", "deep/out", None])
def test_an_output_inside_the_images_is_refused(name, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    command = ["--data", ".", *QUICK] if name is None else ["--data", str(folder), *QUICK, "--output", name]
    before = sorted(folder.rglob("*"))
    assert main(command) == 2
    assert "inside the data" in capsys.readouterr().err and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("place", ["runs/data-small-similar-1", "mine"])
def test_runs_inside_the_images_are_not_read_as_images(place, folder):
    run = folder / place
    run.mkdir(parents=True)
    for name in ("config.yaml", "metrics.json"):
        (run / name).write_text("{}")
    Image.new("RGB", (40, 40), "white").save(run / "network.png")
    data = load_data(folder)
    assert data.num_classes == 3 and len(data.train) + len(data.val) + len(data.test) == 90
    assert [(name, "run" in reason) for name, reason in data.skipped] == [(place.partition("/")[0], True)]


@pytest.mark.parametrize("output", ["x" * 250, "x" * 300, "file", "file/run"])
def test_an_output_that_cannot_be_made_is_refused_before_the_images_are_checked(output, folder, capsys):
    Path("file").write_text("mine")
    assert main(["--data", str(folder), *QUICK, "--output", output]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1 and "--output" in printed.err and not printed.out


def test_an_output_with_spaces_and_accents_works(folder):
    data = folder.rename(folder.with_name("é a"))
    assert main(["--data", str(data), *QUICK, "--output", "ü b/ø 1"]) == 0
    assert Path("ü b/ø 1/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "DemoCN"], "'DemoCNN'"),
        (["--image-size", "8"], "at least"),
        (["--cut", "block9"], "block"),
        (["--weights", "nowhere.npz"], "nowhere.npz"),
        (["--unfreeze-from", "block9"], "block"),
        (["--case", "atuo"], "'auto'"),
        (["--case", "zzz"], "'auto'"),
    ],
)
def test_wrong_options_are_reported_before_the_images_are_checked(
    arguments, message, folder, capsys, monkeypatch
):
    monkeypatch.setattr(datasets, "load_data", lambda *args, **options: 1 / 0)
    assert main(["--data", str(folder), *QUICK, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--data-dir", "--output", "--few-shot", "--split", "--learning-rate", "--cut"]
)
def test_a_flag_without_its_value_is_refused(flag, capsys):
    with pytest.raises(SystemExit) as exit:
        main([flag])
    assert exit.value.code == 2 and f"Expected a value after {flag}: {flag} " in capsys.readouterr().err


def test_ctrl_c_while_figures_are_drawn_leaves_a_complete_run(folder, monkeypatch, caplog):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("transfer.evaluation.prediction_plots.prediction_sheet", interrupted)
    with caplog.at_level(logging.WARNING):
        assert main(["--data", str(folder), *QUICK, "--output", "run"]) == 0
    assert "The run is complete" in caplog.text
    assert Path("run/model.keras").is_file() and not Path("run/predictions.png").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_saves_a_checkpoint(folder):
    command = [
        sys.executable,
        "-m",
        "transfer.train",
        "--data",
        str(folder),
        *QUICK,
        "--case",
        "large-similar",
    ]
    command += ["--epochs", "500", "--output", "run"]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which ignores it, may run these tests
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    states = Path(".run.partial/checkpoints")
    while process.poll() is None and not list(states.glob("*.npz")):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGHUP)
    printed = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGHUP, printed
    assert "a checkpoint was saved" in printed and list(states.glob("*.npz"))


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_training_continues_after_the_reader_of_its_output_is_gone(closed, folder):
    command = [
        sys.executable,
        "-m",
        "transfer.train",
        "--data",
        str(folder),
        *QUICK,
        "--case",
        "large-similar",
    ]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: subprocess.PIPE}
    process = subprocess.Popen([*command, "--epochs", "2", "--output", "run"], **streams)
    getattr(process, closed).close()
    assert process.wait() == 0 and Path("run/report.html").is_file()


@pytest.mark.parametrize("floatx", ["float16", "float64"])
@pytest.mark.parametrize("case", ["small-similar", "large-similar"])
def test_floatx_of_keras_json_does_not_change_a_run(floatx, case, folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    settings = {
        "floatx": floatx,
        "epsilon": 1e-07,
        "backend": "tensorflow",
        "image_data_format": "channels_last",
    }
    (home / "keras.json").write_text(json.dumps(settings))
    command = ["-m", "transfer.train", "--data", str(folder), *QUICK, "--case", case, "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--output", "run"],
        capture_output=True, text=True, check=False, env={**os.environ, "KERAS_HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"floatx to {floatx}" in done.stdout and "Left out" not in done.stdout
    assert Path("run/blocks.png").is_file()
    assert json.loads(Path("run/metrics.json").read_text())["test_accuracy"] > 0.9
