"""The advice command: text, JSON and figures, and clear messages for invalid input."""

import json
import logging

import pytest
from PIL import Image

from transfer.advice import main
from transfer.common.errors import InputError
from transfer.common.text import seconds_of
from transfer.config import AdviceConfig
from transfer.parsing import parse_advice_arguments

TINY = ["--model", "MobileNetV2", "--weights", "none", "--image-size", "32", "--no-trial"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_text_json_and_figures_are_written(color_folder, capsys, tmp_path):
    files = ["--json", "advice.json", "--plots", "plots"]
    assert main(["--data", str(color_folder), *TINY, *files]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "advice.json").read_text())
    assert found["reason"] in printed and "90% interval" in printed
    assert found["signal"] is True and found["images_per_class"].keys() == {"blue", "green", "red"}
    for name in ("layer_curve.png", "four_cases.png"):
        with Image.open(tmp_path / "plots" / name) as image:
            assert min(image.size) > 200


def test_networks_are_compared(color_folder, capsys, tmp_path):
    flags = ["--compare", "MobileNetV2", "--json", "ranks.json"]
    assert main(["--data", str(color_folder), *TINY, *flags]) == 0
    assert "MobileNetV2" in capsys.readouterr().out
    (only,) = json.loads((tmp_path / "ranks.json").read_text())
    assert only["model"] == "MobileNetV2" and only["image_size"] == 32 and only["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--model", "MobileNetV9"], "MobileNetV2"),
        (["--time-budget", "soon"], "5m"),
        (["--max-images", "1"], "max_images"),
        (["--image-size", "0"], "image_size"),
        (["--compare", "MobilNetV2"], "MobileNetV2"),
    ],
)
def test_invalid_input_gives_a_one_line_message(flags, message, capsys, tmp_path):
    assert main([*TINY, "--json", "advice.json", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "Traceback" not in error and len(error.splitlines()) <= 2
    assert not (tmp_path / "advice.json").exists()


def test_log_handlers_are_restored():
    handlers = list(logging.getLogger("transfer").handlers)
    assert main([*TINY, "--data", "nowhere"]) == 2
    assert logging.getLogger("transfer").handlers == handlers


def test_a_file_that_cannot_be_written_gives_a_message(color_folder, capsys):
    assert main(["--data", str(color_folder), *TINY, "--json", "no/such/folder.json"]) == 2
    assert "Cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2H", 7200), (None, None)]
)
def test_durations_are_parsed_with_units(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-5m", "nan", "inf", "5 minutes"])
def test_invalid_durations_are_rejected(text):
    with pytest.raises(InputError, match="5m"):
        seconds_of(text)


def test_defaults_equal_the_defaults_of_the_dataclass():
    assert parse_advice_arguments([])[0] == AdviceConfig()
