"""Duplicates: images saved in another form are found, different images are not."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from transfer.images.decoding import decode
from transfer.images.duplicates import (
    BITS,
    MAX_BITS,
    component_ids,
    find_duplicates,
    near_pairs,
    perceptual_hash,
)


def scene(seed=0, size=(240, 180)) -> Image.Image:
    """Smooth blobs of color, different for each seed, like the low frequencies of photos."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype="uint8")
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def saved(image, kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def hash_of(content: bytes) -> bytes:
    return perceptual_hash(decode(content, (64, 64)))


def distance(first: bytes, second: bytes) -> int:
    first, second = (np.frombuffer(x[: BITS // 8], "uint8") for x in (first, second))
    return int(np.unpackbits(first ^ second).sum())


def are_near(first: bytes, second: bytes) -> bool:
    return len(near_pairs([hash_of(first), hash_of(second)])) == 1


CHANGES = {
    "JPEG": lambda image: saved(image, "JPEG", quality=60),
    "smaller": lambda image: saved(image.resize((120, 90))),
    "larger": lambda image: saved(image.resize((500, 375)), "WEBP"),
    "grey": lambda image: saved(image.convert("L")),
    "brighter": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.15)),
    "more contrast": lambda image: saved(ImageEnhance.Contrast(image).enhance(1.2)),
    "faded": lambda image: saved(ImageEnhance.Color(image).enhance(0.5)),
    "warmer": lambda image: saved(Image.fromarray((np.asarray(image) * [1, 0.95, 0.9]).astype("uint8"))),
    "with EXIF": lambda image: saved(image, "JPEG", quality=95, comment=b"hello"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_an_image_saved_in_another_form_is_near(change, seed):
    assert distance(hash_of(saved(scene(seed))), hash_of(change(scene(seed)))) <= MAX_BITS
    assert are_near(saved(scene(seed)), change(scene(seed)))


EMOJI = Path(__file__).parents[2] / "data" / "emoji" / "face"


@pytest.mark.parametrize(
    "names", [("u1f620-angry", "u1f621-enraged"), ("u1f627-anguished", "u1f628-fearful")]
)
def test_faces_that_differ_in_color_only_are_two_images(names):
    first, second = ((EMOJI / f"{name}-face.png").read_bytes() for name in names)
    assert distance(hash_of(first), hash_of(second)) <= MAX_BITS, "the shapes agree"
    assert not are_near(first, second)


COLORS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60), "yellow": (240, 200, 30)}


def icon(color, background="white", *, filled=True) -> Image.Image:
    """One drawing, on a plain background."""
    image = Image.new("RGB", (160, 120), background)
    pen, points = ImageDraw.Draw(image), [(20, 100), (50, 20), (90, 90), (130, 30), (140, 100)]
    pen.polygon(points, fill=color) if filled else pen.line(points, fill=color, width=3)
    return image


@pytest.mark.parametrize("filled", [True, False], ids=["filled", "line"])
@pytest.mark.parametrize("background", ["white", "black", "gray"])
@pytest.mark.parametrize("pair", list(itertools.combinations(COLORS, 2)), ids="-".join)
def test_one_drawing_in_two_colors_is_two_images(pair, background, filled):
    first, second = (saved(icon(COLORS[color], background, filled=filled)) for color in pair)
    assert not are_near(first, second)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("color", ["red", "yellow"])
def test_a_drawing_saved_in_another_form_is_near(change, color):
    image = icon(COLORS[color], "gray")
    assert are_near(saved(image), change(image))


def test_many_copies_of_one_drawing_in_two_colors_are_two_images():
    """Their hashes are equal, and the colors of copies differ a little."""
    images = [icon(COLORS[color]) for color in ("red", "blue")] * 20
    hashes = [hash_of(saved(image, "JPEG", quality=60 + i)) for i, image in enumerate(images)]
    assert find_duplicates([str(i) for i in range(40)], hashes).tolist() == [0, 1] * 20


def test_a_mirrored_image_is_another_image():
    assert not are_near(saved(scene()), saved(ImageOps.mirror(scene())))


def test_different_images_are_far():
    hashes = [hash_of(saved(scene(seed))) for seed in range(40)]
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 2 * MAX_BITS


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 0, 0), (250, 249, 248)])
def test_images_of_a_single_color_match_nothing(color):
    pixels = np.full((64, 64, 3), color, "uint8")
    assert perceptual_hash(pixels) == b""
    assert find_duplicates(["a", "b"], [b"", b""]).tolist() == [0, 1]


