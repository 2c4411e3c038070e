"""Duplicates: images saved in another form are found, different images are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

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
    return int(np.unpackbits(np.frombuffer(first, "uint8") ^ np.frombuffer(second, "uint8")).sum())


CHANGES = {
    "JPEG": lambda image: saved(image, "JPEG", quality=60),
    "smaller": lambda image: saved(image.resize((120, 90))),
    "larger": lambda image: saved(image.resize((500, 375)), "WEBP"),
    "grey": lambda image: saved(image.convert("L")),
    "brighter": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.15)),
    "more contrast": lambda image: saved(ImageEnhance.Contrast(image).enhance(1.2)),
    "with EXIF": lambda image: saved(image, "JPEG", quality=95, comment=b"hello"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_an_image_saved_in_another_form_is_near(change, seed):
    assert distance(hash_of(saved(scene(seed))), hash_of(change(scene(seed)))) <= MAX_BITS


def test_different_images_are_far():
    hashes = [hash_of(saved(scene(seed))) for seed in range(40)]
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 2 * MAX_BITS


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 0, 0), (250, 249, 248)])
def test_images_of_a_single_color_match_nothing(color):
    pixels = np.full((64, 64, 3), color, "uint8")
    assert perceptual_hash(pixels) == b""
    assert find_duplicates(["a", "b"], [b"", b""]).tolist() == [0, 1]


def test_a_hash_has_256_bits():
    assert len(hash_of(saved(scene()))) * 8 == BITS


def flipped(content: bytes, count: int, rng) -> bytes:
    bits = np.unpackbits(np.frombuffer(content, "uint8"))
    bits[rng.choice(BITS, count, replace=False)] ^= 1
    return np.packbits(bits).tobytes()


def random_hashes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [row.tobytes() for row in rng.integers(0, 256, (count, BITS // 8), dtype="uint8")], rng


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
    pairs = near_pairs([bytes(32)] * 100_000)
    assert len(pairs) == 99_999, "a chain, not every pair"
    assert (component_ids(100_000, pairs) == 0).all()


@pytest.mark.parametrize("hashes", [[], [b""], [bytes(32)], [b"", b"", bytes(32)]], ids=str)
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
