"""Find duplicates: exact copies, and the same image saved in another form (near-duplicates)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_BITS = 24
"""Largest number of different bits, of 256, between the hashes of near-duplicates. It finds 99.7% to 100% of photos
that were saved again as JPEG or WebP, smaller, in grayscale, brighter or with more contrast. No two different photos
counted as duplicates (`tests/benchmarks/check.py likeness`). It does not find cropped, rotated or mirrored images."""

BITS = 256
_BAND = np.uint16  # 16 bands of 16 bits: two hashes that differ in at most 15 bits always share a band
_REACH = 256  # maximum number of neighbors per band to compare each hash with; keeps the time linear


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Return ImageHash's `phash` of a 64 x 64 image in 32 bytes; empty if the image has a single color."""
    import imagehash
    from PIL import Image

    # The hash holds the signs of the lowest 16 x 16 frequencies around their median, which are noise for one color:
    # www.hackerfactor.com/blog/?/archives/432-Looks-Like-It.html
    if pixels.std(axis=(0, 1)).max() < 2:
        return b""
    return np.packbits(imagehash.phash(Image.fromarray(pixels), hash_size=16).hash).tobytes()


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
    """Return positions, shape (M, 2), of hashes that differ in at most `most` bits."""
    positions = np.array([i for i, h in enumerate(hashes) if h], "int64")
    if len(positions) < 2:
        return np.zeros((0, 2), "int64")
    bits = np.frombuffer(b"".join(hashes[i] for i in positions), "uint8").reshape(len(positions), -1)
    order = np.lexsort(bits.T[::-1])
    equal = (bits[order[1:]] == bits[order[:-1]]).all(axis=1)
    pairs = [np.stack([order[:-1][equal], order[1:][equal]], axis=1)]
    unique = order[np.concatenate([[True], ~equal])]  # equal hashes would fill the neighborhoods in each band
    words = bits.view("uint64")
    # Each band takes bits from the whole hash, because neighboring frequencies are correlated.
    mixed = np.unpackbits(bits, axis=1).reshape(len(bits), -1, BITS // 16).transpose(0, 2, 1)
    bands = np.packbits(mixed.reshape(len(bits), -1), axis=1).view(_BAND)
    for band in bands[unique].T:
        pairs.append(_near_within(unique[np.argsort(band, kind="stable")], np.sort(band), words, most))
    return np.unique(np.sort(positions[np.concatenate(pairs)], axis=1), axis=0)


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
