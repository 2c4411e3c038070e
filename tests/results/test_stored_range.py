"""The range of images with more than 8 bits per channel is stored with the model."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer import train
from transfer.common.errors import InputError
from transfer.images.pixel_range import BEFORE_0_3, PixelRange
from transfer.results.finished_runs import add_pixel_range, load_run
from transfer.results.predict import predict


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory):
    """A run on images of 12 bits: bright left or bright right halves."""
    folder, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(0)
    for label, half in (("left", slice(0, 16)), ("right", slice(16, 32))):
        for i in range(12):
            values = rng.integers(0, 600, (32, 32)).astype("uint16")
            values[:, half] += 3000
            path = folder / "data" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    flags = ["--data", folder / "data", "--model", "DemoCNN", "--case", "small-similar", "--image-size", "32"]
    assert train.main([*map(str, flags), "--output", str(folder / "run")]) == 0
    return folder / "run"


def without_range(file: Path) -> None:
    """Make a model file look like those before version 0.3."""
    copy = file.with_suffix(".old")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            if name != "pixel_range.json":
                new.writestr(name, old.read(name))
    copy.replace(file)


def test_the_model_file_keeps_the_range(deep_run, tmp_path):
    run = load_run(deep_run)
    assert run.pixel_range == PixelRange(0, 4095)
    assert run.data().test.pixel_range == PixelRange(0, 4095)
    assert run.data(deep_run.parent / "data").test.pixel_range == PixelRange(0, 4095)
    shutil.copy(deep_run / "model.keras", tmp_path / "alone.keras")
    assert load_run(tmp_path / "alone.keras").pixel_range == PixelRange(0, 4095)


def test_files_and_16_bit_arrays_are_predicted_alike(deep_run):
    files = sorted((deep_run.parent / "data").rglob("*.png"))[:5]
    by_file = predict(deep_run, files)
    by_array = predict(deep_run, [np.asarray(Image.open(file)) for file in files])
    for one, other in zip(by_file, by_array, strict=True):
        assert np.abs(np.subtract(one.probabilities, other.probabilities)).max() < 1e-6


def test_images_far_outside_the_range_are_predicted_with_a_warning(deep_run, tmp_path, caplog):
    values = np.random.default_rng(0).integers(0, 65536, (32, 32)).astype("uint16")
    Image.fromarray(values).save(tmp_path / "bright.png")
    Image.fromarray(values // 200).save(tmp_path / "dark.png")
    Image.fromarray(values // 16).save(tmp_path / "fits.png")
    found = predict(deep_run, tmp_path)
    assert not any(one.problem for one in found)
    assert "bright.png: values" in caplog.text and "far outside the range 0 to 4,095" in caplog.text
    assert "dark.png: values" in caplog.text and "at most 1/8 of the range" in caplog.text
    assert "fits.png" not in caplog.text


def test_runs_of_earlier_versions_keep_their_rule(deep_run, tmp_path):
    shutil.copytree(deep_run, tmp_path / "run")
    without_range(tmp_path / "run" / "model.keras")
    assert load_run(tmp_path / "run").pixel_range == BEFORE_0_3


@pytest.mark.parametrize("content", ["[4095, 0]", "[0, NaN]", "{}", "[1]", "no json", '["a", "b"]'])
def test_a_damaged_range_is_reported(content, deep_run, tmp_path):
    shutil.copy(deep_run / "model.keras", tmp_path / "a.keras")
    without_range(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras", "a") as archive:
        archive.writestr("pixel_range.json", content)
    with pytest.raises(InputError, match="two increasing numbers or null"):
        load_run(tmp_path / "a.keras")


def test_a_run_on_8_bits_has_no_range(deep_run, tmp_path):
    shutil.copy(deep_run / "model.keras", tmp_path / "a.keras")
    without_range(tmp_path / "a.keras")
    add_pixel_range(tmp_path / "a.keras", None)
    assert load_run(tmp_path / "a.keras").pixel_range is None
