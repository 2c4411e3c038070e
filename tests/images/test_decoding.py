"""Decoding: every supported image is read, and every broken file is reported."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from transfer.common.errors import InputError
from transfer.images import datasets, decoding  # noqa: F401  modules that could change Pillow's settings
from transfer.images.checking import CheckedImage, check, check_images
from transfer.images.decoding import BadImageError, decode, inspect_image, is_image, to_rgb_array

RED, GREEN, BLUE, WHITE = (220, 30, 40), (30, 200, 60), (20, 40, 210), (255, 255, 255)
FORMATS = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000"]


def encode(image, kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def plain(color=RED, mode="RGB", size=(24, 16)) -> Image.Image:
    return Image.new("RGB", size, color).convert(mode)


def textured(mode="RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype="uint8")
    return Image.fromarray(pixels).resize((120, 90)).convert(mode)


def corners() -> np.ndarray:
    """Return 16 x 24 pixels with a color in each quarter: all eight orientations differ."""
    image = np.zeros((16, 24, 3), "uint8")
    image[:8, :12], image[:8, 12:], image[8:, :12], image[8:, 12:] = RED, GREEN, BLUE, WHITE
    return image


def exif(**tags) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = tags.get("orientation", 1)
    made[0x011A] = made[0x011B] = 72.0  # dots per inch
    made[0x0128], made[0x0213] = 2, 1
    made[0x010E] = "a description"
    return made


def assert_all(pixels, color, within=0):
    assert np.abs(pixels.astype(int) - np.array(color)).max() <= within


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes_to_its_colors(kind):
    pixels = decode(encode(plain(), kind), (20, 30))
    assert pixels.shape == (20, 30, 3) and pixels.dtype == np.uint8
    assert_all(pixels, RED, within=6)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_the_format_is_recognized_by_content(kind, tmp_path):
    path = tmp_path / "Käse 図.jpg"
    path.write_bytes(encode(plain(GREEN), kind))
    assert_all(decode(path, (8, 8)), GREEN, within=6)
    assert_all(decode(str(path), (8, 8)), GREEN, within=6)


@pytest.mark.parametrize(("orientation", "stored"), [
    (1, lambda u: u),
    (2, lambda u: u[:, ::-1]),
    (3, lambda u: u[::-1, ::-1]),
    (4, lambda u: u[::-1]),
    (5, lambda u: u.swapaxes(0, 1)),
    (6, lambda u: u.swapaxes(0, 1)[::-1]),
    (7, lambda u: u.swapaxes(0, 1)[::-1, ::-1]),
    (8, lambda u: u.swapaxes(0, 1)[:, ::-1]),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation, stored, kind):
    """By the EXIF standard, the orientation says on which side of the scene row 0 and column 0 are."""
    lossless = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[kind]
    content = encode(
        np.ascontiguousarray(stored(corners())), kind, exif=exif(orientation=orientation), **lossless
    )
    assert_all(decode(content, (16, 24)), corners(), within=3)


def test_a_rotated_image_keeps_its_detail():
    """A JPEG may be decoded at a smaller scale; the scale must suit the upright image."""
    stripes = np.zeros((400, 1600, 3), "uint8")
    stripes[::4] = stripes[1::4] = 255
    content = encode(stripes, "JPEG", quality=100, exif=exif(orientation=6))
    assert decode(content, (50, 400)).std(axis=1).mean() > 90


def test_transparent_pixels_become_white():
    half = np.zeros((8, 8, 4), "uint8")
    half[:] = (*RED, 128)
    half[:4, :, 3] = 0
    pixels = decode(encode(half), (8, 8))
    assert_all(pixels[:4], WHITE)
    assert_all(pixels[4:], [c + (255 - c) * 127 // 255 for c in RED], within=1)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_entries_of_palettes_are_white(kind):
    indices = Image.fromarray(np.repeat([[0], [1]], 8, axis=1).astype("uint8").repeat(4, axis=0), "L")
    indices = indices.convert("P")
    indices.putpalette([*RED, *BLUE])
    pixels = decode(encode(indices, kind, transparency=1), (8, 8))
    assert_all(pixels[:4], RED)
    assert_all(pixels[4:], WHITE)


def test_transparency_survives_rotation():
    half = np.zeros((8, 8, 4), "uint8")
    half[:4] = (*RED, 255)
    assert_all(decode(encode(half, exif=exif(orientation=3)), (8, 8))[:4], WHITE)
    keyed = Image.fromarray(half[..., :3])  # one color, black, is declared transparent
    pixels = decode(encode(keyed, transparency=(0, 0, 0), exif=exif(orientation=3)), (8, 8))
    assert_all(pixels[:4], WHITE)
    assert_all(pixels[4:], RED)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
@pytest.mark.parametrize("white", [0, 1])
def test_grey_becomes_rgb(mode, white):
    content = encode(plain((255 * white,) * 3, mode))
    assert_all(decode(content, (4, 4)), (255 * white,) * 3)


def test_16_bit_grey_keeps_its_scale():
    values = np.arange(0, 256, 17, dtype="uint16").reshape(4, 4)
    grey = values.astype("uint8")[..., None].repeat(3, axis=-1)
    assert np.array_equal(decode(encode(values * 257), (4, 4)), grey)
    assert np.array_equal(decode(encode(values), (4, 4)), grey), "8 bits stored in 16"


def test_16_bit_grey_is_rounded():
    values = np.full((4, 4), 257 * 100 + 200, "uint16")
    assert_all(decode(encode(values), (4, 4)), (101,) * 3)


@pytest.mark.parametrize("color", [RED, GREEN, BLUE, WHITE, (0, 0, 0)])
def test_cmyk_is_not_inverted(color):
    assert_all(decode(encode(plain(color, "CMYK"), "JPEG", quality=95), (8, 8)), color, within=12)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_read(kind):
    content = encode(plain(RED), kind, save_all=True, append_images=[plain(BLUE), plain(GREEN)])
    assert_all(decode(content, (8, 8)), RED, within=6)


def test_the_first_image_of_an_mpo_file_is_read():
    content = encode(plain(RED), "MPO", save_all=True, append_images=[plain(BLUE)])
    assert_all(decode(content, (8, 8)), RED, within=6)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_images_with_damaged_exif_are_read():
    """Parsing damaged EXIF raises errors of many classes, struct.error among them."""
    whole = [encode(textured(), "JPEG", exif=exif(orientation=turn)) for turn in range(1, 9)]
    possible = {decode(content, (90, 120)).tobytes() for content in whole}
    content, rng = whole[2], np.random.default_rng(0)
    start, end = content.index(b"Exif") + 6, content.index(b"a description")
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(start, end, 3):
            damaged[place] = rng.integers(256)
        assert decode(bytes(damaged), (90, 120)).tobytes() in possible


BAD = {
    "empty": (b"", "empty"),
    "text": (b"404 Not Found", "not an image of a known format"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "broken at its beginning"),
    "Photoshop": (b"8BPS\0\1" + bytes(99), "Photoshop is not supported: save it as JPEG or PNG"),
    "EPS, for which Pillow would start a program": (encode(plain(), "EPS"), "not an image of a known format"),
}


@pytest.mark.parametrize(("content", "problem"), BAD.values(), ids=BAD)
def test_other_files_are_reported(content, problem):
    assert check(content) == CheckedImage(problem)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"lossless": True}], ids=str)
def test_truncated_files_are_reported_at_any_length(kind, options):
    content = encode(textured(), kind, **options)
    assert check(content).problem == ""
    for fraction in np.linspace(0.05, 0.95, 19):
        found = check(content[: int(len(content) * fraction)])
        assert found.problem and not found.digest, f"{fraction:.0%} of the file passed"


def test_pillow_does_not_accept_truncated_files():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "I;16"])
def test_damage_inside_a_png_is_reported(mode):
    image = textured() if mode != "I;16" else Image.fromarray(np.asarray(textured("L"), "uint16") * 257)
    content = bytearray(encode(image.convert(mode) if mode != "I;16" else image))
    content[content.index(b"IDAT") + 60] ^= 0xFF
    assert check(bytes(content)).problem


@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_never_raises(kind):
    content, rng = encode(textured("P" if kind == "GIF" else "RGB"), kind), np.random.default_rng(0)
    problems = 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 400), 5):
            damaged[place] = rng.integers(256)
        problems += bool(check(bytes(damaged)).problem)
    assert problems > 10


def test_missing_files_are_reported(tmp_path):
    assert check(str(tmp_path / "gone.png")).problem == "no such file or directory"
    with pytest.raises(InputError, match=r"Cannot read .*gone\.png: no such file.* Expected JPEG, PNG"):
        decode(tmp_path / "gone.png", (8, 8))


def test_errors_name_the_file_and_the_reason(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(textured(), "JPEG")[:-1000])
    with pytest.raises(InputError, match=r"Cannot read .*cut\.jpg: image file is truncated"):
        decode(path, (8, 8))
    with pytest.raises(InputError, match="Cannot read the image: not an image"):
        decode(b"text", (8, 8))


def huge_header() -> bytes:
    """Return a PNG of a few bytes whose header says 30000 x 30000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("limit", ["Pillow's", "lifted"])
