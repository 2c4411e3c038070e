"""Every command works with redirected, closed, missing and ASCII output."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

from transfer.__main__ import main


def arguments_of(command, run, data, image):
    return {
        "datasets": [data],
        "predict": [run, image],
        "evaluate": [run],
        "report": [run],
        "features": ["--list"],
        "export": [run, "--to", "saved-model", "--output", f"{run}-exported"],
        "advice": ["--data", data, "--model", "DemoCNN", "--image-size", "32", "--no-trial"],
    }[command]


COMMANDS = ["datasets", "predict", "evaluate", "report", "features", "export", "advice"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_to_a_stream_of_a_notebook_and_to_none(
    command, strange_run, strange_folder, monkeypatch
):
    image = next(strange_folder.rglob("*.png"))
    arguments = [str(a) for a in arguments_of(command, strange_run, strange_folder, image)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert import_module(f"transfer.{command}").main(arguments) == 0
    assert out.getvalue()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main([command, *arguments]) == 0


NOISE = re.compile(rb"tensorflow/|absl|[EWI]0000 |cuda|oneDNN|node_def|XLA|retracing|Warning:", re.IGNORECASE)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*COMMANDS, "train"])
def test_a_command_prints_no_lines_of_other_libraries(command, strange_run, strange_folder, tmp_path):
    image = next(strange_folder.rglob("*.png"))
    training = ["--model", "DemoCNN", "--image-size", "32", "--case", "3", "--epochs", "2", "--output", "run"]
    given = [strange_folder, *training] if command == "train" else None
    arguments = [str(a) for a in given or arguments_of(command, strange_run, strange_folder, image)]
    loud = {
        key: value
        for key, value in os.environ.items()
        if key not in ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES")
    }
    environment = {**loud, "TRANSFER_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "transfer", command, *arguments]
    done = subprocess.run(words, capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0
    assert not NOISE.findall(done.stdout + done.stderr)


def shell(line, folder, **environment):
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


@pytest.fixture
def cats(color_folder, tmp_path):
    """Images of two classes whose names ASCII lacks."""
    for name, old in (("猫", "red"), ("café", "blue")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for file in (color_folder / old).glob("*.png"):
            (tmp_path / "data" / name / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_process_with_closed_output_writes_its_files(cats):
    done = shell('"$PYTHON" -m transfer.datasets data --json r.json >&- 2>&-', cats)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert json.loads((cats / "r.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_class_names_that_the_encoding_lacks_are_escaped(encoding, cats):
    done = shell('"$PYTHON" -m transfer.datasets data', cats, PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert rb"\u732b" in done.stdout


def test_training_continues_if_the_reader_of_its_log_is_gone(cats):
    options = "--data data --model DemoCNN --image-size 64 --case small-similar --output run"
    done = shell(f'"$PYTHON" -m transfer.train {options} | head -1; exit ${{PIPESTATUS[0]}}', cats)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr  # TensorFlow may log lines of its own
    assert b"Logging error" not in done.stderr
    assert done.stdout.count(b"\n") == 1
    assert (cats / "run" / "model.keras").is_file()
    line = '"$PYTHON" -m transfer.predict run data --format json'
    rows = shell(line, cats, PYTHONIOENCODING="latin-1")
    assert {row["classes"][0]["class"] for row in json.loads(rows.stdout)} == {"猫", "café"}
    short = shell(f"{line} | head -1; exit ${{PIPESTATUS[0]}}", cats)
    assert short.returncode == 0
    assert b"BrokenPipe" not in short.stderr


@pytest.mark.parametrize(
    "line",
    [
        "evaluate nowhere --json no/such/file.json",
        "evaluate nowhere --csv .",
        "datasets nowhere --html no/such/page.html",
        "advice --data nowhere --json no/such/file.json",
        "report nowhere nowhere --output no/such/page.html",
        "predict nowhere . --gradcam setup.cfg/maps",
        "export nowhere --to saved-model --output setup.cfg/model",
    ],
)
def test_a_file_that_cannot_be_written_is_reported_before_the_work(line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").touch()
    (tmp_path / "image.png").touch()
    assert main(line.split()) == 2
    assert capsys.readouterr().err.startswith("Cannot write")
    assert {path.name for path in tmp_path.iterdir()} == {"setup.cfg", "image.png"}
