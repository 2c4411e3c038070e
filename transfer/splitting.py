"""The one place that splits: seeded, stratified, duplicates kept together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def stratified_split(
    labels: np.ndarray,
    digests: Sequence[str],
    names: Sequence[str],
    shares: Mapping[str, float],
    *,
    seed: int,
) -> dict[str, list[int]]:
    """Draw disjoint splits, the same share from every class, exact duplicates on one side.

    Args:
        labels: the class of each picture.
        digests: of each picture's content; pictures with the same one are never separated.
        names: of each picture; the draw depends on them and the seed, not on the order given.
        shares: name of each split to draw and its share of each class, 0 to 1.
        seed: of the draw.

    Returns:
        Positions per split of `shares`, and the rest as `"train"`, each in ascending order. Every class
        keeps at least one picture to train on; a class of three or more gives each split one at least.

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
    of_class: dict[int, list[list[int]]] = {}
    for group in groups.values():  # one picture under two labels goes with the first
        of_class.setdefault(int(labels[group[0]]), []).append(group)
    drawn: dict[str, list[int]] = {name: [] for name in (*shares, "train")}
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


def _counts(size: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many of a class of `size` each split gets, the last-named splits first where they are few."""
    counts = {}
    left = size - 1  # one stays to train on
    for name, share in reversed(list(shares.items())):
        wanted = max(1, round(size * share)) if share > 0 else 0
        counts[name] = min(wanted, left)
        left -= counts[name]
    return counts
