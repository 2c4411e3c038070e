"""Formats beyond JPEG, PNG, GIF, BMP and WebP: they are read, or reported with advice."""

import importlib.util
import io
import struct

import numpy as np
import pytest
from helpers.color_profiles import matrix_profile
from PIL import Image, ImageCms, features

from transfer.images import decoding, formats
from transfer.images.checking import check
from transfer.images.datasets import load_data
from transfer.images.decoding import decode, inspect_image
from transfer.images.formats import HEAD_BYTES, is_image, kind_of
from transfer.images.pixel_range import PixelRange

needs_heic = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="needs pillow-heif")
needs_dicom = pytest.mark.skipif(importlib.util.find_spec("pydicom") is None, reason="needs pydicom")
needs_avif = pytest.mark.skipif("AVIF" not in formats.pillow_formats(), reason="needs a Pillow with AVIF")

RED, GREEN = (220, 30, 40), (30, 200, 60)


def encode(image, kind, **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def halves(mode="RGB", size=(64, 48)) -> Image.Image:
    """Return an image with a red left and a green right half."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 2, 0, *size))
    return image.convert(mode)


def heic(image, **options) -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return encode(image, "HEIF", quality=95, **options)


def assert_halves(pixels, within=8, grey=False):
    colors = [Image.new("RGB", (1, 1), color) for color in (RED, GREEN)]
    left, right = (np.asarray(color.convert("L") if grey else color).ravel() for color in colors)
    assert np.abs(pixels[:, :20].astype(int) - left).max() <= within
    assert np.abs(pixels[:, -20:].astype(int) - right).max() <= within


@pytest.mark.parametrize(
    "compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_lzma"]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "LAB"])
def test_tiff_is_read_in_every_mode_and_compression(mode, compression):
    image = halves() if mode == "LAB" else halves(mode)
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(halves(), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    if compression == "jpeg" and mode in ("RGBA", "LA", "P", "LAB"):
        pytest.skip("JPEG has no such mode")
    decoded = inspect_image(encode(image, "TIFF", compression=compression), (48, 64))
    assert decoded.format == "TIFF" and not decoded.single_color and not decoded.more_pages
    assert_halves(
        decoded.pixels, within=60 if compression == "jpeg" or mode == "P" else 4, grey=mode in ("L", "LA")
    )


def test_bilevel_tiff_is_read():
    bits = np.indices((48, 64)).sum(axis=0) % 9 == 0
    for compression in (None, "group3", "group4"):
        pixels = decode(encode(bits, "TIFF", compression=compression), (48, 64))
        assert (pixels[..., 0] == bits * 255).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
@pytest.mark.parametrize("kind", ["JPEG2000", pytest.param("AVIF", marks=needs_avif)])
def test_jpeg_2000_and_avif_are_read(kind, mode):
    decoded = inspect_image(encode(halves(mode), kind), (48, 64))
    assert decoded.format == {"JPEG2000": "JPEG 2000"}.get(kind, kind)
    assert_halves(decoded.pixels, within=30, grey=mode in ("L", "LA"))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_exif_rotation_is_applied_in_every_format(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = halves().transpose(Image.Transpose.ROTATE_90)  # what orientation 6 turns upright
    decoded = inspect_image(encode(turned, kind, exif=exif), (48, 64))
    assert (decoded.width, decoded.height) == (64, 48)
    assert_halves(decoded.pixels, within=30)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="needs OpenJPEG")
def test_16_bit_jpeg_2000_is_gray_of_16_bits():
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype("uint16")
    decoded = inspect_image(encode(values, "JPEG2000"), (48, 64))
    assert decoded.extent is not None and decoded.extent.high == 65535
    assert np.abs(decoded.pixels[..., 0] - values / 257).max() <= 2


@pytest.mark.parametrize(("content", "expected"), [
    (b"P2 2 1 255 0 255", [0, 255]),
    (b"P5\n# a comment\n2 1\n255\n\x00\xff", [0, 255]),
    (b"P5 2 1 15 \x00\x0f", [0, 255]),
    (b"P4 2 1 \x40", [255, 0]),
    (b"P5 2 1 65535 \x00\x00\xff\xff", [0, 255]),
    (b"P5 2 1 4095 \x00\x00\x0f\xff", [0, 255]),
    (b"Pf 2 1 -1.0\n" + struct.pack("<ff", 0, 1), [0, 255]),
])  # fmt: skip
def test_ppm_is_read_by_its_own_maximum(content, expected):
    assert is_image(content[:HEAD_BYTES])
    assert decode(content, (1, 2))[0, :, 0].tolist() == expected


@needs_heic
def test_heic_is_read_with_its_orientation_and_profile():
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = inspect_image(heic(halves()), (48, 64))
    assert decoded.format == "HEIC" and (decoded.width, decoded.height) == (64, 48)
    assert_halves(decoded.pixels, within=12)
    turned = inspect_image(heic(halves(), exif=exif), (48, 64))
    assert_halves(turned.pixels, within=12)  # HEIC has a rotation of its own, and EXIF's is a copy of it
    wide = heic(halves(), icc_profile=matrix_profile("Display P3"))
    assert decode(wide, (48, 64))[24, 10].tolist() != pytest.approx(list(RED), abs=8)


# DICOM


def dicom(values, *, bits=12, photometric="MONOCHROME2", syntax=None, deflated=False, **fields) -> bytes:
    """Return a DICOM file of stored values, uncompressed or run-length encoded."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        SecondaryCaptureImageStorage,
        generate_uid,
    )

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Rows, data.Columns = values.shape[-2:] if values.shape[-1] != 3 else values.shape[-3:-1]
    data.SamplesPerPixel = 3 if values.shape[-1] == 3 else 1
    data.PhotometricInterpretation = photometric
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = values.dtype.itemsize * 8
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
    if values.ndim == 3 and data.SamplesPerPixel == 1:
        data.NumberOfFrames = len(values)
    data.PixelData = values.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    if syntax is not None:
        data.compress(syntax)
    if deflated:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def ramp(top, dtype="uint16", low=0, size=(32, 48)):
    return np.linspace(low, top, size[0] * size[1]).reshape(size).astype(dtype)