def test_decompression_bombs_are_refused_without_using_memory(limit, monkeypatch):
    if limit == "lifted":  # as other libraries do
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = check(huge_header()).problem
    assert "180,000,000 pixels" in problem
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_files_are_checked_in_order_and_copies_have_equal_digests(tmp_path):
    for i, color in enumerate([RED, BLUE, RED]):
        (tmp_path / f"{i}.png").write_bytes(encode(plain(color)))
    (tmp_path / "3.png").write_bytes(b"")
    first, second, third, fourth = check_images([str(tmp_path / f"{i}.png") for i in range(4)])
    assert first.digest == third.digest != second.digest
    assert fourth.problem == "empty"


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_arrays_become_rgb(shape, dtype):
    pixels = to_rgb_array(np.full(shape, 99, dtype))
    assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8
    assert_all(pixels, (99,) * 3)


def test_arrays_are_rounded_clipped_and_stretched_like_files():
    assert to_rgb_array(np.array([[98.6, -3.0, 300.0]]))[0, :, 0].tolist() == [99, 0, 255]
    image = np.asarray(textured())
    assert np.array_equal(to_rgb_array(image, (33, 44)), decode(encode(image), (33, 44)))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_check_returns_the_properties_of_an_image(kind):
    found = check(encode(textured(), kind))
    assert (found.problem, found.format, found.width, found.height, found.rotated) == (
        "",
        "JPEG 2000" if kind == "JPEG2000" else kind,
        120,
        90,
        False,
    )
    assert len(found.digest) == 64 and len(found.hash) == 64
    assert found.mode == ("P" if kind == "GIF" else "RGB")


