"""`transfer COMMAND`: each command is found, and a wrong name lists the nearest."""

import subprocess
import sys
from importlib import import_module

import pytest

from transfer.__main__ import COMMANDS, main


def test_without_arguments_all_commands_are_listed(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"python -m transfer.{name}" in capsys.readouterr().out
    assert callable(import_module(f"transfer.{name}").main)


@pytest.mark.parametrize(("line", "error"), [
    ("train --epoch 3", "Unknown option --epoch. Did you mean --epochs?"),
    ("advice --max-image 3", "Unknown option --max-image. Did you mean --max-images"),
    ("datasets --jsn x", "Unknown option --jsn. Did you mean --json"),
    ("evaluate run --dir photos", "Unknown option --dir. Did you mean --data?"),
    ("evaluate", "Missing: RUN. See python -m transfer.evaluate --help."),
    ("evaluate run photos more", "Unexpected argument 'more'."),
    ("predict run x.png --top three", "Expected a whole number for --top. Received: 'three'."),
    ("predict run x.png --format xml", "Unknown value 'xml' for --format. Expected table, csv, json."),
    ("predict run x.png --format tabel", "Unknown value 'tabel' for --format. Did you mean 'table'?"),
    ("predict run", "Missing: IMAGE. See python -m transfer.predict --help."),
    ("export run --to", "Expected a value after --to: --to FORMAT."),
    ("report", "Missing: RUN."),
    ("features", "Expected --list or --clear."),
    ("features --list --clear", "Expected --clear or --list, not both."),
    ("beam_features --seed", "Expected a value after --seed: --seed N."),
])  # fmt: skip
def test_a_usage_error_is_one_line(line, error, capsys):
    with pytest.raises(SystemExit) as left:
        main(line.split())
    printed = capsys.readouterr().err
    assert left.value.code == 2 and printed.startswith(error) and printed.count("\n") == 1


def test_an_unknown_command_lists_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "Unknown command 'trian'. Did you mean 'train'?\n"


def test_the_exit_code_is_that_of_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "transfer", "predict", "gone", "gone.png"], capture_output=True
    )
    assert done.returncode == 2