@needs_dicom
def test_dicom_is_shown_with_the_window_of_the_file():
    values = ramp(3000, "int16", low=-1000)
    content = dicom(values, bits=16, WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-24)
    decoded = inspect_image(content, values.shape)
    assert decoded.format == "DICOM" and decoded.mode == "L" and decoded.extent is None
    wanted = np.clip((values - 24 - (40 - 0.5)) / 399 + 0.5, 0, 1) * 255
    assert np.abs(decoded.pixels[..., 0] - wanted).max() <= 1
    several = dicom(values, bits=16, WindowCenter=[40, 500], WindowWidth=[400, 2000])
    assert decode(several, values.shape).std() > 50


@needs_dicom
def test_dicom_without_a_window_uses_the_range_of_the_data_set():
    values = ramp(1000)
    decoded = inspect_image(dicom(values), values.shape, pixel_range=PixelRange(0, 4095))
    assert decoded.extent == (0, 1000, True) and decoded.pixels.max() == 62
    hounsfield = inspect_image(dicom(values, RescaleSlope=1.0, RescaleIntercept=-1024.0), values.shape)
    assert hounsfield.extent == (-1024, -24, True) and hounsfield.pixels.max() == 255
    padded = ramp(1000, "int16", low=0)
    padded[0] = -2000
    assert inspect_image(dicom(padded, bits=16, PixelPaddingValue=-2000), values.shape).low >= 0


@needs_dicom
@pytest.mark.parametrize(
    "window", [{"WindowCenter": 9, "WindowWidth": 0}, {"WindowCenter": 9}, {"WindowWidth": None}]
)
def test_invalid_windows_are_ignored(window):
    assert inspect_image(dicom(ramp(1000), **window), (32, 48)).extent == (0, 1000, True)