@pytest.mark.parametrize(("orientation", "size"), [(1, (120, 90)), (3, (120, 90)), (6, (90, 120))])
def test_sizes_are_those_of_the_upright_image(orientation, size):
    content = encode(textured(), "JPEG", exif=exif(orientation=orientation))
    found = check(content)
    assert (found.width, found.height) == size and found.rotated == (orientation > 1)
    assert inspect_image(content, (64, 64))[1:] == found[3:]


def test_the_mode_is_that_of_the_file():
    """It is, even if a JPEG is decoded at a smaller scale."""
    modes = {"L": "L", "CMYK": "CMYK", "RGB": "RGB"}
    assert {mode: check(encode(textured(mode).resize((900, 900)), "JPEG")).mode for mode in modes} == modes
    assert check(encode(plain(mode="RGBA"))).mode == "RGBA"


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 3)])
def test_arrays_are_checked(shape):
    found = check(np.arange(np.prod(shape), dtype="uint8").reshape(shape))
    assert found.format == "array" and (found.width, found.height) == (4, 6)
    assert found.mode == ("RGB" if shape[-1] == 3 else "L") and found.digest


def test_images_of_one_color_have_no_hash():
    assert check(encode(plain())).hash == b""


@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_recognized_by_their_first_bytes(kind):
    assert is_image(encode(plain(), kind)[:16])
    assert not is_image(b"BM text, not a bitmap") and not is_image(b"P1 in the list of patients")


def test_pad_adds_borders_and_crop_keeps_the_center():
    wide = np.full((10, 40, 3), 200, "uint8")
    wide[:, 15:25] = RED
    content = encode(wide)
    padded = inspect_image(content, (20, 20), resize="pad").pixels
    assert_all(padded[:7], 0)
    assert_all(padded[13:], 0)
    assert_all(padded[9:11, :6], 200, within=1)
    assert_all(inspect_image(content, (10, 10), resize="crop").pixels, RED, within=1)
    assert np.array_equal(to_rgb_array(wide, (20, 20), resize="pad"), padded)


def test_the_reason_does_not_contain_the_name(tmp_path):
    with pytest.raises(BadImageError, match=r"^no such file or directory$"):
        inspect_image(tmp_path / "gone.png", (8, 8))
