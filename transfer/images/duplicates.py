"""Which images are the same: copies byte for byte, and the same image saved another way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_BITS = 24
"""Of 256, in which the perceptual hashes of the same image may differ. Of photos saved again as JPEG or WebP, at half
or a quarter of the size, grey, brighter or more contrast, 99.7 to 100 of 100 were within it, and no two different ones
of the same data (`tests/benchmarks/check.py likeness`). Images cropped, turned or mirrored are not found."""

BITS = 256
_BAND = np.uint16  # 16 bands of 16 bits: up to 15 bits apart, two hashes share a band for certain
_REACH = 256  # neighbours in a band that are compared at most, so that the time grows with the images alone


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Describe what an image looks like, so that the same image saved another way gives nearly the
    same."""
    import imagehash
    from PIL import Image

    if pixels.std(axis=(0, 1)).max() < 2:
        return b""
    return np.packbits(imagehash.phash(Image.fromarray(pixels), hash_size=16).hash).tobytes()


def find_duplicates(digests: Sequence[str], hashes: Sequence[bytes]) -> np.ndarray:
    """Number the images so that those that show the same have the same number."""
    first: dict[str, int] = {}
    copies = [(i, first.setdefault(digest, i)) for i, digest in enumerate(digests)]
    pairs = np.array(copies, "int64").reshape(-1, 2)
    return join(len(digests), np.concatenate([pairs, near_pairs(hashes)]))


def join(count: int, pairs: np.ndarray) -> np.ndarray:
    """Number things so that those that pairs connect, over however many steps, have the same number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not count:
        return np.zeros(0, "int64")
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    found = connected_components(links, directed=False)[1]
    _, where, numbers = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(where))[numbers].astype("int64")


def near_pairs(hashes: Sequence[bytes], *, most: int = MOST_BITS) -> np.ndarray:
    """Find the pairs of hashes that differ in few bits."""
    here = np.array([i for i, h in enumerate(hashes) if h], "int64")
    if len(here) < 2:
        return np.zeros((0, 2), "int64")
    bits = np.frombuffer(b"".join(hashes[i] for i in here), "uint8").reshape(len(here), -1)
    order = np.lexsort(bits.T[::-1])
    equal = (bits[order[1:]] == bits[order[:-1]]).all(axis=1)
    found = [np.stack([order[:-1][equal], order[1:][equal]], axis=1)]
    different = order[np.concatenate([[True], ~equal])]  # one of each, so that copies do not crowd the bands
    words = bits.view("uint64")
    # Each band takes bits from all over the hash, since neighbouring frequencies are alike.
    mixed = np.unpackbits(bits, axis=1).reshape(len(bits), -1, BITS // 16).transpose(0, 2, 1)
    bands = np.packbits(mixed.reshape(len(bits), -1), axis=1).view(_BAND)
    for band in bands[different].T:
        found.append(_near_within(different[np.argsort(band, kind="stable")], np.sort(band), words, most))
    pairs = np.unique(np.sort(here[np.concatenate(found)], axis=1), axis=0)
    return pairs


def _near_within(members: np.ndarray, band: np.ndarray, words: np.ndarray, most: int) -> np.ndarray:
    """Compare each member with those after it that have the same band."""
    found = []
    alive = np.arange(len(members))
    for shift in range(1, _REACH + 1):
        alive = alive[alive + shift < len(members)]
        alive = alive[band[alive] == band[alive + shift]]
        if not len(alive):
            break
        pairs = np.stack([members[alive], members[alive + shift]], axis=1)
        apart = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1)
        found.append(pairs[apart <= most])
    return np.concatenate(found) if found else np.zeros((0, 2), "int64")