@needs_dicom
def test_the_settings_of_a_frame_are_used():
    from pydicom.dataset import Dataset

    window, shared = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 500, 1000
    shared.FrameVOILUTSequence = [window]
    frames = np.stack([ramp(4000)] * 3)
    decoded = inspect_image(dicom(frames, SharedFunctionalGroupsSequence=[shared]), (32, 48))
    assert decoded.mode == "L" and (decoded.pixels == 255).mean() > 0.7


@needs_dicom
@pytest.mark.parametrize(("kind", "syntax", "photometric"), [
    ("JPEG", "JPEGBaseline8Bit", "YBR_FULL_422"), ("JPEG2000", "JPEG2000Lossless", "RGB"),
])  # fmt: skip
def test_dicom_with_jpeg_inside_is_read(kind, syntax, photometric):
    import pydicom

    data = pydicom.dcmread(io.BytesIO(dicom(np.asarray(halves()), bits=8, photometric=photometric)))
    data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    data.PixelData = pydicom.encaps.encapsulate(
        [encode(halves(), kind, **({"no_jp2": True} if kind != "JPEG" else {}))]
    )
    stream = io.BytesIO()
    data.save_as(stream)
    assert_halves(decode(stream.getvalue(), (48, 64)), within=8)


@needs_dicom
def test_monochrome1_is_inverted():
    values = ramp(4095)
    for window in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        one, two = (
            decode(dicom(values, photometric=p, **window), values.shape)
            for p in ("MONOCHROME1", "MONOCHROME2")
        )
        assert np.abs(one.astype(int) + two - 255).max() <= 1 and one[0, 0, 0] == 255


@needs_dicom
def test_dicom_in_color_of_8_bits_or_compressed_is_read():
    from pydicom.uid import RLELossless

    colors = np.asarray(halves())
    for options in ({}, {"syntax": RLELossless}):
        assert_halves(decode(dicom(colors, bits=8, photometric="RGB", **options), (48, 64)), within=0)
    grey = ramp(255, "uint8")
    assert (decode(dicom(grey, bits=8), grey.shape)[..., 0] == grey).all()
    deep = ramp(4095)
    assert (decode(dicom(deep, syntax=RLELossless), deep.shape) == decode(dicom(deep), deep.shape)).all()


@needs_dicom
def test_the_middle_frame_is_read_and_reported():
    frames = np.stack([ramp(1000) * 0 + value for value in (10, 2000, 20)])
    frames[:, 0, 0] = 0
    decoded = inspect_image(dicom(frames), (32, 48))
    assert decoded.more_pages and decoded.high == 2000


@needs_dicom
def test_dicom_that_cannot_be_shown_is_explained():
    from pydicom.uid import JPEGLosslessSV1

    content = dicom(ramp(4095))
    without = dicom(ramp(4095))
    import pydicom

    data = pydicom.dcmread(io.BytesIO(without))
    del data.PixelData
    stream = io.BytesIO()
    data.save_as(stream)
    assert check(stream.getvalue()).problem == "a DICOM file without an image"
    lossless = pydicom.dcmread(io.BytesIO(content))
    lossless.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    lossless.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc3" + bytes(20)])
    stream = io.BytesIO()
    lossless.save_as(stream)
    problem = check(stream.getvalue()).problem
    assert "the file is damaged, or pydicom needs another decoder (pip install python-gdcm)" in problem
    assert "deflated DICOM" in check(dicom(ramp(4095), deflated=True)).problem


@needs_dicom
def test_large_dicom_is_refused_before_it_is_unpacked():
    content = bytearray(dicom(ramp(4095)))
    at = content.index(b"\x28\0\x10\0US\2\0") + 8  # Rows, and Columns after it
    content[at : at + 2] = content[at + 10 : at + 12] = b"\xff\xff"
    assert check(bytes(content)).problem == "65535x65535 is more than 180,000,000 pixels"


