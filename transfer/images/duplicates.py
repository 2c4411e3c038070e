"""Find duplicates: exact copies, and the same image saved in another form (near-duplicates)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MAX_BITS = 24
"""Largest number of different bits, of 256, between the hashes of near-duplicates, whose colors must also agree. With
both, 99% to 100% of photos are found that were saved again as JPEG or WebP, smaller, in grayscale, brighter or with
more contrast, and two images of one drawing in different colors are not (`tests/benchmarks/near_duplicates.py`)."""

BITS = 256
_BAND = np.uint16  # 16 bands of 16 bits: two hashes that differ in at most 15 bits always share a band
_REACH = 256  # maximum number of neighbors per band to compare each hash with; keeps the time linear
_CELLS = 4  # the colors are those of 4 x 4 cells
_FAINT = 2.0  # noise of JPEG in gray areas, in steps of 8-bit chroma

# Limits of `_same_colors`, in steps of 8-bit chroma. Saving again, brightness, contrast, saturation and white balance
# change colors by up to 18 and keep a cosine of 0.68; the angry and the enraged face of the emoji differ by 28.
_MAX_COLOR_ERROR = 22.0
_MIN_CONTRAST = 5.0
_MIN_COSINE = 0.65


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Return ImageHash's `phash` of a 64 x 64 image and its colors, 32 bytes each; empty if it has a single color."""
    import imagehash
    from PIL import Image

    # The hash holds the signs of the lowest 16 x 16 frequencies around their median, which are noise for one color:
    # www.hackerfactor.com/blog/?/archives/432-Looks-Like-It.html
    if _spread(pixels) < 2:
        return b""
    image = Image.fromarray(pixels)
    return np.packbits(imagehash.phash(image, hash_size=16).hash).tobytes() + _colors(image).tobytes()


def _spread(pixels: np.ndarray) -> float:
    """Return the largest standard deviation of a channel, faster than `pixels.std(axis=(0, 1))`."""
    values = pixels.reshape(-1, 3).astype("float64")
    mean, square = values.sum(axis=0) / len(values), np.einsum("ij,ij->j", values, values) / len(values)
    return float(np.sqrt(np.maximum(square - mean**2, 0).max()))


def _colors(image: Image.Image) -> np.ndarray:
    """Return the chroma (Cb and Cr, 128 is gray) of each cell; the hash is of the gray image."""
    chroma = np.asarray(image.reduce(image.width // (4 * _CELLS)).convert("YCbCr"))[..., 1:]
    cells = chroma.astype("float32").reshape(_CELLS, 4, _CELLS, 4, 2) - 128
    # Weighted by their strength, so that a thin colored line counts on a white background.
    weights = np.abs(cells).sum(axis=-1, keepdims=True)
    means = (cells * weights).sum(axis=(1, 3)) / (weights.sum(axis=(1, 3)) + 16 * _FAINT)
    return (np.rint(means) + 128).astype("uint8")


def find_duplicates(digests: Sequence[str], hashes: Sequence[bytes]) -> np.ndarray:
    """Return an id per image, equal for duplicates; empty hashes match nothing."""
    first: dict[str, int] = {}
    copies = [(i, first.setdefault(digest, i)) for i, digest in enumerate(digests)]
    pairs = np.array(copies, "int64").reshape(-1, 2)
    return component_ids(len(digests), np.concatenate([pairs, near_pairs(hashes)]))


def component_ids(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return the connected component of each node, numbered in order of appearance; pairs are edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not count:
        return np.zeros(0, "int64")
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    components = connected_components(graph, directed=False)[1]
    _, first, ids = np.unique(components, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[ids].astype("int64")


def near_pairs(hashes: Sequence[bytes], *, most: int = MAX_BITS) -> np.ndarray:
    """Return positions, shape (M, 2), of hashes that differ in at most `most` bits and agree in their colors."""
    positions = np.array([i for i, h in enumerate(hashes) if h], "int64")
    if len(positions) < 2:
        return np.zeros((0, 2), "int64")
    rows = np.frombuffer(b"".join(hashes[i] for i in positions), "uint8").reshape(len(positions), -1)
    bits, colors = np.ascontiguousarray(rows[:, : BITS // 8]), rows[:, BITS // 8 :]
    words = bits.view("uint64")
    order = np.lexsort(rows.view("uint64").T[::-1])
    before, after = order[:-1], order[1:]
    equal = (words[after] == words[before]).all(axis=1)
    equal[equal] = _same_colors(colors[before[equal]], colors[after[equal]])
    pairs = [np.stack([before[equal], after[equal]], axis=1)]
    unique = order[np.concatenate([[True], ~equal])]  # equal hashes would fill the neighborhoods in each band
    # Each band takes bits from the whole hash, because neighboring frequencies are correlated.
    mixed = np.unpackbits(bits, axis=1).reshape(len(bits), -1, BITS // 16).transpose(0, 2, 1)
    bands = np.packbits(mixed.reshape(len(bits), -1), axis=1).view(_BAND)
    for band in bands[unique].T:
        near = _near_within(unique[np.argsort(band, kind="stable")], np.sort(band), words, most)
        pairs.append(near[_same_colors(colors[near[:, 0]], colors[near[:, 1]])])
    return np.unique(np.sort(positions[np.concatenate(pairs)], axis=1), axis=0)


def _same_colors(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return for each pair of chroma rows whether they can be of one image; gray agrees with every color."""
    a, b = (x.astype("float32").reshape(len(x), _CELLS**2, 2) - 128 for x in (first, second))
    strength, cosine = _compare(a, b)
    # The part of the weaker colors that no other saturation of the stronger colors explains.
    same = strength * np.sqrt(1 - np.clip(cosine, 0, 1) ** 2) <= _MAX_COLOR_ERROR
    # Small colored parts, without the tint that another white balance adds everywhere.
    strength, cosine = _compare(a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True))
    return same & ((strength <= _MIN_CONTRAST) | (cosine >= _MIN_COSINE))


def _compare(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the root mean square of the weaker colors, and the cosine between both, by pair."""
    of_a, of_b, of_both = ((x * y).sum(axis=(1, 2)) / _CELLS**2 for x, y in ((a, a), (b, b), (a, b)))
    return np.sqrt(np.minimum(of_a, of_b)), of_both / np.maximum(np.sqrt(of_a * of_b), 1e-9)


def _near_within(members: np.ndarray, band: np.ndarray, words: np.ndarray, most: int) -> np.ndarray:
    """Compare each member with the members after it that share its band."""
    found = [np.zeros((0, 2), "int64")]
    first = np.arange(len(members))
    for shift in range(1, _REACH + 1):
        first = first[first + shift < len(members)]
        first = first[band[first] == band[first + shift]]
        if not len(first):
            break
        pairs = np.stack([members[first], members[first + shift]], axis=1)
        distance = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1)
        found.append(pairs[distance <= most])
    return np.concatenate(found)
