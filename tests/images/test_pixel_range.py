"""Images of more than 8 bits per channel become 8 bits by one range for the whole data set."""

import io

import numpy as np
import pytest
from helpers.images import png16
from PIL import Image, TiffImagePlugin

from transfer.images.checking import check
from transfer.images.datasets import load_data
from transfer.images.decoding import decode, inspect_image, to_rgb_array
from transfer.images.pixel_range import BEFORE_0_3, Extent, PixelRange, extent_of, find_range


def ramp(top, shape=(40, 60), dtype="uint16", low=0):
    return np.linspace(low, top, int(np.prod(shape))).reshape(shape).astype(dtype)


def encode(values, kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def tiff(values, **options) -> bytes:
    return encode(values, "TIFF", **options)


@pytest.mark.parametrize(("extents", "expected"), [
    ([(0, 17, True)], (0, 255)),
    ([(0, 1, True)], (0, 1)),
    ([(0, 900, True), (3, 1000, True)], (0, 1023)),
    ([(0, 2000, True)], (0, 4095)),
    ([(90, 4096, True)], (0, 16383)),
    ([(0, 65535, True)], (0, 65535)),
    ([(0, 100_000, True)], (0, 2**18 - 1)),
    ([(-1024, 3071, True)], (-1024, 3071)),
    ([(0.1, 0.7, False)], (0, 1)),
    ([(0.1, 1.2, False)], (0.1, 1.2)),  # reflectances
    ([(0, 1, True), (0, 0.5, False)], (0, 1)),
    ([(0, 254.5, False)], (0, 255)),
    ([(-1, 0.5, False)], (-1, 0.5)),
    ([(200.5, 900.25, False)], (200.5, 900.25)),
])  # fmt: skip
def test_the_range_is_that_of_the_bits_in_use(extents, expected):
    assert find_range(Extent(*extent) for extent in extents) == PixelRange(*expected)


def test_sets_of_8_bits_have_no_range():
    assert find_range([]) is None


def test_missing_values_do_not_set_the_range():
    values = np.array([[np.nan, 0.25], [-3.4e38, 0.75]], "float32")
    assert extent_of(values) == Extent(0.25, 0.75, False)
    assert PixelRange(0, 1).to_8_bit(values).tolist() == [[0, 64], [0, 191]]
    assert extent_of(np.full((2, 2), np.nan)) == Extent(0, 0, False)


def test_values_outside_the_range_are_clipped():
    assert PixelRange(-10, 10).to_8_bit(np.array([-99, -10, 0, 10, 99])).tolist() == [0, 0, 128, 255, 255]


def test_large_images_become_the_same_8_bits_as_small_ones():
    values = ramp(65535, (300, 300))
    for used in (PixelRange(0, 4095), PixelRange(0, 65535), PixelRange(100, 200)):
        rows = np.concatenate([used.to_8_bit(row) for row in values])
        assert (used.to_8_bit(values).ravel() == rows).all()


@pytest.mark.parametrize("top", [1023, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bit_png_keeps_all_bits(top, channels, interlaced):
    """Pillow drops the low byte of color and of gray with alpha."""
    values = np.random.default_rng(0).integers(0, top + 1, (30, 44, channels)).astype("uint16")
    values[0, 0] = top
    if channels in (2, 4):
        values[..., -1] = 65535
    decoded = inspect_image(png16(values, interlaced=interlaced), (30, 44))
    colors = values[..., : 1 if channels < 3 else 3]
    assert decoded.extent is not None and decoded.extent.high == top and decoded.mode.endswith("16")
    assert np.abs(decoded.pixels - np.rint(colors / top * 255)).max() <= 1


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize(("dtype", "low", "top", "used"), [
    ("uint16", 0, 4095, (0, 4095)),
    ("int32", -1024, 3071, (-1024, 3071)),
    ("float32", 0, 1, (0, 1)),
])  # fmt: skip
def test_grey_tiff_keeps_all_bits(compression, dtype, low, top, used):
    values = ramp(top, dtype=dtype, low=low)
    decoded = inspect_image(tiff(values, compression=compression), values.shape)
    wanted = np.rint((values.astype(float) - used[0]) / (used[1] - used[0]) * 255)
    assert np.abs(decoded.pixels[..., 1] - wanted).max() <= 1 and decoded.format == "TIFF"


def test_white_is_zero_in_some_tiff_files():
    values = ramp(4095)
    normal, inverted = (decode(tiff(values, tiffinfo={262: white}), values.shape) for white in (1, 0))
    assert np.abs(normal.astype(int) + inverted - 255).max() == 0


def test_the_range_of_the_data_set_is_applied_to_every_image():
    dark, bright = encode(ramp(500)), encode(ramp(4000))
    used = PixelRange(0, 4095)
    assert decode(dark, (40, 60), pixel_range=used).max() == 31
    assert decode(bright, (40, 60), pixel_range=used).max() == 249
    assert decode(encode(ramp(200, dtype="uint8")), (40, 60), pixel_range=used).max() == 200


def test_16_bit_arrays_use_the_range_and_others_are_0_to_255():
    values, used = ramp(4095), PixelRange(0, 4095)
    assert (
        to_rgb_array(values, pixel_range=used) == decode(encode(values), values.shape, pixel_range=used)
    ).all()
    for dtype in ("uint8", "int64", "float32"):
        assert to_rgb_array(ramp(200, dtype=dtype), pixel_range=used).max() == 200


def test_runs_without_a_range_keep_the_rule_of_their_version():
    for top, shown in ((65535, 255), (4095, 16), (255, 255), (200, 200)):
        assert decode(encode(ramp(top)), (40, 60), pixel_range=BEFORE_0_3).max() == shown


# Data sets


def data_set(folder, tops):
    """Write two classes of 16-bit images; an image's maximum is `tops` in turn."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for i, top in enumerate(tops):
            path = folder / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = rng.integers(0, top + 1, (24, 24)).astype("uint16")
            values[0, 0] = top
            Image.fromarray(values).save(path)
    return folder


def kinds(data):
    return {finding.kind for finding in data.report.findings}


@pytest.mark.parametrize(("top", "high"), [(65535, 65535), (4000, 4095), (1023, 1023)])
def test_images_of_10_and_12_bits_become_as_bright_as_those_of_16(tmp_path, top, high):
    data = load_data(data_set(tmp_path, [top] * 8))
    assert data.train.pixel_range == PixelRange(0, high) == data.test.pixel_range
    assert data.train.image(0, (24, 24)).mean() == pytest.approx(125, abs=10)
    assert data.report.facts["range"] == f"0 to {high:,} in the training images become 0 to 255"
    assert not kinds(data) & {"blank", "low_contrast"}


def test_the_range_is_found_in_the_training_images(tmp_path):
    data_set(tmp_path / "train", [900] * 5)
    data_set(tmp_path / "test", [60_000] * 2)
    data = load_data(tmp_path)
    assert data.test.pixel_range == PixelRange(0, 1023)
    assert "out_of_range" in kinds(data) and len(data.report.out_of_range) == 4
    assert "to 60,000 are far outside the range 0 to 1,023" in data.report.out_of_range[0][1]


def test_images_that_use_little_of_a_mixed_range_are_reported(tmp_path):
    data = load_data(data_set(tmp_path, [4095, 65535, 65535, 65535]))
    assert data.train.pixel_range == PixelRange(0, 65535)
    assert set(data.report.low_contrast) == {"a/0.png", "b/0.png"}


def test_an_image_that_widens_the_range_alone_is_reported(tmp_path):
    """Such as one with a hot pixel."""
    data = load_data(data_set(tmp_path, [4095, 4000, 4095, 4095, 4095]))
    values = np.array(Image.open(tmp_path / "a" / "1.png"))
    values[3, 3] = 65535
    Image.fromarray(values).save(tmp_path / "a" / "1.png")
    assert not data.report.outliers
    data = load_data(tmp_path)
    assert data.report.outliers == (("a/1.png", "values up to 65,535"),)


def test_dark_images_are_not_called_single_colored(tmp_path):
    for label in ("a", "b"):
        for i in range(6):
            path = tmp_path / label / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(i + 9 * (label == "b")).integers(0, 4, (24, 24), dtype="uint8")
            Image.fromarray(pixels if i else pixels * 0 + 9).save(path)
    report = load_data(tmp_path).report
    assert set(report.blank) == {"a/0.png", "b/0.png"}
    assert len(report.low_contrast) == 10


def test_8_bit_images_keep_their_values_beside_deep_ones(tmp_path):
    data_set(tmp_path, [4095] * 5)
    Image.fromarray(ramp(200, (24, 24), "uint8")).save(tmp_path / "a" / "8 bits.png")
    data = load_data(tmp_path)
    part = next(part for part in data.splits.values() if "a/8 bits.png" in part.names)
    assert part.image(list(part.names).index("a/8 bits.png"), (24, 24)).max() == 200


def test_a_thin_line_is_not_a_single_color():
    pixels = np.full((900, 900), 250, "uint8")
    pixels[5, 5] = 240
    found = check(encode(pixels))
    assert not found.single_color and found.high == 250
    assert check(encode(np.full((900, 900), 250, "uint8"))).single_color
    assert check(encode(np.full((9, 9), 250, "uint16"))).single_color


@pytest.mark.parametrize(("dtype", "mark"), [("float32", -9999), ("int32", -32768), ("float32", -3.4e38)])
def test_marks_of_missing_pixels_are_not_part_of_the_extent(dtype, mark):
    values = ramp(300, dtype=dtype)
    values[:3, :5] = mark
    extent = extent_of(values)
    assert 0 <= extent.low < 30
    assert extent.high == 300


def test_the_mark_of_missing_pixels_in_a_tiff_file_is_used():
    values = ramp(3000)
    values[:3, :5] = 65535
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113], tags.tagtype[42113] = "65535", 2
    assert inspect_image(tiff(values, tiffinfo=tags), (40, 60)).extent.high == 3000
    assert inspect_image(tiff(values), (40, 60)).extent.high == 65535


def test_an_image_of_missing_pixels_has_an_extent():
    assert extent_of(np.full((4, 4), -9999, "int32")) == Extent(0, 0, True)
