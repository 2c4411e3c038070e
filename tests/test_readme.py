"""What the README says is true: its flags parse, its Python runs, its first command trains."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from transfer.config import (
    AdviceConfig,
    DataConfig,
    TrainConfig,
    parse_advice_arguments,
    parse_arguments,
    parse_check_arguments,
)
from transfer.images.datasets import embedded_folder

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = [
    line for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()
]


def test_it_begins_with_the_two_commands():
    assert SHELL[:2] == ["pip install . && python -m transfer.train", 'pip install ".[test]" && pytest']


def test_the_flags_of_every_command_exist():
    commands = [c for line in SHELL for c in line.split(" && ")]
    rooms = ("train", "datasets", "advice")
    trains, checks, advices = ([c for c in commands if f"-m transfer.{room}" in c] for room in rooms)
    assert len(trains) >= 3 and checks and advices
    for command in trains:
        assert isinstance(parse_arguments(shlex.split(command)[3:]), TrainConfig)
    for command in checks:
        assert isinstance(parse_check_arguments(shlex.split(command)[3:])[0], DataConfig)
    for command in advices:
        assert isinstance(parse_advice_arguments(shlex.split(command)[3:])[0], AdviceConfig)
    for room in ("evaluate", "predict", "report", "export"):
        parser = importlib.import_module(f"transfer.{room}")._parser()
        words = [
            shlex.split(c.split(" > ")[0].rsplit(f"-m transfer.{room} ")[1])
            for c in commands
            if f"-m transfer.{room} " in c
        ]
        assert words and all(vars(parser.parse_args(given)) for given in words)


def test_every_flag_that_is_mentioned_exists():
    names = (
        set(TrainConfig.__dataclass_fields__)
        | set(AdviceConfig.__dataclass_fields__)
        | {
            "plots",
            "compare",
            "config",
            "help",
            "json",
            "html",
            "write_split",
            "list",
            "clear",
            "splits",
            "shard_size",
            "runner",
            "ntasks",
            "no_deps",
            "reading",
            "forward",
            "tuning",
            "assert_accuracy_at_least",
            "data",
            "to",
            "quantize",
            "gradcam",
        }
    )
    for flag in re.findall(r"`--([a-z-]+)", README):
        assert flag.replace("-", "_") in names, flag


@pytest.mark.slow
def test_the_python_runs(tmp_path, monkeypatch, capsys):
    from transfer.train import main

    monkeypatch.chdir(tmp_path)
    main([])
    Image.open(embedded_folder() / "face" / "u1f600-grinning-face.png").save("image.png")
    advice, first, looks, second = PYTHON
    capsys.readouterr()
    exec(advice, {})
    assert "nine in ten" in capsys.readouterr().out
    exec(first, {})
    assert capsys.readouterr().out.splitlines()[-1] == "face"
    exec(looks, {})
    assert -1 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1
    assert Path("heat.png").stat().st_size > 10_000 and Path("layers.png").stat().st_size > 10_000
    exec(second, {})
    assert re.search(r"Accuracy [67]\d\.\d%", capsys.readouterr().out)