@needs_dicom
def test_patients_of_dicom_files_are_groups(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for i in range(12):
            path = tmp_path / label / f"IM{i}"  # without an extension
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(
                dicom(rng.integers(0, 4096, (32, 48)).astype("uint16"), PatientID=f"{label}{i // 3}")
            )
    data = load_data(tmp_path)
    assert data.report.formats == {"DICOM": 24} and data.report.groups == 8
    assert "PatientID" in data.report.to_text()
    used = [set(part.groups) for part in data.splits.values()]
    assert len(set.union(*used)) == sum(map(len, used)) == 8


@needs_dicom
def test_one_id_for_all_patients_makes_no_groups(tmp_path):
    for label, start in (("a", 0), ("b", 1000)):
        for i in range(4):
            path = tmp_path / label / f"{i}.dcm"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(dicom(ramp(4095 - 100 * i, low=start), PatientID="ANONYMOUS"))
    assert load_data(tmp_path).report.groups == 0


# Without the extra


@pytest.mark.parametrize(("package", "name", "head"), [
    ("pillow_heif", "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    ("pydicom", "a.dcm", bytes(128) + b"DICM"),
])  # fmt: skip
def test_files_that_need_the_extra_say_so(package, name, head, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda wanted: None if wanted == package else find_spec(wanted))
    for label in ("a", "b"):
        for i in range(4):
            path = tmp_path / label / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.effect_noise((64, 48), 50 + i).save(path)
    (tmp_path / "a" / name).write_bytes(head + bytes(200))
    report = load_data(tmp_path).report
    [(skipped, why)] = report.skipped
    wanted = {
        "pillow_heif": "HEIC needs the package pillow-heif",
        "pydicom": "DICOM needs the package pydicom",
    }
    assert skipped == f"a/{name}" and why == f'{wanted[package]}: pip install "transfer-cases[formats]"'
    assert f"Skipped 1 image: {why}." in report.to_text()


def test_an_older_pillow_without_avif_says_so(monkeypatch):
    monkeypatch.setattr(formats, "pillow_formats", lambda kind="": ("PNG",))
    assert check(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1").problem.startswith("AVIF needs Pillow 11.3 or newer")


@pytest.mark.parametrize(("head", "kind"), [
    (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
    (b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1miaf", "AVIF"),
    (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
    (b"\0\0\0\x1cftypcrx \0\0\0\1crx isom", "camera raw"),
    (b"\0\0\0\x1cftypmp42\0\0\0\0mp42isom", ""),
    (b"BM is how a bitmap begins", ""),
    (b"P1 in the list", ""),
    (b"MM+\0", ""),
    (b"MM\0+\0\x08\0\0", "TIFF"),
])  # fmt: skip
def test_the_first_bytes_decide_the_format(head, kind):
    assert kind_of(head) == kind


# Hostile files


def several_formats() -> dict[str, bytes]:
    values = ramp(60_000)
    made = {
        "TIFF": encode(halves(), "TIFF"), "LZW TIFF": encode(halves(), "TIFF", compression="tiff_lzw"),
        "16-bit TIFF": encode(values, "TIFF"), "JPEG 2000": encode(halves(), "JPEG2000"),
        "PPM": encode(halves(), "PPM"),
    }  # fmt: skip
    if "AVIF" in formats.pillow_formats():
        made["AVIF"] = encode(halves(), "AVIF")
    if importlib.util.find_spec("pillow_heif"):
        made["HEIC"] = heic(halves())
    if importlib.util.find_spec("pydicom"):
        made["DICOM"] = dicom(values, bits=16)
    return made


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", several_formats())
def test_truncated_and_damaged_files_are_read_or_refused(kind):
    content, rng = several_formats()[kind], np.random.default_rng(0)
    whole = decode(content, (48, 64))
    assert not check(content).problem
    refused = 0
    for length in np.linspace(0, len(content) - 200, 40).astype(int):
        found = check(content[:length])
        refused += bool(found.problem)
        if not found.problem and kind != "HEIC":
            assert (decode(content[:length], (48, 64)) == whole).all(), length
    assert refused >= 35
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 4):
            damaged[place] = rng.integers(256)
        found = check(bytes(damaged))
        assert bool(found.problem) != bool(found.digest)


def test_pages_of_a_tiff_file_are_reported_but_not_counted():
    """A file with a million pages would take minutes to walk through."""
    pages = [halves(size=(64, 48 + i)) for i in range(3)]
    assert check(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])).more_pages
    one = encode(Image.new("L", (4, 4)), "TIFF")
    start = struct.unpack("<I", one[4:8])[0]
    entries = struct.unpack("<H", one[start : start + 2])[0]
    directory = one[start : start + 2 + 12 * entries]
    content = bytearray(one[: start + len(directory)])
    for _ in range(200_000):  # each page uses the pixels of the first
        place = len(content) + 4
        content += struct.pack("<I", place) + directory
    content += bytes(4)
    reads = 0

    class Stream(io.BytesIO):
        def read(self, size=-1):
            nonlocal reads
            reads += 1
            return super().read(size)

    original = decoding._source
    decoding._source = lambda image: Stream(image)
    try:
        found = inspect_image(bytes(content), (4, 4))
    finally:
        decoding._source = original
    assert found.more_pages and reads < 1000


def test_bombs_of_new_formats_are_refused_by_their_size():
    width = height = 40_000
    jp2 = bytearray(encode(halves(), "JPEG2000", no_jp2=True))
    jp2[8:16] = struct.pack(">II", width, height)
    ppm = b"P5 40000 40000 255 " + bytes(99)
    tiff = bytearray(encode(Image.new("L", (64, 48)), "TIFF"))
    start = struct.unpack("<I", tiff[4:8])[0]
    for i in range(struct.unpack("<H", tiff[start : start + 2])[0]):
        at = start + 2 + 12 * i
        if struct.unpack("<H", tiff[at : at + 2])[0] in (256, 257):
            tiff[at + 2 : at + 12] = struct.pack("<HII", 4, 1, width)
    for content in (bytes(jp2), ppm, bytes(tiff)):
        assert "180,000,000 pixels" in check(content).problem


def test_previews_in_camera_raw_files_are_not_read():
    for tags in ({254: 1}, {50706: b"\1\4\0\0"}):
        content = encode(halves(), "TIFF", tiffinfo=tags)
        assert check(content).problem == "camera raw is not supported: save it as JPEG or PNG"


# Color profiles


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("space", ["Adobe RGB", "Display P3"])
def test_wide_gamut_images_are_converted_to_srgb(kind, space):
    """The same color has other numbers in a wide gamut: (128, 77, 77) in sRGB is less red in Adobe RGB."""
    profile = matrix_profile(space)
    wide = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    to_wide = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), wide, "RGB", "RGB")
    original = Image.new("RGB", (64, 48), (180, 70, 60))
    stored = ImageCms.applyTransform(original, to_wide)
    assert np.abs(np.asarray(stored).astype(int) - original).max() > 10
    options = (
        {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    )
    content = encode(stored, kind, icc_profile=profile, **options)
    assert np.abs(decode(content, (48, 64)).astype(int) - (180, 70, 60)).max() <= 3
    transparent = stored.convert("RGBA")
    if kind in ("PNG", "WEBP"):
        content = encode(transparent, kind, icc_profile=profile, **options)
        assert np.abs(decode(content, (48, 64)).astype(int) - (180, 70, 60)).max() <= 3


def test_gray_and_cmyk_profiles_are_applied_only_to_their_modes():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    adobe = matrix_profile("Adobe RGB")
    assert (decode(encode(halves(), "PNG", icc_profile=srgb), (48, 64)) == np.asarray(halves())).all()
    for mode in ("L", "CMYK"):
        plain, tagged = (
            decode(encode(halves(mode), "TIFF", **o), (48, 64)) for o in ({}, {"icc_profile": adobe})
        )
        assert (plain == tagged).all()
    gamma = matrix_profile("grey", gamma=1.0)
    dark = decode(encode(Image.new("L", (64, 48), 55), "PNG", icc_profile=gamma), (48, 64))
    assert abs(int(dark[0, 0, 0]) - 128) <= 2  # linear 55 of 255 is 128 in sRGB


@pytest.mark.parametrize("profile", [b"", b"x", b"\0" * 128, matrix_profile("Adobe RGB")[:200]])
def test_broken_profiles_are_ignored(profile):
    assert (decode(encode(halves(), "PNG", icc_profile=profile), (48, 64)) == np.asarray(halves())).all()