GRAY = bytes([128] * 32)  # the colors of a gray image


def test_a_hash_has_256_bits_and_the_colors_of_16_cells():
    assert len(hash_of(saved(scene()))) == BITS // 8 + 16 * 2
    assert hash_of(saved(scene().convert("L")))[BITS // 8 :] == GRAY


def flipped(content: bytes, count: int, rng) -> bytes:
    bits = np.unpackbits(np.frombuffer(content, "uint8"))
    bits[rng.choice(BITS, count, replace=False)] ^= 1
    return np.packbits(bits).tobytes()


def random_hashes(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (count, BITS // 8), dtype="uint8")
    return [row.tobytes() + GRAY for row in rows], rng


def test_all_pairs_within_15_bits_and_none_above_the_limit_are_found():
    hashes, rng = random_hashes(300)
    near = [flipped(h, int(rng.integers(0, 16)), rng) for h in hashes]
    far = [flipped(h, int(rng.integers(MAX_BITS + 1, 60)), rng) for h in hashes]
    found = {tuple(pair) for pair in near_pairs([*hashes, *near, *far]).tolist()}
    assert {(i, 300 + i) for i in range(300)} <= found
    assert not {(i, 600 + i) for i in range(300)} & found


def test_most_pairs_up_to_the_limit_are_found():
    hashes, rng = random_hashes(1000)
    near = [flipped(h, MAX_BITS, rng) for h in hashes]
    found = {tuple(pair) for pair in near_pairs([*hashes, *near]).tolist()}
    assert sum((i, 1000 + i) in found for i in range(1000)) > 950


def test_pairs_equal_those_of_brute_force():
    """The hashes lie close to each other."""
    base, rng = random_hashes(10)
    hashes = [flipped(base[i % 10], int(rng.integers(0, 14)), rng) for i in range(80)]
    close = {(i, j) for j in range(80) for i in range(j) if distance(hashes[i], hashes[j]) <= 15}
    far = {(i, j) for j in range(80) for i in range(j) if distance(hashes[i], hashes[j]) > MAX_BITS}
    found = {tuple(pair) for pair in near_pairs(hashes).tolist()}
    assert close <= found and not far & found


def test_equal_hashes_take_linear_time():
    pairs = near_pairs([bytes(64)] * 100_000)
    assert len(pairs) == 99_999, "a chain, not every pair"
    assert (component_ids(100_000, pairs) == 0).all()


@pytest.mark.parametrize("hashes", [[], [b""], [bytes(64)], [b"", b"", bytes(64)]], ids=str)
def test_too_few_hashes_have_no_pairs(hashes):
    assert near_pairs(hashes).shape == (0, 2)


def test_duplicates_are_linked_over_several_steps():
    hashes, rng = random_hashes(3)
    near = flipped(hashes[0], 5, rng)
    digests = ["a", "b", "c", "b", "d"]
    perceptual = [hashes[0], near, hashes[1], b"", hashes[2]]
    assert find_duplicates(digests, perceptual).tolist() == [0, 0, 1, 0, 2]


def test_no_images_have_no_ids():
    assert find_duplicates([], []).tolist() == []
    assert component_ids(0, np.zeros((0, 2), "int64")).tolist() == []
    assert component_ids(3, np.zeros((0, 2), "int64")).tolist() == [0, 1, 2]
