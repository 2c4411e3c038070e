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


def test_an_unknown_command_lists_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "Unknown command 'trian'. Did you mean 'train'?\n"


def test_the_exit_code_is_that_of_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "transfer", "predict", "gone", "gone.png"], capture_output=True
    )
    assert done.returncode == 2
