"""The steps of a run are read back as they were written, and damaged ones are refused."""

import json
from dataclasses import replace

import pytest

from transfer.anytime.plan import Kind
from transfer.anytime.records import History, StepRecord, read_history
from transfer.anytime.speeds import Speeds
from transfer.common.errors import InputError

HEAD = StepRecord(
    Kind.HEAD,
    "DemoCNN",
    32,
    3.0,
    title="Head on all layers, 32 px",
    case="small-similar",
    seconds=2.5,
    accuracy=0.8,
    sd=0.02,
    interval=(0.7, 0.9),
    kept=True,
    basis="out-of-fold predictions of 40 images",
)
HISTORY = History((HEAD, replace(HEAD, kind=Kind.FINE_TUNING, kept=False)), 60.0, False, (True, False))


def test_steps_are_read_back(tmp_path):
    assert read_history(tmp_path / "steps.json") is None
    HISTORY.save(tmp_path / "steps.json")
    assert read_history(tmp_path / "steps.json") == HISTORY


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("budget"),
        lambda values: values["steps"][0].pop("seconds"),
        lambda values: values["steps"][0].update(kind="magic"),
        lambda values: values["steps"][0].update(case="magic"),
        lambda values: values["steps"][0].update(accuracy=float("nan")),
        lambda values: values["steps"][0].update(interval=[0.1]),
        lambda values: values.update(steps=[]),
        lambda values: values.update(budget="soon"),
    ],
)
def test_damaged_steps_are_refused(tmp_path, change):
    values = HISTORY.to_dict()
    change(values)
    (tmp_path / "steps.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"Cannot continue the run in .*: its steps.json is damaged"):
        read_history(tmp_path / "steps.json")


def test_steps_that_cannot_be_read_are_reported_as_such(tmp_path):
    (tmp_path / "steps.json").mkdir()
    with pytest.raises(InputError, match=r"Cannot read .*steps.json: is a directory. Make it readable"):
        read_history(tmp_path / "steps.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"steps": 3}'])
def test_a_file_that_holds_no_steps_is_refused(tmp_path, text):
    (tmp_path / "steps.json").write_text(text)
    with pytest.raises(InputError, match="damaged"):
        read_history(tmp_path / "steps.json")


def test_damaged_speeds_are_ignored(tmp_path):
    good = {"forward DemoCNN 32": 0.001}
    bad = {
        "forward DemoCNN 0": 0.001,
        "forward DemoCNN x": 1,
        "train DemoCNN 32": float("nan"),
        "a 32": -1,
        "b 32": "",
    }
    for text in (json.dumps({"mine": good | bad, "other": 3}), "[]", "{"):
        (tmp_path / "speeds.json").write_text(text)
        speeds = Speeds(tmp_path, machine="mine")
        assert speeds.find("train", "DemoCNN", 32) is None
        assert speeds.find("forward", "DemoCNN", 64) == (0.004 if text.startswith('{"') else None)


def test_a_time_of_smaller_images_corrects_one_that_was_measured_under_load(tmp_path):
    speeds = Speeds(tmp_path, machine="mine")
    for size, seconds in ((128, 0.08), (64, 0.01)):
        speeds.measured(seconds, "training", "Lite", size)
    assert speeds.find("training", "Lite", 128) == pytest.approx(0.04)
    assert speeds.find("training", "Lite", 32) == pytest.approx(0.0025)
    assert speeds.find("forward", "Lite", 64) is None
