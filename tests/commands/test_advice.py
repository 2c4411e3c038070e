"""The command: a table for people, files for programs and images, and clear words for bad input."""

import json
import logging

import pytest
from PIL import Image

from transfer.advice import main
from transfer.common.errors import InputError
from transfer.config import AdviceConfig, parse_advice_arguments, seconds_of

TINY = ["--model", "MobileNetV2", "--weights", "none", "--image-size", "32", "--no-trial"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_table_json_and_plots(color_folder, capsys, tmp_path):
    files = ["--json", "advice.json", "--plots", "plots"]
    assert main(["--data", str(color_folder), *TINY, *files]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "advice.json").read_text())
    assert found["reason"][1:] in printed and "nine in ten" in printed
    assert found["signal"] is True and found["images_per_class"].keys() == {"blue", "green", "red"}
    for name in ("layer-curve.png", "four-cases.png"):
        with Image.open(tmp_path / "plots" / name) as image:
            assert min(image.size) > 200


def test_networks_are_compared(color_folder, capsys, tmp_path):
    flags = ["--compare", "MobileNetV2", "--json", "ranks.json"]
    assert main(["--data", str(color_folder), *TINY, *flags]) == 0
    assert "MobileNetV2" in capsys.readouterr().out
    (only,) = json.loads((tmp_path / "ranks.json").read_text())
    assert only["model"] == "MobileNetV2" and only["image_size"] == 32 and only["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--model", "MobileNetV9"], "MobileNetV2"),
        (["--time-budget", "soon"], "5m"),
        (["--max-images", "1"], "max_images"),
        (["--image-size", "0"], "image_size"),
        (["--compare", "MobilNetV2"], "MobileNetV2"),
    ],
)
def test_bad_input_is_told_in_a_line(flags, words, capsys, tmp_path):
    assert main([*TINY, "--json", "advice.json", *flags]) == 2
    told = capsys.readouterr().err.strip()
    assert words in told and "Traceback" not in told and len(told.splitlines()) <= 2
    assert not (tmp_path / "advice.json").exists()


def test_nothing_is_left_that_writes_to_a_stream_of_before():
    handlers = list(logging.getLogger("transfer").handlers)
    assert main([*TINY, "--data", "nowhere"]) == 2
    assert logging.getLogger("transfer").handlers == handlers


def test_a_file_that_cannot_be_written_is_told(color_folder, capsys):
    assert main(["--data", str(color_folder), *TINY, "--json", "no/such/folder.json"]) == 2
    assert "Cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2H", 7200), (None, None)]
)
def test_times_are_read_with_their_units(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-5m", "nan", "inf", "5 minutes"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InputError, match="5m"):
        seconds_of(text)


def test_defaults_are_those_of_the_dataclass():
    assert parse_advice_arguments([])[0] == AdviceConfig()
