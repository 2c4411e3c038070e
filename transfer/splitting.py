"""The one place that splits: seeded, stratified, duplicates kept together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from transfer.errors import InputError
from transfer.pictures import decode, to_rgb_array

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Some pictures with their labels, not decoded yet unless they came as an array.

    Attributes:
        pictures: paths, encoded pictures as bytes, or an array of shape (N, H, W[, C]), 0 to 255.
        labels: int64 array of shape (N,), positions in the class names.
        names: what to call each picture: paths relative to the data folder, or numbers.
    """

    pictures: Sequence[Any] | np.ndarray
    labels: np.ndarray
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Sequence[int] | np.ndarray) -> Split:
        """Give the pictures at `positions`, in that order, as a new split."""
        picked = [int(p) for p in positions]
        pictures = (
            self.pictures[picked]
            if isinstance(self.pictures, np.ndarray)
            else [self.pictures[p] for p in picked]
        )
        return Split(pictures, self.labels[picked], [self.names[p] for p in picked])

    def picture(self, position: int, size: tuple[int, int]) -> np.ndarray:
        """Decode one picture: uint8 of shape (height, width, 3)."""
        item = self.pictures[position]
        return to_rgb_array(item, size) if isinstance(item, np.ndarray) else decode(item, size)


def complete_splits(
    parts: Mapping[str, Split],
    digests: Mapping[str, Sequence[str]],
    class_names: Sequence[str],
    *,
    seed: int,
    val: float,
    test: float,
) -> dict[str, Split]:
    """Draw the splits that the source does not have from its training part.

    Args:
        parts: what the source has: `"train"` and perhaps `"val"` and `"test"`. A `"val"` without a `"test"`
            becomes the test set.
        digests: per split, of each picture's content.
        class_names: in the order of the labels.
        seed: of the draw.
        val: share of the training pictures for validation, 0 to 1, where there is none.
        test: the same for the test set.

    Returns:
        `"train"`, `"val"` and `"test"`.

    Raises:
        InputError: nothing could be drawn, since the pictures are too few or all copies of each other.

    Example:
        >>> pictures = np.arange(20 * 64, dtype="uint8").reshape(20, 8, 8)
        >>> names = [str(i) for i in range(20)]
        >>> parts = {"train": Split(pictures, np.repeat([0, 1], 10), names)}
        >>> done = complete_splits(parts, {"train": names}, ["a", "b"], seed=0, val=0.1, test=0.2)
        >>> {name: len(part) for name, part in done.items()}
        {'train': 14, 'val': 2, 'test': 4}
    """
    if "val" in parts and "test" not in parts:
        log.info("There is no test split: val is the test set, and validation is drawn from train.")
        parts = {"train": parts["train"], "test": parts["val"]}
        digests = {"train": digests["train"], "test": digests["val"]}
    _warn_of_copies(digests)
    shares = {name: share for name, share in (("val", val), ("test", test)) if name not in parts}
    train = parts["train"]
    drawn = stratified_split(train.labels, digests["train"], train.names, shares, seed=seed)
    done = {**parts, **{name: train.take(positions) for name, positions in drawn.items()}}
    if any(shares.values()) and not len(done["val"]) and not len(done["test"]):
        raise InputError(
            "Expected a class with at least 2 different pictures, to measure on those not trained on. Received: "
            f"{len(train)} pictures of {len(np.unique(train.labels))} classes, "
            f"{len(set(digests['train']))} of them different. Add pictures, or ask for val=0 and test=0."
        )
    if shares.get("test"):
        unseen = sorted(set(train.labels.tolist()) - set(done["test"].labels.tolist()))
        if unseen:
            listed = ", ".join(class_names[i] for i in unseen)
            log.warning("No test pictures of %s: too few different ones to spare any.", listed)
    return {name: done[name] for name in ("train", "val", "test")}


def _warn_of_copies(digests: Mapping[str, Sequence[str]]) -> None:
    """Splits that the source has are kept as they are, but nobody should trust figures from leaky ones."""
    given = [name for name in ("train", "val", "test") if name in digests]
    for first, second in combinations(given, 2):
        known = set(digests[first])
        count = sum(digest in known for digest in digests[second])
        if count:
            log.warning(
                "%d of the %d pictures in %s are exact copies of pictures in %s: figures measured on them flatter.",
                count,
                len(digests[second]),
                second,
                first,
            )


def stratified_split(
    labels: np.ndarray,
    digests: Sequence[str],
    names: Sequence[str],
    shares: dict[str, float],
    *,
    seed: int,
) -> dict[str, list[int]]:
    """Draw disjoint splits, the same share from every class, exact duplicates on one side.

    Args:
        labels: the class of each picture.
        digests: of each picture's content; pictures with the same one are never separated, and count as
            one. Those that are in several classes contradict themselves: they stay in `"train"`.
        names: of each picture; the draw depends on them and the seed, not on the order given.
        shares: name of each split to draw and its share of each class, 0 to 1.
        seed: of the draw.

    Returns:
        Positions per split of `shares`, and the rest as `"train"`, each in ascending order. Every class
        keeps at least one picture to train on. Of two different pictures, one is in the split named last in
        `shares`; a class with more different pictures than there are splits is in all of them.

    Example:
        >>> labels = np.repeat([0, 1], 10)
        >>> names = [f"{i}.png" for i in range(20)]
        >>> parts = stratified_split(labels, names, names, {"test": 0.2}, seed=0)
        >>> len(parts["train"]), len(parts["test"])
        (16, 4)
    """
    order = sorted(range(len(labels)), key=lambda i: names[i])
    groups: dict[str, list[int]] = {}
    for i in order:
        groups.setdefault(digests[i], []).append(i)
    drawn: dict[str, list[int]] = {name: [] for name in (*shares, "train")}
    of_class: dict[int, list[list[int]]] = {}
    for group in groups.values():
        classes = {int(labels[i]) for i in group}
        if len(classes) > 1:
            drawn["train"] += group
        else:
            of_class.setdefault(classes.pop(), []).append(group)
    if drawn["train"]:
        log.warning("%d pictures have exact copies in another class: kept to train.", len(drawn["train"]))
    for label in sorted(of_class):
        members = of_class[label]
        shuffled = [members[i] for i in np.random.default_rng([seed, label]).permutation(len(members))]
        start = 0
        for name, count in _counts(len(members), shares).items():
            for group in shuffled[start : start + count]:
                drawn[name] += group
            start += count
        for group in shuffled[start:]:
            drawn["train"] += group
    return {name: sorted(positions) for name, positions in drawn.items()}


def _counts(size: int, shares: dict[str, float]) -> dict[str, int]:
    """How many of a class of `size` each split gets, the last-named splits first where they are few."""
    counts = {}
    wanting = [(name, share) for name, share in reversed(shares.items()) if share > 0]
    left = size - 1  # one stays to train on
    for others, (name, share) in zip(reversed(range(len(wanting))), wanting, strict=True):
        spare = max(left - others, min(left, 1))  # one for each of the others, where there are enough
        counts[name] = min(max(1, round(size * share)), spare)
        left -= counts[name]
    return counts
